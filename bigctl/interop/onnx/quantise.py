"""An ONNX model with its weights as small integers, for onnxruntime; none is left out unsaid.

Matrix products become integer products with activations rounded as they come (eight bits, `MatMulInteger`), or
`MatMulNBits` of onnxruntime (four bits in groups of 32). Tables that are looked up become integers with a scale a row,
or a group, and of short rows a scale a column.

What an integer product is given has a range for each of its rows, a token of a text, as `bigctl.models.rounded` trains.
The quantiser of onnxruntime takes one for all rows of a batch: for `bert_cls` three times the error of the logits, and
an answer that depends on who else is in the batch. Inside of loops we do so too: what a recurrence goes on with has
bounds, and with a range for each row every step would take half as long again.

Weights of the operator LSTM are kept as integers and multiplied as float32: the runtime makes them that when it loads
the file, which costs no time after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from bigctl.errors import RunError
from bigctl.interop import rounding
from bigctl.interop.onnx.recurrent import kernel_of

PRODUCT, LOOKUP, LAYER = "MatMul", "Gather", "LSTM"
"""Operators whose weights become integers."""
LEVELS = 64
"""The largest integer of a weight that multiplies: seven of the eight bits. With all of them processors without VNNI
saturate, and compute something else."""
LEAST_GAIN = 0.9
"""What must be left of the bytes of all weights at most, for it to be worth a file."""
SHORT = 8
"""Up to this width rows of a table share the scales of their columns: one of their own would take half their room and
more (of n-grams, as wide as there are classes)."""
OURS = "com.microsoft"
"""The domain of onnxruntime's own operators."""
_UNPACKED = "_unpacked"
"""What the name of a matrix that is made of integers when a file is loaded ends in."""
_WEIGHT_INPUTS = {PRODUCT: (1,), LOOKUP: (0,), LAYER: (1, 2)}


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
        known = all(place in _WEIGHT_INPUTS.get(op, ()) for op, place in self.users)
        layers = {op == LAYER for op, _ in self.users}
        return known and (layers == {True} if len(self.shape) == 3 else layers == {False} and len(self.shape) == 2)


@dataclass(frozen=True)
class Quantised:
    """What was done.

    Attributes:
        bits: of a weight.
        layers: products, look-ups and matrices of layers whose weights became integers, by operator.
        before, after: bytes of the weights of those.
        kept: bytes of weights that stay float32, by operator; vectors are not counted.
    """

    bits: int
    layers: dict[str, int]
    before: int
    after: int
    kept: dict[str, int]

    def __str__(self) -> str:
        told = {LAYER: f"matrices of {LAYER}"}
        counted = ", ".join(f"{count} {told.get(name, name)}" for name, count in self.layers.items())
        kept = ", ".join(f"{name} {size:,} bytes" for name, size in self.kept.items())
        beside = f"; left as float32: {kept}" if kept else ""
        return f"int{self.bits}: {counted}, {self.before:,} -> {self.after:,} bytes{beside}"


def quantised(model: ModelProto, bits: int, where: str) -> tuple[ModelProto, Quantised]:
    """The model with the weights of matrix products, layers of LSTMs and tables as integers of eight or four bits.

    Raises:
        RunError: if it has no such weights, or hardly any beside others, or one of them has stayed as it was.
    """
    before = [found for found in weights(model) if found.quantisable]
    if not before:
        what = f"has no matrix products or tables to write as int{bits}"
        raise RunError(what, where=where, hint=_otherwise({node.op_type: 1 for node, _ in nodes(model.graph)}, bits))
    counted = {op: sum(each == op for found in before for each, _ in found.users) for op in _WEIGHT_INPUTS}
    changed = ModelProto()
    changed.CopyFrom(model)
    _Rewriter(changed, bits, {found.name for found in before}).run()
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
    made = [each for each in changed.graph.initializer if each.name not in known and np.prod(each.dims) > 1]
    after = sum(numpy_helper.to_array(each).nbytes for each in made)
    saved = sum(each.bytes for each in before)
    if after + sum(kept.values()) > LEAST_GAIN * (saved + sum(kept.values())):
        told = ", ".join(f"{name} {size:,} bytes" for name, size in kept.items())
        what = f"int{bits} would hardly make it smaller: {saved:,} -> {after:,} bytes, and {told} stay float32"
        raise RunError(what, where=where, hint=_otherwise(kept, bits))
    counts = {op: count for op, count in counted.items() if count}
    return changed, Quantised(bits, counts, saved, after, kept)


