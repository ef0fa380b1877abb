"""A jaxpr as an ONNX model.

What depends on constants alone is computed by jax while converting; calls are inlined, but for those that `recurrent`
has an operator for; `scan` becomes Scan, `while` Loop and `cond` If, whose bodies see the values around them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from onnx import helper

from bigctl.errors import ConfigError
from bigctl.interop.onnx import elementwise, products, recurrent, shaping
from bigctl.interop.onnx.elementwise import Handler
from bigctl.interop.onnx.graph import IR, OPSET, Graph, Unsupported, Value, shaped

TABLE: dict[str, Handler] = {**elementwise.TABLE, **shaping.TABLE, **products.TABLE}
"""By the name of the primitive."""
CALLS = {
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "remat",
    "remat2",
    "checkpoint",
    "custom_jvp_call",
    "custom_vjp_call",
}
CALLS |= {"custom_vjp_call_jaxpr"}
"""Primitives that call a jaxpr, which is inlined."""
Watched = tuple[JaxprEqn, str, list[str]]
"""An equation, the line it comes from, and names of its results."""
LARGEST_FOLDED = 1 << 16
"""Elements that a constant may grow to; one that does not grow may be of any size."""


def to_onnx(
    function: Callable[..., Mapping[str, Any]],
    weights: Mapping[str, np.ndarray],
    inputs: Mapping[str, jax.ShapeDtypeStruct],
    *,
    name: str = "model",
    watched: list[Watched] | None = None,
) -> onnx.ModelProto:
    """The ONNX model of a function (weights, inputs) -> outputs, all by name.

    Args:
        function: to be traced.
        weights: become constants of the model.
        inputs: shapes and types; symbolic dimensions stay free.
        name: of the graph.
        watched: filled with every equation and the names of its results, which become outputs of the model; without
            names where a result depends on constants alone.

    Raises:
        ConfigError: for an operation that cannot be expressed, naming it and where it comes from.
    """
    anew = jax.jit(lambda *given: function(*given))  # whatever was traced of it before, see `lstm.layers_called`
    traced = anew.trace(dict(weights), dict(inputs))
    closed, outputs = traced.jaxpr, sorted(traced.out_info)  # jax sorts dictionaries by name
    graph = Graph()
    known = [graph.constant(np.asarray(weights[key]), hint=key) for key in sorted(weights)]
    given = [graph.input(key, inputs[key].shape, inputs[key].dtype, symbols=True) for key in sorted(inputs)]
    walk = _Walk(graph, watched)
    found = walk.run(closed.jaxpr, [graph.constant(np.asarray(c)) for c in closed.consts], [*known, *given])
    results = [*zip(outputs, found, strict=True), *walk.outputs]
    model = helper.make_model(graph.proto(name, results), opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    model.producer_name = "bigctl"
    return model


class _Walk:
    """Equation by equation through a jaxpr and what it calls."""

    def __init__(self, graph: Graph, watched: list[Watched] | None = None, place: str = ""):
        self.graph, self.watched, self.place = graph, watched, place
        self.outputs: list[tuple[str, Value]] = []

    def run(self, jaxpr: Jaxpr, consts: Sequence[Value], arguments: Sequence[Value]) -> list[Value]:
        held: dict[Var, Value] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))

        def read(atom: Literal | Var) -> Value:
            if isinstance(atom, Literal):
                return self.graph.constant(np.asarray(atom.val, shaped(atom).dtype))
            return held[atom]

        for eqn in jaxpr.eqns:
            values = [read(atom) for atom in eqn.invars]
            found = self.convert(eqn, values)
            held.update(zip(eqn.outvars, found, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def convert(self, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
        name = eqn.primitive.name
        place, self.place = self.place, source_of(eqn) or self.place
        if name in CALLS:
            found = self._as_one(eqn, values)
            if found is not None:
                self.place = place
                return found
            inner = called(eqn)
            found = self.run(inner.jaxpr, [self.graph.constant(np.asarray(c)) for c in inner.consts], values)
            self.place = place
            return found
        folded = _folded(eqn, values)
        if folded is not None:
            if self.watched is not None and self.graph.outer is None:
                self.watched.append((eqn, self.place, []))
            return folded
        try:
            if name in _CONTROL:
                found = _CONTROL[name](self, eqn, values)
            elif name in TABLE:
                found = TABLE[name](self.graph, eqn, values)
            else:
                raise Unsupported("")
        except Unsupported as error:
            what = f"onnx: {name}{f', {error},' if str(error) else ''} cannot be expressed"
            hint = "--format jax takes any model"
            raise ConfigError(what, where=self.place, hint=hint) from error
        if self.watched is not None and self.graph.outer is None:
            names = [f"watched_{len(self.outputs) + i}" for i in range(len(found))]
            self.outputs += zip(names, found, strict=True)
            self.watched.append((eqn, self.place, names))
        return found

    def _as_one(self, eqn: JaxprEqn, values: list[Value]) -> list[Value] | None:
        """A call as one operator; None where there is none, and for who looks at every equation."""
        layer = recurrent.TABLE.get(str(eqn.params.get("name", "")))
        if layer is None or self.watched is not None:
            return None
        try:
            return layer(self.graph, eqn, values)
        except Unsupported:
            return None


def called(eqn: JaxprEqn) -> ClosedJaxpr:
    """What a call computes."""
    found = next(eqn.params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in eqn.params)
    return found if isinstance(found, ClosedJaxpr) else ClosedJaxpr(found, ())


def source_of(eqn: JaxprEqn) -> str:
    """The line of Python that an equation comes from; empty where only jax's own are known."""
    file, _, rest = source_info_util.summarize(eqn.source_info).partition(":")
    if not file:
        return ""
    parts = Path(file).parts
    ours = max((place for place, part in enumerate(parts) if part in ("bigctl", "recipes")), default=len(parts) - 2)
    return f"{'/'.join(parts[ours:])}:{rest}"


