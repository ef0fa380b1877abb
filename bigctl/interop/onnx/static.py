"""An ONNX model of convolutions whose activations have fixed ranges, so that layer after layer computes in integers, by
onnxruntime's own quantiser; the ranges are those of rows that it is calibrated with.

`ranges` says how one is chosen: "minmax", all that was seen; "percentile", without the outermost 0.001%; "entropy",
where the distribution of the integers is nearest to what was seen (Migacz 2017, TensorRT).
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, TensorProto, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from bigctl.errors import RunError
from bigctl.interop.onnx.quantise import Quantised, nodes

RANGES = {
    "minmax": CalibrationMethod.MinMax, "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}  # fmt: skip
_LAYERS = ("Conv", "Gemm", "MatMul")
_BETWEEN = ("Relu", "MaxPool", "Transpose", "Add")
"""What lies between layers and can take integers on."""


class _Rows(CalibrationDataReader):  # type: ignore[misc]
    """One row after the other: histograms are only made of arrays of one shape."""

    def __init__(self, batches: Sequence[Mapping[str, np.ndarray]]):
        self._rows = (
            {name: values[n : n + 1] for name, values in batch.items()}
            for batch in batches
            for n in range(len(next(iter(batch.values()))))
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._rows, None)


def fixed(
    model: ModelProto, batches: Sequence[Mapping[str, np.ndarray]], ranges: str, where: str
) -> tuple[ModelProto, Quantised]:
    """The model with integers of eight bits for weights (seven of them, see `quantise`; a scale a channel) and for what
    layers are given.

    Args:
        model: float32.
        batches: inputs by name, which show what layers are given.
        ranges: see above.
        where: what errors are about.

    Raises:
        RunError: if it has no convolutions, or one of its layers has stayed as it was.
    """
    with tempfile.TemporaryDirectory() as name, _quietly():
        folder = Path(name)
        merged = _merged(model, folder)
        before = _weights(merged)
        if not any(op == "Conv" for op, _ in before.values()):
            hint = "leave out ranges=; `bigctl export --int8` rounds what dense layers are given as it comes"
            raise RunError("has no convolutions, for which ranges are fixed", where=where, hint=hint)
        quantize_static(
            folder / "merged.onnx", folder / "fixed.onnx", _Rows(batches), quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*_LAYERS, *_BETWEEN], per_channel=True, reduce_range=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, calibrate_method=RANGES[ranges],
            extra_options={"MatMulConstBOnly": True, "QDQDisableWeightAdjustForInt32Bias": True},
        )  # fmt: skip
        changed = onnx.load(folder / "fixed.onnx")
    held = {each.name: each for each in changed.graph.initializer}
    made = {name: held[f"{name}_quantized"] for name in before if f"{name}_quantized" in held}
    if left := [name for name in before if name not in made or name in held]:
        what = f"{', '.join(left)} did not become int8"
        raise RunError(what, where=where, hint="nothing was written; this is a mistake in bigctl: please report it")
    layers: dict[str, int] = {}
    for op, _ in before.values():
        layers[op] = layers.get(op, 0) + 1
    scales = sum(numpy_helper.to_array(held[f"{name}_scale"]).nbytes for name in before)
    after = scales + sum(numpy_helper.to_array(each).nbytes for each in made.values())
    return changed, Quantised(8, layers, sum(size for _, size in before.values()), after, {})


def _merged(model: ModelProto, folder: Path) -> ModelProto:
    """The model with biases and normalisations in the layers that they follow, by onnxruntime; it stays plain ONNX."""
    onnx.save(model, folder / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath, options.log_severity_level = str(folder / "merged.onnx"), 3
    onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    merged = onnx.load(folder / "merged.onnx")
    plain = [each for each in merged.opset_import if each.domain in {node.domain for node, _ in nodes(merged.graph)}]
    del merged.opset_import[:]
    merged.opset_import.extend(plain)
    onnx.save(merged, folder / "merged.onnx")
    return merged


def _weights(model: ModelProto) -> dict[str, tuple[str, int]]:
    """The float32 weights of layers: by name what takes each, and its bytes."""
    floats = {each.name: each for each in model.graph.initializer if each.data_type == TensorProto.FLOAT}
    taken = [(node.input[1], node.op_type) for node, _ in nodes(model.graph) if node.op_type in _LAYERS]
    return {name: (op, 4 * int(np.prod(floats[name].dims))) for name, op in taken if name in floats}


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """The quantiser prints, and recommends a preparation that `_merged` is."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