def _otherwise(kept: Mapping[str, int], bits: int) -> str:
    """What to do with a model that is hardly anything but what stays float32, by its operators."""
    if bits == 8 and "Conv" in kept:
        return "`bigctl compress RUN method=int8 ranges=percentile` rounds convolutions, too; or keep float32"
    return "keep float32"


def _counted(model: ModelProto, bits: int) -> dict[str, int]:
    """How many products, look-ups and matrices of layers there are whose weights are integers."""
    integers = {each.name for each in model.graph.initializer if each.data_type == TensorProto.INT8}
    unpacked = {name for node, _ in nodes(model.graph) for name in node.output if name.endswith(_UNPACKED)}
    found = dict.fromkeys(_WEIGHT_INPUTS, 0)
    for node, _ in nodes(model.graph):
        found[LAYER] += node.op_type == LAYER and sum(node.input[place] in unpacked for place in _WEIGHT_INPUTS[LAYER])
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
        if name.endswith("_int8"):
            path = name.removesuffix("_int8")
            values = numpy_helper.to_array(held[name]) * numpy_helper.to_array(held[f"{path}_scale"])
            found[path.rpartition("_")[0]] = kernel_of(values) if values.ndim == 3 else values
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
        if each.data_type == TensorProto.FLOAT
        and len(each.dims) > 1
        and np.prod(each.dims) > 1
        and set(users.get(each.name, ())) != {(LAYER, 3)}  # its biases
    ]


@dataclass(frozen=True)
class _Rounded:
    """What a product is given, as integers: names of these, of their scale, of the integer that stands for 0, and of
    those of each row besides, float32, where each has one of its own."""

    integers: str
    scale: str
    zero: str
    zeros: str = ""


class _Chain:
    """Nodes of one output each, in order; gives the name of the output of what it is called with."""

    def __init__(self, stem: str):
        self.stem = stem
        self.nodes: list[NodeProto] = []

    def __call__(self, op: str, *inputs: str, **attributes: int | str) -> str:
        node = helper.make_node(op, inputs, [f"{self.stem}_{len(self.nodes)}"])
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
        self.nodes.append(node)
        return str(self.nodes[-1].output[0])


