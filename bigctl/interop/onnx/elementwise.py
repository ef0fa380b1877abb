"""Primitives that compute each element by itself. Operators of ONNX broadcast, so operands need not be of one shape."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from jax.extend.core import JaxprEqn
from numpy.typing import DTypeLike

from bigctl.interop.onnx.graph import Attribute, Dims, Graph, Unsupported, Value, onnx_type, shaped

Handler = Callable[[Graph, JaxprEqn, list[Value]], list[Value]]


def broadcast(values: list[Value]) -> Dims:
    """The shape that the operands together have."""
    rank = max(len(value.shape) for value in values)
    shapes = [(1,) * (rank - len(value.shape)) + tuple(value.shape) for value in values]
    return tuple(next((size for size in sizes if size != 1), 1) for sizes in zip(*shapes, strict=True))


def apply(graph: Graph, op: str, values: list[Value], wanted: Dims, dtype: DTypeLike, **attributes: Attribute) -> Value:
    return graph.node(op, values, broadcast(values), dtype, wanted=wanted, **attributes)  # type: ignore[arg-type]


def plain(op: str) -> Handler:
    """A primitive that is one operator."""

    def convert(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
        out = shaped(eqn.outvars[0])
        return [apply(graph, op, values, out.shape, out.dtype)]

    return convert


def by(steps: Callable[[_Maker, list[Value]], Value]) -> Handler:
    """A primitive that is several operators."""

    def convert(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
        return [steps(_Maker(graph, eqn), values)]

    return convert


class _Maker:
    """Operators on values of the output's shape: `maker.Add(x, 1.0)`."""

    def __init__(self, graph: Graph, eqn: JaxprEqn):
        self.graph, self.params, self.out = graph, eqn.params, shaped(eqn.outvars[0])

    def __call__(
        self, op: str, *values: Value | float, dtype: DTypeLike | None = None, **attributes: Attribute
    ) -> Value:
        kind = next(value.dtype for value in values if isinstance(value, Value))
        given = [v if isinstance(v, Value) else self.graph.constant(v, kind) for v in values]
        return apply(self.graph, op, given, self.out.shape, kind if dtype is None else dtype, **attributes)


