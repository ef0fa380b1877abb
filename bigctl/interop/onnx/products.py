"""Primitives that multiply and add, and windows: matrix products, convolution, pooling."""

from __future__ import annotations

import math

import numpy as np
from jax.extend.core import JaxprEqn

from bigctl.interop.onnx.elementwise import Handler
from bigctl.interop.onnx.graph import Dim, Dims, Graph, Unsupported, Value, shaped
from bigctl.interop.onnx.shaping import reshaped, squeezed, transposed


def _dot_general(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    """MatMul, with what does not fit transposed and merged; never Einsum, which quantisers do not know."""
    (left_sum, right_sum), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    left, right = (graph.full(value) for value in values)
    out = shaped(eqn.outvars[0])
    if any(value.dtype != out.dtype for value in (left, right)):
        raise Unsupported(f"a product of {left.dtype} and {right.dtype} as {out.dtype}")
    left_free = [a for a in range(len(left.shape)) if a not in (*left_sum, *left_batch)]
    right_free = [a for a in range(len(right.shape)) if a not in (*right_sum, *right_batch)]
    left = transposed(graph, left, (*left_batch, *left_free, *left_sum))
    right = transposed(graph, right, (*right_batch, *right_sum, *right_free))
    batches, sums = len(left_batch), len(left_sum)
    batch = left.shape[:batches]
    kept, added = left.shape[batches : len(left.shape) - sums], right.shape[batches + sums :]
    if sums != 1:
        summed = math.prod(left.shape[len(left.shape) - sums :]) if sums else 1
        left = reshaped(graph, left, (*batch, *kept, summed))
        right = reshaped(graph, right, (*batch, summed, *added))
    if len(added) != 1:
        right = reshaped(graph, right, (*right.shape[: batches + 1], _one(added)))
    if batches or len(kept) == 0:
        merged = kept if len(kept) == 1 else (_one(kept),)
        left = reshaped(graph, left, (*batch, *merged, left.shape[-1])) if len(kept) != 1 else left
        found = graph.node("MatMul", [left, right], (*batch, *merged, right.shape[-1]), out.dtype)
        if not kept and added:
            found = squeezed(graph, found, (batches,))
    else:
        found = graph.node("MatMul", [left, right], (*kept, right.shape[-1]), out.dtype)
    return [reshaped(graph, found, out.shape)]


def _one(sizes: Dims) -> Dim:
    """Several dimensions as one."""
    found: Dim = 1
    for size in sizes:
        found = found * size
    return found


def _conv(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    params, out = eqn.params, shaped(eqn.outvars[0])
    numbers = params["dimension_numbers"]
    if params["batch_group_count"] != 1 or any(step != 1 for step in params["lhs_dilation"]):
        raise Unsupported("a transposed convolution, or one in groups of the batch")
    x = transposed(graph, values[0], tuple(numbers.lhs_spec))
    kernel = transposed(graph, values[1], tuple(numbers.rhs_spec))
    pads = [low for low, _ in params["padding"]] + [high for _, high in params["padding"]]
    if min(pads, default=0) < 0:
        raise Unsupported("a convolution with negative padding")
    shape = tuple(out.shape[axis] for axis in numbers.out_spec)
    found = graph.node(
        "Conv", [x, kernel], shape, out.dtype, strides=params["window_strides"], pads=pads,
        dilations=params["rhs_dilation"], group=params["feature_group_count"],
    )  # fmt: skip
    back = sorted(range(len(shape)), key=lambda axis: numbers.out_spec[axis])
    return [transposed(graph, found, tuple(back))]


def _pool(op: str) -> Handler:
    def convert(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
        params, out = eqn.params, shaped(eqn.outvars[0])
        window, strides, padding = params["window_dimensions"], params["window_strides"], params["padding"]
        dilated = any(step != 1 for name in ("base_dilation", "window_dilation") for step in params[name])
        inside = [a for a, size in enumerate(window) if size != 1 or strides[a] != 1 or padding[a] != (0, 0)]
        rank = len(window)
        if dilated or len(inside) > rank - 2:
            raise Unsupported("a window over all dimensions, or a dilated one")
        while len(inside) < min(rank - 2, 2):  # pooling takes one or two dimensions at least
            inside.append(next(a for a in range(1, rank) if a not in inside))
        order = (*(a for a in range(rank) if a not in inside), *sorted(inside))
        x = transposed(graph, values[0], order)
        places = sorted(inside)
        pads = [padding[a][0] for a in places] + [padding[a][1] for a in places]
        more = {"count_include_pad": 1} if op == "AveragePool" else {}
        found = graph.node(
            op, [x], tuple(out.shape[a] for a in order), out.dtype, kernel_shape=[window[a] for a in places],
            strides=[strides[a] for a in places], pads=pads, **more,  # type: ignore[arg-type]
        )  # fmt: skip
        if op == "AveragePool":
            size = graph.constant(math.prod(window), np.dtype(out.dtype))
            found = graph.node("Mul", [found, size], found.shape, out.dtype)
        return [transposed(graph, found, tuple(order.index(a) for a in range(rank)))]

    return convert


TABLE: dict[str, Handler] = {
    "dot_general": _dot_general,
    "conv_general_dilated": _conv,
    "reduce_window_max": _pool("MaxPool"),
    "reduce_window_sum": _pool("AveragePool"),
}