class _Rewriter:
    """Replaces nodes that take certain weights."""

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

    def _graph(self, graph: GraphProto, *, inside: bool = False) -> None:
        found: list[NodeProto] = []
        rounded: dict[str, _Rounded] = {}  # several products can be given the same
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.GRAPH:
                    self._graph(attribute.g, inside=True)
            name = next((node.input[place] for place in _WEIGHT_INPUTS.get(node.op_type, ())), "")
            if node.op_type == LAYER:
                found += self._layer(node)
            elif name not in self.held:
                found.append(node)
            elif node.op_type == LOOKUP:
                found += self._lookup(node, name)
            elif self.bits == 4:
                found.append(self._product(node, name))
            else:
                given = node.input[0]
                if given not in rounded:
                    rounded[given], made = (self._whole if inside else self._rows)(given, f"{node.output[0]}_given")
                    found += made
                found += self._integer_product(node, name, rounded[given])
        del graph.node[:]
        graph.node.extend(found)

    def _values(self, name: str) -> np.ndarray:
        self.done.add(name)
        return numpy_helper.to_array(self.held[name])

    def _add(self, name: str, values: np.ndarray | np.generic) -> str:
        self.added.setdefault(name, numpy_helper.from_array(np.asarray(values, order="C"), name))
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

    def _integer_product(self, node: NodeProto, name: str, given: _Rounded) -> list[NodeProto]:
        """`scale * (integers @ integers - zero * sums) * scale_of_column`; the zero of all rows is in the product."""
        made = _Chain(f"{node.output[0]}_part")
        whole, scale = rounding.to_int8(self._values(name).T, LEVELS)
        weights, scales = self._add(f"{name}_int8", whole.T), self._add(f"{name}_scale", scale.reshape(-1))
        product = made("Cast", made("MatMulInteger", given.integers, weights, given.zero), to=TensorProto.FLOAT)
        if given.zeros:
            sums = self._add(f"{name}_sums", whole.sum(1, dtype=np.float32))
            moved = made("Sub", product, made("Mul", given.zeros, sums))
            made("Mul", made("Mul", moved, given.scale), scales)
        else:
            made("Mul", product, made("Mul", given.scale, scales))  # onnxruntime knows this form, and fuses it
        made.nodes[-1].output[0], made.nodes[-1].name = node.output[0], node.name
        return made.nodes

    def _whole(self, given: str, stem: str) -> tuple[_Rounded, list[NodeProto]]:
        """All of it as 256 values."""
        names = [f"{stem}_{part}" for part in ("integers", "scale", "zero")]
        return _Rounded(*names), [helper.make_node("DynamicQuantizeLinear", [given], names)]

    def _rows(self, given: str, stem: str) -> tuple[_Rounded, list[NodeProto]]:
        """Each row as 256 values from its least to its largest element, 0 among them: `rounded.rounded_inputs`."""
        made = _Chain(stem)
        last = self._add("rows_axis", np.array([-1], np.int64))
        some, nothing = self._add("rows_least", np.float32(1e-30)), self._add("rows_nothing", np.float32(0))
        highest = made("Max", made("ReduceMax", given, last, keepdims=1), some)  # a row of zeros has a scale, too
        lowest = made("Min", made("ReduceMin", given, last, keepdims=1), nothing)
        scale = made("Div", made("Sub", highest, lowest), self._add("rows_levels", np.float32(255)))
        zero = made("Round", made("Neg", made("Div", lowest, scale)))
        places = made("Add", made("Div", given, scale), zero)
        none, one = self._add("rows_zero", np.uint8(0)), self._add("rows_one", np.float32(1))
        return _Rounded(made("QuantizeLinear", places, one, none), scale, none, zero), made.nodes

    def _layer(self, node: NodeProto) -> list[NodeProto]:
        """The same, its matrices [1, 4 * hidden, inputs] made of integers: of constants alone, so while loading."""
        made: list[NodeProto] = []
        for place in _WEIGHT_INPUTS[LAYER]:
            name = node.input[place]
            if name not in self.held:
                continue
            if name in self.done:  # several layers may have the same
                node.input[place] = f"{name}{_UNPACKED}"
                continue
            unpack = _Chain(f"{name}_part")
            (self._halves if self.bits == 4 else self._bytes)(unpack, name)
            node.input[place] = unpack.nodes[-1].output[0] = f"{name}{_UNPACKED}"
            made += unpack.nodes
        return [*made, node]

    def _bytes(self, made: _Chain, name: str) -> None:
        """By as many levels as a product has, though none is made of them: those that `train.quantize` trains with."""
        whole, scale = rounding.to_int8(self._values(name)[0], LEVELS)
        plain = made("Cast", self._add(f"{name}_int8", whole[None]), to=TensorProto.FLOAT)
        made("Mul", plain, self._add(f"{name}_scale", scale[None]))

    def _halves(self, made: _Chain, name: str) -> None:
        (values,) = self._values(name)
        found, scale = rounding.to_int4(values)
        given = self._add(f"{name}_int4", rounding.packed(found))
        four, lower = self._add("halves_bits", np.uint8(4)), self._add("halves_lower", np.uint8(15))
        last = self._add("halves_last", np.array([-1], np.int64))
        pair = [made("BitwiseAnd", given, lower), made("BitShift", given, four, direction="RIGHT")]
        both = made("Concat", *(made("Unsqueeze", half, last) for half in pair), axis=-1)
        groups = made("Reshape", both, self._add(f"{name}_groups", np.array(found.shape, np.int64)))
        moved = made("Sub", made("Cast", groups, to=TensorProto.FLOAT), self._add("halves_middle", np.float32(8)))
        scaled = made("Mul", moved, self._add(f"{name}_scale", scale[..., None]))
        row = made("Reshape", scaled, self._add(f"{name}_rows", np.array([1, len(values), -1], np.int64)))
        start, end = self._add("halves_start", np.zeros(1, np.int64)), np.array(values.shape[1:], np.int64)
        made("Slice", row, start, self._add(f"{name}_end", end), last)

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
