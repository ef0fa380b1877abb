"""`method=int8 ranges=...`: beside the run's rounded weights, an ONNX model of it that computes in integers throughout,
with ranges of activations from calibration rows. Needs the packages of `--format onnx`."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigctl.data.dataset import Dataset
from bigctl.errors import ConfigError
from bigctl.inference.compression import calibration
from bigctl.inference.compression.method import Method
from bigctl.inference.exporters import beside
from bigctl.inference.exporters.network import Arrays, Network
from bigctl.inference.trained import TrainedRun


@dataclass(frozen=True)
class Static:
    """What was made.

    Attributes:
        content: of the ONNX file.
        compared: it beside the float32 ONNX model, both in onnxruntime.
        facts: what the table says besides, and `lines` the same for people.
    """

    content: bytes
    compared: beside.Beside
    facts: dict[str, Any]
    lines: list[str]


def require(method: Method) -> None:
    """Raises ConfigError where a package is missing."""
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime")):
        what = f"ranges={method.ranges} is of onnxruntime, which is not installed with onnx"
        raise ConfigError(what, where="ranges", hint='pip install "bigctl[onnx]"')


def made(trained: TrainedRun, method: Method, network: Network, dataset: Dataset) -> Static:
    """The integer model of a run.

    Raises:
        ConfigError: for calibration data that the model does not take; if a package is missing.
        RunError: if the model has no convolutions; if what it gives is no number.
    """
    require(method)
    from bigctl.inference.exporters.onnx_session import Loaded
    from bigctl.interop.onnx import static
    from bigctl.interop.onnx.convert import to_onnx

    batches, where = _batches(method, network, dataset), str(trained.run.path)
    model = to_onnx(network.function, network.weights, network.inputs, name=trained.run.path.name)
    before = model.SerializeToString()
    changed, counted = static.fixed(model, batches, method.ranges, where)
    content = changed.SerializeToString()
    compared = beside.compare(trained, network, Loaded(before), Loaded(content), where)
    rows = calibration.count(batches)
    seen = f"{rows:,} rows of {method.data}" if method.data else calibration.told(rows, dataset)
    lines = [
        f"{counted}; ranges by {method.ranges} of {seen}",
        f"file: {len(before):,} -> {len(content):,} bytes ({len(content) / len(before):.0%})",
    ]
    facts = {"rows": rows, "file_before": len(before), "file_after": len(content), "static": asdict(counted)}
    return Static(content, compared, facts, lines)


def _batches(method: Method, network: Network, dataset: Dataset) -> Sequence[Arrays]:
    if not method.data:
        found = calibration.batches(dataset, method.calibration)
        return [{name: batch[name] for name in network.inputs} for batch in found]
    where, name = f"data={method.data}", next(iter(network.inputs))
    wanted = network.inputs[name]
    size = ", ".join(map(str, wanted.shape[1:]))
    hint = f"a .npy file of {wanted.dtype} [rows, {size}]; without data= rows of the training split are taken"
    try:
        values = np.load(Path(method.data), allow_pickle=False, mmap_mode="r")
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror or error}", where=where, hint=hint) from error
    except (ValueError, EOFError) as error:
        raise ConfigError("is no .npy file of numbers, or is cut short", where=where, hint=hint) from error
    if not isinstance(values, np.ndarray):
        raise ConfigError("holds several arrays", where=where, hint=hint)
    if len(network.inputs) > 1 or values.shape[1:] != wanted.shape[1:] or values.dtype != wanted.dtype:
        what = f"holds {values.dtype} {list(values.shape)}, the model takes {wanted.dtype} [rows, {size}]"
        raise ConfigError(what, where=where, hint=hint)
    if not len(values):
        raise ConfigError("holds no rows", where=where, hint=hint)
    return [{name: np.asarray(values[: method.calibration])}]