def _div(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    top, bottom = values
    out = shaped(eqn.outvars[0])
    if top.origin[:1] == ("sum",) and bottom.constant is not None and bottom.constant.size == 1:
        x, axes, keep = top.origin[1:4]
        sizes = [x.wanted[axis] for axis in axes]
        if all(isinstance(size, int) for size in sizes) and math.prod(sizes) == bottom.constant.item():
            inputs = [x, graph.ints(axes)]
            return [graph.node("ReduceMean", inputs, top.shape, out.dtype, wanted=out.shape, keepdims=keep)]
    if bottom.origin[:1] == ("sum",) and top.origin[:1] == ("exp",):
        _, x, axes = top.origin
        if bottom.origin[1].name == top.name and tuple(bottom.origin[2]) == tuple(axes) and len(axes) == 1:
            return [graph.node("Softmax", [x], x.shape, out.dtype, wanted=out.shape, axis=axes[0])]
    return plain("Div")(graph, eqn, values)


def _sub(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    (found,) = plain("Sub")(graph, eqn, values)
    x, most = values
    if most.origin[:1] == ("max",) and most.origin[1].name == x.name and x.name:
        found = Value(found.name, found.shape, found.wanted, found.dtype, None, ("shifted", x, most.origin[2]))
    return [found]


def _exp(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    (found,) = plain("Exp")(graph, eqn, values)
    if values[0].origin[:1] == ("shifted",):
        found = Value(found.name, found.shape, found.wanted, found.dtype, None, ("exp", *values[0].origin[1:]))
    return [found]


def _rsqrt(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    root = plain("Sqrt")(graph, eqn, values)[0]
    (found,) = plain("Reciprocal")(graph, eqn, [root])
    return [Value(found.name, found.shape, found.wanted, found.dtype, None, ("rsqrt", root))]


def _mul(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    for x, factor in (values, values[::-1]):
        if factor.origin[:1] == ("rsqrt",):  # as the fusions of onnxruntime know it
            return plain("Div")(graph, eqn, [x, factor.origin[1]])
    (found,) = plain("Mul")(graph, eqn, values)
    for x, factor in (values, values[::-1]):
        if x.origin[:1] == ("neg",) and factor.constant is not None and factor.constant.size == 1:
            return [replace(found, origin=("neg", x.origin[1], x.origin[2] * factor.constant.item()))]
    return [found]


def _max(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    for x, least in (values, values[::-1]):
        zero = least.constant is not None and least.constant.dtype == np.float32 and not least.constant.any()
        if zero and least.constant is not None and least.constant.size == 1:
            return plain("Relu")(graph, eqn, [x])
        unbounded = least.constant is not None and least.constant.size == 1 and least.constant.item() == -math.inf
        if unbounded and x.origin[:1] == ("max",):  # the softmax of jax guards itself so
            return [x]
    return plain("Max")(graph, eqn, values)


def _erfc(make: _Maker, values: list[Value]) -> Value:
    (x,) = values
    if x.origin[:1] == ("neg",) and x.origin[2]:
        _, inner, factor = x.origin
        scaled = inner if factor == 1 else make("Div", inner, 1 / factor)  # onnxruntime knows a GELU by its Div
        return make("Add", make("Erf", scaled), 1.0)
    return make("Sub", 1.0, make("Erf", x))


def _neg(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    (found,) = plain("Neg")(graph, eqn, values)
    return [Value(found.name, found.shape, found.wanted, found.dtype, None, ("neg", values[0], 1.0))]


def _integer_pow(make: _Maker, values: list[Value]) -> Value:
    return make("Pow", values[0], float(make.params["y"]))


def _cast(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    (x,), out = values, shaped(eqn.outvars[0])
    if x.dtype == out.dtype:
        return [x]
    return [apply(graph, "Cast", values, out.shape, out.dtype, to=onnx_type(out.dtype))]


def _select(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    which, *cases = values
    if len(cases) != 2 or which.dtype != np.bool_:
        raise Unsupported("a choice among more than two")
    out = shaped(eqn.outvars[0])
    known = which.constant
    if known is not None and known.all() == known.any():  # a mask that hides nothing
        return [cases[int(known.all())]]
    return [apply(graph, "Where", [which, cases[1], cases[0]], out.shape, out.dtype)]


def _logic(of_bool: str, of_ints: str) -> Handler:
    def convert(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
        return plain(of_bool if values[0].dtype == np.bool_ else of_ints)(graph, eqn, values)

    return convert


def _ne(make: _Maker, values: list[Value]) -> Value:
    return make("Not", make("Equal", *values, dtype=np.bool_))


def _round(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    if int(eqn.params["rounding_method"]) != 1:
        raise Unsupported("rounding of halves away from zero")
    return plain("Round")(graph, eqn, values)


def _rem(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    out = shaped(eqn.outvars[0])
    return [apply(graph, "Mod", values, out.shape, out.dtype, fmod=1)]


def _is_finite(make: _Maker, values: list[Value]) -> Value:
    (x,) = values
    return make("Not", make("Or", make("IsInf", x, dtype=np.bool_), make("IsNaN", x, dtype=np.bool_)))


def same(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    """A primitive that changes nothing."""
    return values


TABLE: dict[str, Handler] = {
    **{name: plain(op) for name, op in {
        "add": "Add", "min": "Min", "abs": "Abs", "log": "Log", "tanh": "Tanh", "logistic": "Sigmoid", "sqrt": "Sqrt",
        "erf": "Erf", "sin": "Sin", "cos": "Cos", "tan": "Tan", "floor": "Floor", "ceil": "Ceil", "sign": "Sign",
        "pow": "Pow", "eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual",
    }.items()},
    "sub": _sub, "mul": _mul, "div": _div, "max": _max, "exp": _exp, "rsqrt": _rsqrt, "neg": _neg, "erfc": by(_erfc),
    "square": by(lambda make, values: make("Pow", values[0], 2.0)), "integer_pow": by(_integer_pow),
    "exp2": by(lambda make, values: make("Pow", make("Add", make("Mul", values[0], 0.0), 2.0), values[0])),
    "expm1": by(lambda make, values: make("Sub", make("Exp", *values), 1.0)),
    "log1p": by(lambda make, values: make("Log", make("Add", *values, 1.0))),
    "clamp": by(lambda make, values: make("Min", make("Max", values[1], values[0]), values[2])),
    "and": _logic("And", "BitwiseAnd"), "or": _logic("Or", "BitwiseOr"), "xor": _logic("Xor", "BitwiseXor"),
    "not": _logic("Not", "BitwiseNot"), "ne": by(_ne), "round": _round, "rem": _rem, "is_finite": by(_is_finite),
    "convert_element_type": _cast, "select_n": _select,
    **dict.fromkeys(("copy", "copy_p", "name", "stop_gradient", "sharding_constraint", "optimization_barrier"), same),
}  # fmt: skip
