"""Primitives that move elements: shapes, slices, gathers, counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn

from bigctl.interop.onnx.elementwise import Handler
from bigctl.interop.onnx.graph import Dims, Graph, Unsupported, Value, onnx_type, shaped

_LAST = 2**63 - 1


def reshaped(graph: Graph, x: Value, shape: Dims) -> Value:
    """x with another shape; no size is computed where 0 (as it was) and -1 (what is left) say it."""
    x = graph.full(x)
    if x.shape == tuple(shape):
        return x
    if x.constant is not None and all(isinstance(size, int) for size in shape):
        return graph.constant(x.constant.reshape(shape), hint=str(x.origin[0]) if x.origin else "constant")
    told, unknown = [], 0
    for axis, size in enumerate(shape):
        if isinstance(size, int) and size:
            told.append(size)
        elif axis < len(x.shape) and str(x.shape[axis]) == str(size):
            told.append(0)
        else:
            told.append(-1)
            unknown += 1
    target = graph.ints(told) if unknown <= 1 and 0 not in shape else graph.sizes(shape)
    return graph.node("Reshape", [x, target], shape, x.dtype)


def _reshape(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    if eqn.params.get("dimensions") is not None:
        raise Unsupported("a reshape that transposes")
    return [reshaped(graph, values[0], eqn.params["new_sizes"])]


def _squeeze(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    return [squeezed(graph, graph.full(values[0]), eqn.params["dimensions"])]


def squeezed(graph: Graph, x: Value, axes: tuple[int, ...]) -> Value:
    if not axes:
        return x
    shape = tuple(size for axis, size in enumerate(x.shape) if axis not in axes)
    return graph.node("Squeeze", [x, graph.ints(sorted(axes))], shape, x.dtype)


def transposed(graph: Graph, x: Value, order: tuple[int, ...]) -> Value:
    if order == tuple(range(len(order))):
        return x
    x = graph.full(x)
    if x.constant is not None:
        return graph.constant(np.transpose(x.constant, order), hint=str(x.origin[0]) if x.origin else "constant")
    shape = tuple(x.shape[axis] for axis in order)
    if x.origin[:1] == ("transpose",):
        before, first = x.origin[1:]
        return transposed(graph, before, tuple(first[axis] for axis in order))
    return graph.node("Transpose", [x], shape, x.dtype, perm=order, origin=("transpose", x, order))


def _transpose(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    return [transposed(graph, values[0], tuple(eqn.params["permutation"]))]


def _broadcast(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    """Leading dimensions are left out and others become 1: what takes the value broadcasts it, if need be."""
    x, places, shape = graph.ranked(values[0]), tuple(eqn.params["broadcast_dimensions"]), tuple(eqn.params["shape"])
    if x.origin[:1] in (("max",), ("sum",)) and len(x.origin) == 5:  # of a sum that is to keep its dimensions
        whole = x.origin[1].wanted
        kept = tuple(1 if axis in x.origin[2] else size for axis, size in enumerate(whole))
        if shape == kept and places == tuple(a for a in range(len(whole)) if a not in x.origin[2]):
            return [x.origin[4]()]
    first = places[0] if places else len(shape)
    axes = [axis - first for axis in range(first, len(shape)) if axis not in places]
    return [replace(graph.unsqueezed(x, axes), wanted=shape)]


def _concatenate(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    out = shaped(eqn.outvars[0])
    return [graph.node("Concat", [graph.full(v) for v in values], out.shape, out.dtype, axis=eqn.params["dimension"])]


def _split(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    x, axis, start, found = graph.full(values[0]), eqn.params["axis"], 0, []
    for out, size in zip(eqn.outvars, eqn.params["sizes"], strict=True):
        found.append(sliced(graph, x, [start], [start + size], [axis], shaped(out).shape))
        start += size
    return found


def sliced(
    graph: Graph,
    x: Value,
    starts: Value | list[int],
    ends: Value | list[int],
    axes: list[int],
    shape: Dims,
    steps: list[int] | None = None,
) -> Value:
    given = [graph.ints(each) if isinstance(each, list) else each for each in (starts, ends)]
    inputs = [x, *given, graph.ints(axes), *([graph.ints(steps)] if steps else [])]
    return graph.node("Slice", inputs, shape, x.dtype)


def _slice(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    x, params = graph.full(values[0]), eqn.params
    steps = params["strides"] or (1,) * len(x.shape)
    bounds = list(zip(params["start_indices"], params["limit_indices"], steps, x.shape, strict=True))
    axes = [a for a, (start, end, step, size) in enumerate(bounds) if (start, step) != (0, 1) or str(end) != str(size)]
    if not axes:
        return [x]
    starts, ends = graph.sizes(tuple(bounds[a][0] for a in axes)), graph.sizes(tuple(bounds[a][1] for a in axes))
    return [sliced(graph, x, starts, ends, axes, shaped(eqn.outvars[0]).shape, [bounds[a][2] for a in axes])]


def _rev(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    x, axes = graph.full(values[0]), list(eqn.params["dimensions"])
    return [sliced(graph, x, [-1] * len(axes), [-_LAST] * len(axes), axes, x.shape, [-1] * len(axes))]


def _window(graph: Graph, x: Value, starts: list[Value], sizes: Dims, axes: list[int]) -> Value:
    """The part of x of some sizes that begins at scalars, moved inside of x where it would reach beyond."""
    shape = tuple(sizes[axes.index(a)] if a in axes else size for a, size in enumerate(x.shape))
    axes_moved = [a for a in axes if str(shape[a]) != str(x.shape[a])]
    if not axes_moved:
        return x
    moved = [starts[axes.index(axis)] for axis in axes_moved]
    if all(start.constant is not None for start in moved):
        first_places = [int(start.constant.item()) for start in moved if start.constant is not None]
        ends = graph.sizes(tuple(at + shape[axis] for at, axis in zip(first_places, axes_moved, strict=True)))
        return sliced(graph, x, first_places, ends, axes_moved, shape)
    begins = []
    for axis in axes_moved:
        start = starts[axes.index(axis)]
        at = graph.node("Cast", [graph.full(start)], (), np.int64, to=7)
        at = graph.node("Reshape", [at, graph.ints([1])], (1,), np.int64)
        room = graph.node("Sub", [graph.size(x.shape[axis]), graph.size(shape[axis])], (1,), np.int64)
        at = graph.node("Min", [at, room], (1,), np.int64)
        begins.append(graph.node("Max", [at, graph.ints([0])], (1,), np.int64))
    first = graph.node("Concat", begins, (len(begins),), np.int64, axis=0)
    last = graph.node("Add", [first, graph.sizes(tuple(shape[a] for a in axes_moved))], (len(begins),), np.int64)
    return sliced(graph, x, first, last, axes_moved, shape)


def _dynamic_slice(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    x, starts = graph.full(values[0]), values[1 : 1 + len(values[0].wanted)]
    return [_window(graph, x, starts, eqn.params["slice_sizes"], list(range(len(x.shape))))]


def _dynamic_update_slice(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    """What is before the update, the update, and what is behind it."""
    x, new, *starts = values
    x, new = graph.full(x), graph.full(new)
    moved = [a for a, (old, size) in enumerate(zip(x.shape, new.shape, strict=True)) if str(old) != str(size)]
    if not moved:
        return [new]
    if len(moved) > 1:
        raise Unsupported("an update that is smaller along several dimensions")
    (axis,) = moved
    at = graph.node("Cast", [starts[axis]], (), np.int64, to=7)
    at = graph.node("Reshape", [at, graph.ints([1])], (1,), np.int64)
    end = graph.node("Add", [at, graph.size(new.shape[axis])], (1,), np.int64)
    before = sliced(graph, x, [0], at, [axis], x.shape)
    after = sliced(graph, x, end, [_LAST], [axis], x.shape)
    return [graph.node("Concat", [before, new, after], x.shape, x.dtype, axis=axis)]


def _pad(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    x, filling = graph.full(values[0]), values[1]
    low, high, inner = zip(*eqn.params["padding_config"], strict=True)
    if any(inner):
        raise Unsupported("padding between elements")
    return [graph.node("Pad", [x, graph.sizes((*low, *high)), filling], shaped(eqn.outvars[0]).shape, x.dtype)]


def _iota(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    out, axis = shaped(eqn.outvars[0]), eqn.params["dimension"]
    count = graph.node("Squeeze", [graph.size(out.shape[axis]), graph.ints([0])], (), np.int64)
    bounds = [graph.constant(0, np.int64), count, graph.constant(1, np.int64)]
    numbers = graph.node("Range", bounds, out.shape[axis : axis + 1], np.int64)
    cast = graph.node("Cast", [numbers], numbers.shape, out.dtype, to=onnx_type(out.dtype))
    return [replace(graph.unsqueezed(cast, list(range(1, len(out.shape) - axis))), wanted=out.shape)]


def _dim_as_value(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    size = graph.node("Squeeze", [graph.size(eqn.params["dim"]), graph.ints([0])], (), np.int64)
    return [graph.node("Cast", [size], (), np.int32, to=6)]


def _gather(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    """Rows of a table, or one part of a tensor. An index out of bounds is an error of the runtime."""
    x, indices, out = graph.full(values[0]), graph.full(values[1]), shaped(eqn.outvars[0])
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    collapsed, mapped = tuple(numbers.collapsed_slice_dims), tuple(numbers.start_index_map)
    if numbers.operand_batching_dims or numbers.start_indices_batching_dims:
        raise Unsupported("a gather with batches of tables")
    if len(indices.shape) == 1:
        starts = [_element(graph, indices, place) for place in range(len(mapped))]
        window = _window(graph, x, starts, tuple(sizes[axis] for axis in mapped), list(mapped))
        return [squeezed(graph, window, collapsed)]
    whole = all(str(size) == str(x.shape[a]) for a, size in enumerate(sizes) if a not in mapped)
    grid = _grid(indices, numbers, mapped) if len(mapped) > 1 and collapsed == mapped and whole else None
    if grid is not None:
        for axis, places in zip(mapped, grid, strict=True):
            shape = (*x.shape[:axis], len(places), *x.shape[axis + 1 :])
            x = _picked(graph, x, axis, places, shape)
        return [x]
    if len(mapped) != 1 or collapsed != mapped or sizes[mapped[0]] != 1 or not whole:
        raise Unsupported("a gather of other things than rows")
    (axis,) = mapped
    rows = squeezed(graph, indices, (len(indices.shape) - 1,))
    count = len(rows.shape)
    found = graph.node("Gather", [x, rows], (*x.shape[:axis], *rows.shape, *x.shape[axis + 1 :]), x.dtype, axis=axis)
    everywhere, here = range(len(out.shape)), range(axis, axis + count)
    others = [a for a in everywhere if a not in numbers.offset_dims]
    place = dict(zip([*others, *numbers.offset_dims], [*here, *(a for a in everywhere if a not in here)], strict=True))
    return [transposed(graph, found, tuple(place[a] for a in everywhere))]


def _grid(indices: Value, numbers: lax.GatherDimensionNumbers, mapped: tuple[int, ...]) -> list[list[int]] | None:
    """The places along each of the mapped dimensions, where constant indices are those of a grid; else None."""
    known, everywhere = indices.constant, range(len(mapped) + len(numbers.offset_dims))
    others = [axis for axis in everywhere if axis not in numbers.offset_dims]
    if known is None or known.ndim != len(mapped) + 1 or others != list(mapped):
        return None
    lines = [np.moveaxis(known[..., k], k, 0).reshape(known.shape[k], -1) for k in range(len(mapped))]
    return [line[:, 0].tolist() for line in lines] if all((line == line[:, :1]).all() for line in lines) else None


def _picked(graph: Graph, x: Value, axis: int, places: list[int], shape: Dims) -> Value:
    """Some places along a dimension: a slice where they are evenly apart."""
    step = places[1] - places[0] if len(places) > 1 else 1
    if step > 0 and places == list(range(places[0], places[-1] + 1, step)):
        return sliced(graph, x, [places[0]], [places[-1] + 1], [axis], shape, [step])
    return graph.node("Gather", [x, graph.ints(places)], shape, x.dtype, axis=axis)


def _element(graph: Graph, vector: Value, place: int) -> Value:
    """One number of a vector, a scalar."""
    if vector.constant is not None:
        return graph.constant(vector.constant[place])
    part = sliced(graph, vector, [place], [place + 1], [0], (1,))
    return graph.node("Squeeze", [part, graph.ints([0])], (), vector.dtype)


def _argument(op: str) -> Handler:
    def convert(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
        x, out, (axis,) = graph.full(values[0]), shaped(eqn.outvars[0]), eqn.params["axes"]
        found = graph.node(op, [x], out.shape, np.int64, axis=axis, keepdims=0)
        return [graph.node("Cast", [found], out.shape, out.dtype, to=6)]

    return convert


def _cumsum(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    x = graph.full(values[0])
    axis = graph.constant(eqn.params["axis"], np.int64)
    return [graph.node("CumSum", [x, axis], x.shape, x.dtype, reverse=int(eqn.params["reverse"]))]


def _reduce(op: str, kind: str = "") -> Handler:
    def convert(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
        x, out, axes = graph.full(values[0]), shaped(eqn.outvars[0]), tuple(eqn.params["axes"])

        def with_dims() -> Value:
            shape = tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
            return graph.node(op, [x, graph.ints(axes)], shape, out.dtype, origin=(kind, x, axes, 1), keepdims=1)

        origin = (kind, x, axes, 0, with_dims)
        return [graph.node(op, [x, graph.ints(axes)], out.shape, out.dtype, origin=origin, keepdims=0)]

    return convert


def _reduce_bool(op: str) -> Handler:
    def convert(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
        x, out, axes = graph.full(values[0]), shaped(eqn.outvars[0]), tuple(eqn.params["axes"])
        whole = graph.node("Cast", [x], x.shape, np.int32, to=6)
        found = graph.node(op, [whole, graph.ints(axes)], out.shape, np.int32, keepdims=0)
        return [graph.node("Cast", [found], out.shape, np.bool_, to=9)]

    return convert


TABLE: dict[str, Handler] = {
    "reshape": _reshape, "squeeze": _squeeze, "transpose": _transpose, "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate, "split": _split, "slice": _slice, "rev": _rev, "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice, "pad": _pad, "iota": _iota, "dim_as_value": _dim_as_value,
    "gather": _gather, "argmax": _argument("ArgMax"), "argmin": _argument("ArgMin"), "cumsum": _cumsum,
    "reduce_sum": _reduce("ReduceSum", "sum"), "reduce_max": _reduce("ReduceMax", "max"),
    "reduce_min": _reduce("ReduceMin"), "reduce_prod": _reduce("ReduceProd"),
    "reduce_or": _reduce_bool("ReduceMax"), "reduce_and": _reduce_bool("ReduceMin"),
}  # fmt: skip
