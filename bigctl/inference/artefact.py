"""A model that was exported, used as its run is: the same records, computed by another runtime.

What turns examples into inputs, and outputs into records, is what the run has: its configuration and what its data
looked like, which `bigctl.json` keeps beside the model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bigctl.config import compose as composing
from bigctl.config import plugins as loading
from bigctl.data.dataset import Features
from bigctl.data.target import NUMBER
from bigctl.engine import compile_cache, experiment
from bigctl.errors import ConfigError, RunError
from bigctl.files import sha256
from bigctl.generation.generate import LanguageModel
from bigctl.inference import exported_text
from bigctl.inference.confidence import Confidence
from bigctl.inference.exporters import sealed
from bigctl.inference.exporters.settings_file import KEPT, SUMS
from bigctl.inference.forward import Compiled, Forward
from bigctl.inference.predictor import Predictor
from bigctl.runs import untrusted
from bigctl.runs.directory import RunDirectory

MODELS = {"model.onnx": "onnx", "model.jax": "jax"}
"""File of a model -> format of `bigctl export`."""
_SHAPE: untrusted.Shape = {
    "schema": int, "config": str, "step": untrusted.COUNT, "plugins": [str], "columns": [str], "decision": float,
    "features": untrusted.RECORD["data"]["features"], "confidence": {str: object},
}  # fmt: skip
_HINT = "export the run again"
STREAM = "stream"
Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


class Artefact(Predictor):
    """A folder that `bigctl export --format onnx`, or jax, wrote."""

    def __init__(self, folder: Path, found: dict[str, Any], run: Run):
        self.run = RunDirectory(folder, writes=False)
        self.config = experiment.on_one_device(composing.from_yaml(found["config"], where=str(folder / KEPT)))
        self.features, self.step = Features.from_json(found["features"]), found["step"]
        task = experiment.make_task(self.config, self.features)
        decision = found["decision"]
        self._task = task if decision is None else task.decided({"threshold": decision})
        self._run, self._found = run, found
        if (confidence := found["confidence"]) is not None:
            self.confidence = Confidence(**{**confidence, "cuts": tuple(confidence["cuts"])})

    @classmethod
    def load(cls, folder: Path, *, plugins: Sequence[str] | None = (), passphrase: str | None = None) -> Artefact:
        """The model of a folder.

        Args:
            folder: of an export.
            plugins: modules with its components.
            passphrase: of an encrypted export; by default that of the environment, see `sealed`.

        Raises:
            RunError: for a file that is damaged, cut short or missing, for a format that is not computed here, for a
                language model, and for a wrong passphrase.
            ConfigError: without the package that computes it, or without a passphrase.
        """
        found = load(folder, plugins=plugins, passphrase=passphrase)
        if not isinstance(found, Artefact):
            raise RunError("a language model writes text, it labels none", where=str(folder), hint="serve it")
        return found

    @classmethod
    def _of(cls, folder: Path, clear: Path, found: dict[str, Any], run: Run) -> Artefact:
        """That of a folder whose files lie in clear in another one, which will be gone."""
        made = cls(clear, found, run)
        if clear != folder:
            if made.features.tokenizer is not None:
                _ = made._tokenizer
            made.run = RunDirectory(folder, writes=False)
        return made

    @cached_property
    def known_columns(self) -> frozenset[str] | None:
        columns = self._found["columns"]
        return None if columns is None else frozenset(columns)

    @cached_property
    def _forward(self) -> Forward:
        names = tuple(self._task.exported_inputs(1))
        return _Exported(self._run, names, self.features)

    def _require_embeddings(self) -> None:
        raise RunError("an exported model gives no embeddings", where=str(self.run.path), hint="serve the run itself")


class _Exported(Forward):
    """An exported model in place of compiled functions."""

    def __init__(self, run: Run, names: Sequence[str], features: Features):
        self._run, self._names, self._features = run, names, features
        self._output = "value" if features.target.kind == NUMBER else "probabilities"

    @cached_property
    def predict(self) -> Compiled:
        return lambda batch: self._run({name: np.asarray(batch[name]) for name in self._names})[self._output]


def load(
    folder: Path, *, plugins: Sequence[str] | None = (), passphrase: str | None = None
) -> Artefact | LanguageModel:
    """The model of a folder: what labels examples, or what writes text. Raises as `Artefact.load` does."""
    with sealed.opened(folder, passphrase) as clear, _as_written(clear):
        kind = kind_of(clear)
        found = _kept(clear, plugins)
        if found["features"]["kind"] != STREAM:
            return Artefact._of(folder, clear, found, _runtime(clear, kind))
        if kind != "jax":
            hint = "serve its run, or export that with --format jax or hf; run.py writes with this one"
            raise RunError("is a language model as ONNX, which is not served", where=str(folder), hint=hint)
        return dataclasses.replace(exported_text.read(clear, found, hint=_HINT), name=str(folder))


def kind_of(folder: Path) -> str:
    """The format of an export. Raises RunError for one that is not computed here."""
    name = next((name for name in MODELS if (folder / name).exists()), None)
    if name is None:
        hint = "serve the run itself, or export it with --format onnx, jax or hf"
        raise RunError("holds neither model.onnx nor model.jax", where=str(folder), hint=hint)
    return MODELS[name]


def _kept(folder: Path, plugins: Sequence[str] | None) -> dict[str, Any]:
    """What `bigctl.json` of a whole folder says, its plugins loaded."""
    require_whole(folder)
    if not (folder / KEPT).is_file():
        raise RunError(f"has no {KEPT}: it was exported by an older bigctl", where=str(folder), hint=_HINT)
    found: dict[str, Any] = untrusted.read(folder / KEPT, _SHAPE)
    loading.load_for_run(found["plugins"], plugins, where=str(folder))
    compile_cache.use_compile_cache()
    return found


@contextlib.contextmanager
def _as_written(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot be read: {error.strerror}", where=str(folder)) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError("is not as bigctl writes it", where=str(folder / KEPT), hint=_HINT) from error


def require_whole(folder: Path) -> None:
    """Raises RunError for a file that is not as the list of digests says."""
    try:
        lines = [line.split("  ", 1) for line in (folder / SUMS).read_text(encoding="utf-8").splitlines()]
        for digest, name in lines:
            if Path(name).name != name or not (folder / name).is_file() or sha256(folder / name) != digest:
                hint = "copy the folder again"
                raise RunError("is damaged, cut short or missing", where=str(folder / name), hint=hint)
    except (OSError, ValueError) as error:
        raise RunError("cannot be read", where=str(folder / SUMS), hint=_HINT) from error
    if missing := {name for name in MODELS if (folder / name).exists()} - {name for _, name in lines}:
        raise RunError(f"does not list {min(missing)}", where=str(folder / SUMS), hint=_HINT)


def _runtime(folder: Path, kind: str) -> Run:
    if kind == "jax":
        from bigctl.inference.exporters import stablehlo

        return stablehlo.Loaded(folder)
    if importlib.util.find_spec("onnxruntime") is None:
        raise ConfigError("onnxruntime is not installed", where=str(folder), hint="pip install 'bigctl[onnx]'")
    from bigctl.inference.exporters import onnx_session

    return onnx_session.Loaded((folder / "model.onnx").read_bytes())
