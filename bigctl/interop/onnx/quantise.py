"""An ONNX model with its weights as small integers, for onnxruntime; none is left out unsaid.

Matrix products become integer products with activations rounded as they come (eight bits; by onnxruntime's own
quantiser), or `MatMulNBits` (four bits in groups of 32). Tables that are looked up become integers with a scale a row,
or a group, and of short rows a scale a column: onnxruntime's quantiser would give a whole table one scale. Both are
operators of onnxruntime.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from bigctl.errors import RunError
from bigctl.interop import rounding

PRODUCT, LOOKUP = "MatMul", "Gather"
"""Operators whose weights become integers."""
LEAST_GAIN = 0.9
"""What must be left of the bytes of all weights at most, for it to be worth a file."""
SHORT = 8
"""Up to this width rows of a table share the scales of their columns: one of their own would take half their room and
more (of n-grams, as wide as there are classes)."""
OURS = "com.microsoft"
"""The domain of onnxruntime's own operators."""
_WEIGHT_INPUT = {PRODUCT: 1, LOOKUP: 0}


@dataclass(frozen=True)
class Weights:
    """A tensor of two dimensions or more that the model holds: what takes it, its name, and the room it takes.

    Attributes:
        users: operators that take it, and as which of their inputs.
    """

    name: str
    users: tuple[tuple[str, int], ...]
    shape: tuple[int, ...]
    bytes: int

    @property
    def quantisable(self) -> bool:
        return len(self.shape) == 2 and all(_WEIGHT_INPUT.get(op) == place for op, place in self.users)


@dataclass(frozen=True)
class Quantised:
    """What was done.

    Attributes:
        bits: of a weight.
        layers: products and look-ups whose weights became integers, by operator.
        before, after: bytes of the weights of those.
        kept: bytes of weights that stay float32, by operator; vectors are not counted.
    """

    bits: int
    layers: dict[str, int]
    before: int
    after: int
    kept: dict[str, int]

    def __str__(self) -> str:
        counted = ", ".join(f"{count} {name}" for name, count in self.layers.items())
        kept = ", ".join(f"{name} {size:,} bytes" for name, size in self.kept.items())
        told = f"; left as float32: {kept}" if kept else ""
        return f"int{self.bits}: {counted}, {self.before:,} -> {self.after:,} bytes{told}"


def quantised(model: ModelProto, bits: int, where: str) -> tuple[ModelProto, Quantised]:
    """The model with the weights of matrix products and of tables as integers of eight or four bits.

    Raises:
        RunError: if it has no such weights, or hardly any beside others, or one of them has stayed as it was.
    """
    before = [found for found in weights(model) if found.quantisable]
    if not before:
        hint = "convolutions and recurrences alone gain nothing from it: keep float32"
        raise RunError(f"has no matrix products or tables to write as int{bits}", where=where, hint=hint)
    counted = {op: sum(each == op for found in before for each, _ in found.users) for op in (PRODUCT, LOOKUP)}
    changed = ModelProto()
    changed.CopyFrom(model)
    _Rewriter(changed, bits, {found.name for found in before}).run()
    if bits == 8 and counted[PRODUCT]:
        changed = _integer_products(changed)
    left = {found.name: found for found in weights(changed)}
    found = _counted(changed, bits)
    unchanged = [each.name for each in before if each.name in left]
    if unchanged or found != counted:
        what = f"{', '.join(unchanged) or counted} did not become int{bits} ({found} of {counted})"
        raise RunError(what, where=where, hint="nothing was written; this is a mistake in bigctl: please report it")
    kept: dict[str, int] = {}
    known = {each.name for each in model.graph.initializer}
    for each in (found for found in left.values() if found.name in known):
        name = "/".join(sorted({op for op, _ in each.users}))
        kept[name] = kept.get(name, 0) + each.bytes
    after = sum(numpy_helper.to_array(each).nbytes for each in changed.graph.initializer if each.name not in known)
    saved = sum(each.bytes for each in before)
    if after + sum(kept.values()) > LEAST_GAIN * (saved + sum(kept.values())):
        told = ", ".join(f"{name} {size:,} bytes" for name, size in kept.items())
        what = f"int{bits} would hardly make it smaller: {saved:,} -> {after:,} bytes, and {told} stay float32"
        raise RunError(what, where=where, hint="keep float32")
    counts = {op: count for op, count in counted.items() if count}
    return changed, Quantised(bits, counts, saved, after, kept)


def _counted(model: ModelProto, bits: int) -> dict[str, int]:
    """How many products and look-ups with integer weights there are."""
    integers = {each.name for each in model.graph.initializer if each.data_type == TensorProto.INT8}
    found = {PRODUCT: 0, LOOKUP: 0}
    for node, _ in nodes(model.graph):
        found[PRODUCT] += node.op_type == ("MatMulInteger" if bits == 8 else "MatMulNBits")
        found[LOOKUP] += node.op_type == "GatherBlockQuantized"
        found[LOOKUP] += node.op_type == LOOKUP and node.input[0] in integers
    return found