def _folded(eqn: JaxprEqn, values: list[Value]) -> list[Value] | None:
    """The results of an equation on constants alone, unless they would take much more room."""
    if any(value.constant is None for value in values) or eqn.primitive.name in _CONTROL:
        return None
    shapes = [shaped(out).shape for out in eqn.outvars]
    if any(not isinstance(size, int) for shape in shapes for size in shape):
        return None
    if eqn.primitive.name in ("broadcast_in_dim", "dim_as_value"):
        return None  # the first stays as small as it is, the second is no constant
    size = sum(int(np.prod(shape)) for shape in shapes)
    given = sum(value.constant.size for value in values if value.constant is not None)
    if size > max(given, LARGEST_FOLDED):
        return None
    arrays = [np.broadcast_to(v.constant, v.wanted) for v in values if v.constant is not None]
    found = eqn.primitive.bind(*arrays, **eqn.params)
    several = found if eqn.primitive.multiple_results else [found]
    return [Value("", np.shape(v), np.shape(v), np.dtype(v.dtype), np.asarray(v)) for v in several]


# ------------------------------------------------------------------------------------------------------------- control


def _scan(walk: _Walk, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    graph, params = walk.graph, eqn.params
    body, closed = Graph(graph), params["jaxpr"]
    # By their shapes, for how the parameters say it differs between versions of jax: what is gone over, and what is
    # stacked up, has one dimension more outside of the body.
    carries = sum(shaped(a).ndim == shaped(b).ndim for a, b in zip(eqn.outvars, closed.jaxpr.outvars, strict=True))
    each = sum(shaped(a).ndim > shaped(b).ndim for a, b in zip(eqn.invars, closed.jaxpr.invars, strict=True))
    consts = len(values) - carries - each
    fixed, start, xs = values[:consts], values[consts : consts + carries], values[consts + carries :]
    start, xs = [graph.full(v) for v in start], [graph.full(v) for v in xs]
    inner = [body.input(body.fresh("carry"), v.shape, v.dtype) for v in start]
    inner += [body.input(body.fresh("each"), v.shape[1:], v.dtype) for v in xs]
    if not xs:  # Scan goes over something
        length = graph.size(params["length"])
        xs = [graph.node("Expand", [graph.ints([0]), length], (params["length"],), np.int64)]
        body.input(body.fresh("each"), (), np.int64)
    found = _Walk(body, place=walk.place).run(
        closed.jaxpr, [graph.constant(np.asarray(c)) for c in closed.consts], [*fixed, *inner]
    )
    proto = body.proto(body.fresh("body"), [(body.fresh("result"), value) for value in found])
    backward = int(params["reverse"])
    names = [graph.fresh("scan") for _ in found]
    directions = {"scan_input_directions": [backward] * len(xs)}
    if len(found) > carries:
        directions["scan_output_directions"] = [backward] * (len(found) - carries)
    given = [graph.named(value) for value in (*start, *xs)]
    graph.nodes.append(helper.make_node("Scan", given, names, body=proto, num_scan_inputs=len(xs), **directions))  # type: ignore[arg-type]
    return _results(names, eqn)


def _while(walk: _Walk, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    graph, params = walk.graph, eqn.params
    first, second = params["cond_nconsts"], params["body_nconsts"]
    of_test, of_body = values[:first], values[first : first + second]
    carried = [graph.full(value) for value in values[first + second :]]
    begin = walk.run(params["cond_jaxpr"].jaxpr, _consts(graph, params["cond_jaxpr"]), [*of_test, *carried])
    body = Graph(graph)
    body.input(body.fresh("round"), (), np.int64)
    body.input(body.fresh("goes_on"), (), np.bool_)
    inner = [body.input(body.fresh("carry"), v.shape, v.dtype) for v in carried]
    inside = _Walk(body, place=walk.place)
    found = inside.run(params["body_jaxpr"].jaxpr, _consts(body, params["body_jaxpr"]), [*of_body, *inner])
    test = inside.run(params["cond_jaxpr"].jaxpr, _consts(body, params["cond_jaxpr"]), [*of_test, *found])
    proto = body.proto(body.fresh("body"), [(body.fresh("result"), value) for value in (*test, *found)])
    names = [graph.fresh("loop") for _ in found]
    graph.nodes.append(helper.make_node("Loop", ["", *(graph.named(v) for v in (*begin, *carried))], names, body=proto))
    return [Value(n, v.shape, v.shape, v.dtype) for n, v in zip(names, carried, strict=True)]


def _cond(walk: _Walk, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    graph, (which, *given) = walk.graph, values
    branches = eqn.params["branches"]
    if eqn.params.get("branches_platforms"):  # the last is for any platform: the ordinary operation
        return walk.run(branches[-1].jaxpr, _consts(graph, branches[-1]), given)
    if len(branches) != 2:
        raise Unsupported("a choice among more than two")
    if which.dtype != np.bool_:
        which = graph.node("Cast", [which], (), np.bool_, to=9)
    protos = []
    for branch in branches:
        body = Graph(graph)
        found = _Walk(body, place=walk.place).run(branch.jaxpr, _consts(body, branch), given)
        protos.append(body.proto(body.fresh("branch"), [(body.fresh("result"), value) for value in found]))
    names = [graph.fresh("if") for _ in eqn.outvars]
    graph.nodes.append(
        helper.make_node("If", [graph.named(which)], names, then_branch=protos[1], else_branch=protos[0])
    )
    return _results(names, eqn)


def _results(names: Sequence[str], eqn: JaxprEqn) -> list[Value]:
    shapes = [(tuple(shaped(out).shape), np.dtype(shaped(out).dtype)) for out in eqn.outvars]
    return [Value(name, shape, shape, dtype) for name, (shape, dtype) in zip(names, shapes, strict=True)]


def _consts(graph: Graph, closed: ClosedJaxpr) -> list[Value]:
    return [graph.constant(np.asarray(value)) for value in closed.consts]


_Control = Callable[[_Walk, JaxprEqn, list[Value]], list[Value]]
_CONTROL: dict[str, _Control] = {"scan": _scan, "while": _while, "cond": _cond}


# ------------------------------------------------------------------------------------------------------------ locating


def evaluated(closed: ClosedJaxpr, arguments: Sequence[Any]) -> Iterator[tuple[JaxprEqn, list[Any]]]:
    """Every equation and its results, in the order and with the calls inlined as the conversion has them."""
    yield from _evaluated(closed.jaxpr, closed.consts, arguments)


def _evaluated(
    jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Any]
) -> Generator[tuple[JaxprEqn, list[Any]], None, list[Any]]:
    held = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))

    def read(atom: Literal | Var) -> object:
        return atom.val if isinstance(atom, Literal) else held[atom]

    for eqn in jaxpr.eqns:
        values = [read(atom) for atom in eqn.invars]
        if eqn.primitive.name in CALLS:
            inner = called(eqn)
            found = yield from _evaluated(inner.jaxpr, inner.consts, values)
        else:
            result = eqn.primitive.bind(*values, **eqn.params)
            found = list(result) if eqn.primitive.multiple_results else [result]
            yield eqn, found
        held.update(zip(eqn.outvars, found, strict=True))
    return [read(atom) for atom in jaxpr.outvars]
