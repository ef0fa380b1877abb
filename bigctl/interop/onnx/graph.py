"""An ONNX graph that is being built, and the values in it.

A value may have fewer elements than jax says: where only a broadcast lies between, it stays as it is, for the operators
of ONNX broadcast by themselves as numpy does. `Graph.full` makes it what jax says it is.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import onnx
from jax.core import ShapedArray
from jax.extend.core import Literal, Var
from numpy.typing import ArrayLike, DTypeLike
from onnx import TensorProto, helper, numpy_helper

OPSET, IR = 18, 9
Dim = Any
"""An integer, or a symbolic dimension of jax, whose type is not public."""
Dims = tuple[Dim, ...]
Attribute = int | float | str | Sequence[int]
"""Of a node."""

_TYPES = {
    "float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "int64": TensorProto.INT64, "bool": TensorProto.BOOL,
    "uint8": TensorProto.UINT8, "int8": TensorProto.INT8, "float16": TensorProto.FLOAT16, "uint32": TensorProto.UINT32,
    "float64": TensorProto.DOUBLE,
}  # fmt: skip


@dataclass(frozen=True)
class Value:
    """A tensor.

    Attributes:
        name: in the graph; "" for a constant that no operator has taken yet.
        shape: what it has; broadcast to `wanted` by whoever takes it.
        wanted: what jax says it has.
        dtype: of numpy.
        constant: its elements, where they are known.
        origin: what it was computed by, for operators that are better written as one.
    """

    name: str
    shape: Dims
    wanted: Dims
    dtype: np.dtype[Any]
    constant: np.ndarray | None = None
    origin: tuple[Any, ...] = ()


class Unsupported(Exception):
    """What ONNX has no operator for, or we do not know which."""


def shaped(atom: Literal | Var) -> ShapedArray:
    """Shape and dtype of what an equation of jax takes or makes."""
    return cast(ShapedArray, atom.aval)


class Graph:
    """Nodes in order; subgraphs see the names of the graph around them.

    Args:
        outer: the graph around this one.
    """

    def __init__(self, outer: Graph | None = None):
        self.outer = outer
        self.top: Graph = outer.top if outer is not None else self
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self._sizes: dict[str, Value] = {}
        if outer is None:
            self.initializers: dict[str, onnx.TensorProto] = {}
            self.symbols: dict[str, tuple[str, int]] = {}
            self._constants: dict[Any, str] = {}
            self._held: list[np.ndarray] = []
            self._count = 0

    # --------------------------------------------------------------------------------------------------------- values

    def fresh(self, hint: str) -> str:
        self.top._count += 1
        return f"{hint}_{self.top._count}"

    def constant(self, values: ArrayLike, dtype: DTypeLike | None = None, hint: str = "constant") -> Value:
        array = np.asarray(values, dtype)
        return Value("", array.shape, array.shape, array.dtype, array, (hint,))

    def ints(self, values: Sequence[int]) -> Value:
        return self.constant(values, np.int64)

    def input(self, name: str, shape: Dims, dtype: DTypeLike, *, symbols: bool = False) -> Value:
        """A new input of this graph; with `symbols` its symbolic dimensions are known from then on."""
        dims = [size if isinstance(size, int) else str(size) for size in shape]
        self.inputs.append(helper.make_tensor_value_info(name, onnx_type(dtype), dims))
        for axis, size in enumerate(dims if symbols else ()):
            if isinstance(size, str) and size.isidentifier():
                self.top.symbols.setdefault(size, (name, axis))
        return Value(name, tuple(shape), tuple(shape), np.dtype(dtype))

    def named(self, value: Value) -> str:
        """The name that a node takes a value by; a constant becomes an initializer."""
        if value.constant is None:
            return value.name
        array = np.ascontiguousarray(value.constant).reshape(value.constant.shape)
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= 4096 else id(value.constant)
        known = self.top._constants
        if key not in known:
            known[key] = self.fresh(value.origin[0] if value.origin else "constant")
            self.top.initializers[known[key]] = numpy_helper.from_array(array, known[key])
            self.top._held.append(value.constant)  # so that its id stays its own
        return known[key]

    def node(
        self, op: str, inputs: Sequence[Value], shape: Dims, dtype: DTypeLike, *, wanted: Dims | None = None,
        origin: tuple[Any, ...] = (), **attributes: Attribute,
    ) -> Value:  # fmt: skip
        """A node with one output."""
        name = self.fresh(op.lower())
        self.nodes.append(helper.make_node(op, [self.named(value) for value in inputs], [name], **attributes))  # type: ignore[arg-type]
        shape = tuple(shape)
        return Value(name, shape, shape if wanted is None else tuple(wanted), np.dtype(dtype), None, origin)

    # --------------------------------------------------------------------------------------------------------- shapes

    def full(self, value: Value) -> Value:
        """The value with all the elements that jax says it has."""
        if value.shape == value.wanted:
            return value
        if value.constant is not None and all(isinstance(size, int) for size in value.wanted):
            return self.constant(np.broadcast_to(value.constant, value.wanted))
        return self.node("Expand", [value, self.sizes(value.wanted)], value.wanted, value.dtype)

    def ranked(self, value: Value) -> Value:
        """The value with as many dimensions as jax says it has; some may still be 1."""
        missing = len(value.wanted) - len(value.shape)
        return value if not missing else self.unsqueezed(value, tuple(range(missing)))

    def unsqueezed(self, value: Value, axes: Sequence[int]) -> Value:
        if not axes:
            return value
        shape = list(value.shape)
        for axis in sorted(axes):
            shape.insert(axis, 1)
        if value.constant is not None:
            return replace(value, constant=value.constant.reshape(shape), shape=tuple(shape))
        return replace(self.node("Unsqueeze", [value, self.ints(axes)], tuple(shape), value.dtype), wanted=value.wanted)

    def sizes(self, shape: Dims) -> Value:
        """A shape as a tensor, int64 [rank]."""
        if all(isinstance(size, int) for size in shape):
            return self.ints(shape)
        parts = [self.ints([size]) if isinstance(size, int) else self.size(size) for size in shape]
        return self.node("Concat", parts, (len(shape),), np.int64, axis=0)

    def size(self, dimension: Dim) -> Value:
        """A dimension as a tensor, int64 [1]."""
        if isinstance(dimension, int):
            return self.ints([dimension])
        text = str(dimension)
        if text not in self._sizes:
            self._sizes[text] = self._computed(ast.parse(text.replace("^", "**"), mode="eval").body)
        return self._sizes[text]

    def _computed(self, tree: ast.expr) -> Value:
        """What an expression of dimensions comes to."""
        if isinstance(tree, ast.Constant):
            return self.ints([tree.value])  # type: ignore[list-item]
        if isinstance(tree, ast.Name):
            name, axis = self.top.symbols[tree.id]
            given = Value(name, (), (), np.dtype(np.int64))
            return self.node("Shape", [given], (1,), np.int64, start=axis, end=axis + 1)
        if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
            return self.node("Neg", [self._computed(tree.operand)], (1,), np.int64)
        if isinstance(tree, ast.BinOp) and type(tree.op) in _ARITHMETIC:
            sides = [self._computed(tree.left), self._computed(tree.right)]
            return self.node(_ARITHMETIC[type(tree.op)], sides, (1,), np.int64)
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id in _FUNCTIONS:
            sides = [self._computed(argument) for argument in tree.args]  # of sizes, which are never negative
            return self.node(_FUNCTIONS[tree.func.id], sides, (1,), np.int64)
        raise Unsupported(f"the dimension {ast.unparse(tree)}")

    # --------------------------------------------------------------------------------------------------------- result

    def proto(self, name: str, outputs: Sequence[tuple[str, Value]]) -> onnx.GraphProto:
        """The graph with these outputs, without nodes and constants that nothing needs."""
        declared = []
        for called, value in outputs:
            self.nodes.append(helper.make_node("Identity", [self.named(self.full(value))], [called]))
            dims = [size if isinstance(size, int) else str(size) for size in value.wanted]
            declared.append(helper.make_tensor_value_info(called, onnx_type(value.dtype), dims))
        needed, kept = {called for called, _ in outputs}, []
        for node in reversed(self.nodes):
            if needed & set(node.output):
                kept.append(node)
                needed |= set(node.input) | names_in_subgraphs(node)
        initializers = [] if self.outer else [t for n, t in self.initializers.items() if n in needed]
        return helper.make_graph(kept[::-1], name, self.inputs, declared, initializer=initializers)


_ARITHMETIC: dict[type[ast.operator], str] = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul", ast.Pow: "Pow"}
_FUNCTIONS = {"floordiv": "Div", "mod": "Mod", "max": "Max", "min": "Min"}


def onnx_type(dtype: DTypeLike) -> int:
    name = np.dtype(dtype).name
    if name not in _TYPES:
        raise Unsupported(f"numbers of type {name}")
    return _TYPES[name]


def names_in_subgraphs(node: onnx.NodeProto) -> set[str]:
    """What the bodies of a node take from the graph around them."""
    graphs = [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]
    return {name for graph in graphs for inner in graph.node for name in {*inner.input, *names_in_subgraphs(inner)}}