def products(model: ModelProto) -> dict[str, np.ndarray]:
    """What the integers of each product in eight bits stand for, float32 [inputs, outputs], by the path of the weights
    that they were made of."""
    held = {each.name: each for each in model.graph.initializer}
    found = {}
    for name in held:
        path, known, _ = name.partition("_quantized")
        if known and f"{path}_scale" in held:
            scale = numpy_helper.to_array(held[f"{path}_scale"])
            found[path.rpartition("_")[0]] = numpy_helper.to_array(held[name]).astype(np.float32) * scale
    return found


def nodes(graph: GraphProto) -> Iterator[tuple[NodeProto, GraphProto]]:
    """All nodes and the graph that each is in, those inside of others too."""
    for node in graph.node:
        yield node, graph
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from nodes(attribute.g)


def weights(model: ModelProto) -> list[Weights]:
    """The float32 tensors of two dimensions or more, in order."""
    users: dict[str, list[tuple[str, int]]] = {}
    for node, _ in nodes(model.graph):
        for place, name in enumerate(node.input):
            users.setdefault(name, []).append((node.op_type, place))
    return [
        Weights(each.name, tuple(users.get(each.name, ())), tuple(each.dims), 4 * int(np.prod(each.dims)))
        for each in model.graph.initializer
        if each.data_type == TensorProto.FLOAT and len(each.dims) > 1 and np.prod(each.dims) > 1
    ]


def _integer_products(model: ModelProto) -> ModelProto:
    """Matrix products with weights of eight bits a column, by onnxruntime's quantiser.

    Seven of the eight bits are used: with all of them processors without VNNI saturate, and compute something else.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it recommends a preparation that is for graphs of other makes
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            quantize_dynamic(
                model, file, op_types_to_quantize=[PRODUCT], per_channel=True, reduce_range=True,
                weight_type=QuantType.QInt8, extra_options={"EnableSubgraph": True, "MatMulConstBOnly": True},
            )  # fmt: skip
            return onnx.load(file)
    finally:
        logger.setLevel(level)


class _Rewriter:
    """Replaces nodes that take certain weights; of eight bits, look-ups alone."""

    def __init__(self, model: ModelProto, bits: int, names: set[str]):
        self.model, self.bits = model, bits
        self.held = {each.name: each for each in model.graph.initializer if each.name in names}
        self.added: dict[str, TensorProto] = {}
        self.done: set[str] = set()

    def run(self) -> None:
        graph = self.model.graph
        self._graph(graph)
        kept = [each for each in graph.initializer if each.name not in self.done]
        del graph.initializer[:]
        graph.initializer.extend([*kept, *self.added.values()])
        if any(node.domain == OURS for node, _ in nodes(graph)):
            self.model.opset_import.append(helper.make_opsetid(OURS, 1))

    def _graph(self, graph: GraphProto) -> None:
        found: list[NodeProto] = []
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.GRAPH:
                    self._graph(attribute.g)
            name = node.input[_WEIGHT_INPUT[node.op_type]] if node.op_type in _WEIGHT_INPUT else ""
            if name not in self.held:
                found.append(node)
            elif node.op_type == LOOKUP:
                found += self._lookup(node, name)
            elif self.bits == 4:
                found.append(self._product(node, name))
            else:
                found.append(node)
        del graph.node[:]
        graph.node.extend(found)

    def _values(self, name: str) -> np.ndarray:
        self.done.add(name)
        return numpy_helper.to_array(self.held[name])

    def _add(self, name: str, values: np.ndarray) -> str:
        self.added.setdefault(name, numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def _product(self, node: NodeProto, name: str) -> NodeProto:
        values = self._values(name)
        inner, outer = values.shape
        found, scale = rounding.to_int4(values.T)
        given = [node.input[0], self._add(f"{name}_int4", rounding.packed(found))]
        given.append(self._add(f"{name}_scale", scale.reshape(-1)))
        return helper.make_node(
            "MatMulNBits", given, node.output, name=node.name, domain=OURS, K=inner, N=outer, bits=4,
            block_size=rounding.GROUP, accuracy_level=4,
        )  # fmt: skip

    def _lookup(self, node: NodeProto, name: str) -> list[NodeProto]:
        values, (output,) = self._values(name), node.output
        group = next((size for size in (rounding.GROUP, 16) if values.shape[1] % size == 0), None)
        if self.bits == 4 and group is not None:
            found, scale = rounding.to_int4(values, group)
            table = self._add(f"{name}_table4", rounding.packed(found).reshape(len(values), -1))
            given = [table, node.input[1], self._add(f"{name}_scales", scale)]
            return [
                helper.make_node(
                    "GatherBlockQuantized", given, [output], domain=OURS, bits=4, block_size=group, gather_axis=0,
                    quantize_axis=1,
                )
            ]  # fmt: skip
        short = values.shape[1] <= SHORT
        whole, scale = rounding.to_int8(values.T if short else values)
        table = self._add(f"{name}_table8", whole.T if short else whole)
        scales = self._add(f"{name}_scales", scale.reshape(-1) if short else scale)
        small, plain, factor = (f"{output}_looked_up_{part}" for part in ("int8", "float", "scale"))
        own = [] if short else [helper.make_node(LOOKUP, [scales, node.input[1]], [factor], axis=0)]
        return [
            helper.make_node(LOOKUP, [table, node.input[1]], [small], axis=0),
            helper.make_node("Cast", [small], [plain], to=TensorProto.FLOAT),
            *own,
            helper.make_node("Mul", [plain, scales if short else factor], [output]),
        ]
