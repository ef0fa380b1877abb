"""The formats that a trained model can be exported to, and what an exporter is. Nothing heavy at import.

A new format is a module with an `Exporter`, and a line in `FORMATS`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from bigctl.errors import ConfigError

if TYPE_CHECKING:
    from bigctl.inference.trained import TrainedRun


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        module: what has `require` and `write`, see `Exporter`.
        about: what the folder holds, and of which models, for people.
        packages: what has to be installed besides; an extra of the format's name brings them.
        bits: of a weight, that it can be rounded to.
    """

    module: str
    about: str
    packages: Sequence[str] = ()
    bits: Sequence[int] = ()


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        usage: lines that load or use it without bigctl.
        facts: what the command says besides, JSON-serialisable; `what` names the thing in a word.
        examples: what `bigctl predict FOLDER` is given; empty where it labels nothing with it.
        served: whether `bigctl serve FOLDER` answers with it.
    """

    usage: Sequence[str]
    facts: dict[str, Any]
    examples: str = ""
    served: bool = False


class Exporter(Protocol):
    """What the module of a format has."""

    def require(self, trained: TrainedRun) -> None:
        """Raises ConfigError or RunError, quickly, for a run that the format has no place for."""

    def write(self, trained: TrainedRun, folder: Path) -> Exported:
        """Write the run's model as a new folder: all of it, or nothing. A format with `bits` takes these besides.

        Raises:
            ConfigError: if the folder holds something, or the format lacks what the model does.
            RunError: if it cannot be written, or does not compute what the model does.
        """


_HERE = "bigctl.inference.exporters"
FORMATS = {
    "hf": Format(
        f"{_HERE}.huggingface",
        "config.json, model.safetensors and tokenizer or preprocessor files, as Hugging Face transformers reads them "
        "(model=bert, gpt, llama, resnet, vit, convnext)",
    ),
    "jax": Format(
        f"{_HERE}.stablehlo", "model.jax (StableHLO for cpu, cuda and tpu) and weights.npz, for jax alone (any model)"
    ),
    "onnx": Format(
        f"{_HERE}.onnx_model",
        "model.onnx for onnxruntime (what ONNX has operators for)",
        ("onnx", "onnxruntime"),
        bits=(4, 8),
    ),
    "gguf": Format(
        f"{_HERE}.gguf_model",
        "model.gguf for llama.cpp, float16 or Q8_0 and Q4_0 (gpt and llama of recipe=gpt_lm)",
        ("gguf",),
        bits=(4, 8),
    ),
    "timm": Format(
        f"{_HERE}.timm_folder",
        "config.json and model.safetensors, as timm reads them (model=resnet, vit, convnext in sizes that timm has)",
    ),
}


def exporter(name: str) -> Exporter:
    """The exporter of a format. Raises ConfigError for an unknown one, or where a package is missing."""
    if name not in FORMATS:
        raise ConfigError(f"{name!r} is no format", where="--format", hint=f"one of: {', '.join(FORMATS)}")
    missing = [package for package in FORMATS[name].packages if importlib.util.find_spec(package) is None]
    if missing:
        what = f"{name} needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed"
        raise ConfigError(what, where="--format", hint=f'pip install "bigctl[{name}]"')
    importlib.import_module("numpy")  # out of jaxlib, which else imports it, a Ctrl-C would be shown as a traceback
    return cast(Exporter, importlib.import_module(FORMATS[name].module))


def require_bits(name: str, bits: int) -> None:
    """Raises ConfigError for weights that a format cannot round so."""
    if bits not in FORMATS[name].bits:
        known = [each for each, found in FORMATS.items() if bits in found.bits]
        what, hint = f"--format {name} has no weights of {bits} bits", f"--format {' or '.join(known)} has"
        raise ConfigError(what, where=f"--int{bits}", hint=hint)
