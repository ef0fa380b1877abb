"""The parts of a network that can be taken out of it, where their weights are, and how its configuration says so.

A unit is an attention head (with shared keys and values: the heads that share them), a column between two dense layers,
or a channel between two convolutions. All layers of a kind lose equally many, so that the network stays one that its
configuration can name.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bigctl.config import schema
from bigctl.errors import RunError

if TYPE_CHECKING:
    import jax

Arrays = Mapping[str, np.ndarray]
HEADS, COLUMNS, CHANNELS = "heads", "columns", "channels"
_LAYER = re.compile(r"(?P<above>(?:encoder/)?layers/)(?P<number>\d+)(?P<below>/.+)")
_NORM = ("scale", "bias", "mean", "var")


@dataclass(frozen=True)
class Slice:
    """Where units lie in an array: along an axis, each of them next to each other, the whole possibly repeated."""

    name: str
    axis: int


@dataclass(frozen=True)
class Units:
    """Units of one place of a network.

    Attributes:
        kind: "heads", "columns" or "channels".
        place: a name for people, the path of its layer.
        count: how many there are.
        repeats: how often they follow each other in an array that reads them: once for each place of a flattened map.
        written: slices of the arrays that make them.
        read: slices of those that they are multiplied with next; nothing of a unit is left once these are zero.
    """

    kind: str
    place: str
    count: int
    written: tuple[Slice, ...]
    read: tuple[Slice, ...]
    repeats: int = 1

    def keep(self, values: Arrays, kept: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays with units `kept`, int [n], alone."""
        found = dict(values)
        for part in (*self.written, *self.read):
            array, repeats = found[part.name], self.repeats if part in self.read else 1
            split = self._split(part, array.shape, repeats)
            taken = np.take(array.reshape(split), kept, axis=part.axis + 1)
            shape = (*array.shape[: part.axis], -1, *array.shape[part.axis + 1 :])
            found[part.name] = np.ascontiguousarray(taken.reshape(shape))
        return found

    def gated(self, values: Mapping[str, Any], gates: np.ndarray | jax.Array) -> dict[str, Any]:
        """The arrays with what reads each unit multiplied by its gate, [count]."""
        found = dict(values)
        for part in self.read:
            array = found[part.name]
            split = self._split(part, array.shape, self.repeats)
            wide = [1] * len(split)
            wide[part.axis + 1] = self.count
            found[part.name] = (array.reshape(split) * gates.reshape(wide)).reshape(array.shape)
        return found

    def size(self, values: Arrays) -> np.ndarray:
        """The root of the sum of squares of all weights of each unit, float64 [count]."""
        total = np.zeros(self.count)
        for part in (*self.written, *self.read):
            array, repeats = values[part.name], self.repeats if part in self.read else 1
            split = self._split(part, array.shape, repeats)
            squares = np.square(array.reshape(split), dtype=np.float64)
            total += squares.sum(tuple(axis for axis in range(len(split)) if axis != part.axis + 1))
        return np.sqrt(total)

    def _split(self, part: Slice, shape: Sequence[int], repeats: int) -> tuple[int, ...]:
        each = shape[part.axis] // (repeats * self.count)
        return (*shape[: part.axis], repeats, self.count, each, *shape[part.axis + 1 :])


def of_model(model: schema.Model, values: Arrays, kind: str, where: str) -> list[Units]:
    """The units of a kind that a network has. Raises RunError if it has none that its configuration can do without."""
    found: list[Units] = []
    if isinstance(model, schema.Bert | schema.Vit | schema.Decoder):
        finders = {HEADS: _heads, COLUMNS: _feed_forward}
        found = [*finders[kind](model, values)] if kind in finders else []
    elif isinstance(model, schema.Mlp | schema.Cnn):
        found = [each for each in _stacked(model, values) if each.kind == kind]
    elif isinstance(model, schema.Resnet) and kind == CHANNELS:
        found = [*_blocks(model, values)]
    if not found:
        what = f"model={model.kind} has no {kind} that can go"
        raise RunError(what, where=where, hint=f"of this model there are {_known(model)}")
    return found


def _known(model: schema.Model) -> str:
    if isinstance(model, schema.Bert | schema.Vit | schema.Decoder):
        return "heads and layers" if getattr(model, "experts", None) else "heads, columns and layers"
    if isinstance(model, schema.Cnn):
        return "channels and columns"
    known = {"mlp": "columns", "resnet": "channels"}
    return known.get(model.kind, "none; those of bert, gpt, llama, vit, mlp, cnn and resnet can go")


def _dense(values: Arrays, path: str, *, output: bool) -> tuple[Slice, ...]:
    """Of a dense layer the axis of its outputs, or of its inputs; what a low rank adds to it, too."""
    axes = {"kernel": 1, "bias": 0, "lora_b": 1} if output else {"kernel": 0, "lora_a": 0}
    return tuple(Slice(f"{path}/{name}", axis) for name, axis in axes.items() if f"{path}/{name}" in values)


def _layers(values: Arrays) -> list[str]:
    """Paths of the layers of a transformer, with a slash at the end."""
    found = {(int(match["number"]), match["above"]) for name in values if (match := _LAYER.fullmatch(name))}
    return [f"{above}{number}/" for number, above in sorted(found)]


def _attention(model: schema.Bert | schema.Vit | schema.Decoder) -> tuple[int, int, int]:
    """Heads, those of keys and values, and features of each."""
    whole = model.with_defaults()
    heads, width = whole.heads or 1, whole.width or 1
    groups = whole.kv_heads if isinstance(whole, schema.Decoder) else None
    return heads, groups or heads, whole.head_dim or width // heads


def _heads(model: schema.Bert | schema.Vit | schema.Decoder, values: Arrays) -> Iterator[Units]:
    count = _attention(model)[1]
    for layer in _layers(values):
        path = f"{layer}attention"
        written = sum((_dense(values, f"{path}/{name}", output=True) for name in ("query", "key", "value")), ())
        yield Units(HEADS, path, count, written, _dense(values, f"{path}/output", output=False))


def _feed_forward(model: schema.Bert | schema.Vit | schema.Decoder, values: Arrays) -> Iterator[Units]:
    for layer in _layers(values):
        if values.get(f"{layer}up/kernel", np.zeros(0)).ndim == 2:  # and not of several experts
            written = sum((_dense(values, f"{layer}{name}", output=True) for name in ("up", "gate")), ())
            count = values[f"{layer}up/kernel"].shape[1]
            yield Units(COLUMNS, f"{layer}up", count, written, _dense(values, f"{layer}down", output=False))


def _stacked(model: schema.Mlp | schema.Cnn, values: Arrays) -> Iterator[Units]:
    """Convolutions, each read by the next or, as a flattened map, by the first dense layer; then dense layers."""
    channels = list(model.channels) if isinstance(model, schema.Cnn) else []
    dense = [*(f"layers/{i}" for i in range(len(model.hidden))), "head"]
    for i, count in enumerate(channels):
        written = (Slice(f"convs/{i}/kernel", 3), Slice(f"convs/{i}/bias", 0), *_normed(values, f"convs/{i}/norm/norm"))
        if i + 1 < len(channels):
            yield Units(CHANNELS, f"convs/{i}", count, written, (Slice(f"convs/{i + 1}/kernel", 2),))
        else:
            read = _dense(values, dense[0], output=False)
            yield Units(CHANNELS, f"convs/{i}", count, written, read, values[read[0].name].shape[0] // count)
    for i, count in enumerate(model.hidden):
        written = (*_dense(values, dense[i], output=True), *_normed(values, f"norms/{i}/norm"))
        yield Units(COLUMNS, dense[i], count, written, _dense(values, dense[i + 1], output=False))


def _blocks(model: schema.Resnet, values: Arrays) -> Iterator[Units]:
    """What lies between the convolutions of each residual block; what is added up stays as wide as it is."""
    for block in range(sum(model.blocks)):
        for i in range(2 if model.bottleneck else 1):
            path, after = f"blocks/{block}/convs/{i}", f"blocks/{block}/convs/{i + 1}/kernel"
            written = (Slice(f"{path}/kernel", 3), *_normed(values, f"{path}/norm"))
            yield Units(CHANNELS, path, values[f"{path}/kernel"].shape[3], written, (Slice(after, 2),))


def _normed(values: Arrays, path: str) -> tuple[Slice, ...]:
    return tuple(Slice(f"{path}/{name}", 0) for name in _NORM if f"{path}/{name}" in values)


# ------------------------------------------------------------------------------------------------- the configuration


def resized(model: schema.Model, units: Sequence[Units], left: Mapping[str, int]) -> schema.Model:
    """The model with so many units left at each place."""
    changed: dict[str, Any] = {}
    by_kind = {kind: [left[each.place] for each in units if each.kind == kind] for kind in (HEADS, COLUMNS, CHANNELS)}
    if by_kind[HEADS] and isinstance(model, schema.Bert | schema.Vit | schema.Decoder):
        heads, groups, depth = _attention(model)
        kept = by_kind[HEADS][0]
        changed = {"heads": kept * heads // groups, "head_dim": depth}
        if isinstance(model, schema.Decoder) and model.kv_heads is not None:
            changed["kv_heads"] = kept
    if by_kind[COLUMNS]:
        lists = isinstance(model, schema.Mlp | schema.Cnn)
        changed |= {"hidden": by_kind[COLUMNS]} if lists else {"intermediate": by_kind[COLUMNS][0]}
    if by_kind[CHANNELS] and isinstance(model, schema.Resnet):
        firsts = [sum(model.blocks[:stage]) for stage in range(len(model.blocks))]
        changed["inner"] = [left[f"blocks/{first}/convs/0"] for first in firsts]
    elif by_kind[CHANNELS]:
        changed["channels"] = by_kind[CHANNELS]
    return dataclasses.replace(model, **changed)


def without_layer(values: Arrays, number: int) -> dict[str, np.ndarray]:
    """The weights with one layer of a transformer gone, those above it a number lower."""
    found = {}
    for name, array in values.items():
        match = _LAYER.fullmatch(name)
        if match is None:
            found[name] = array
        elif int(match["number"]) != number:
            below = int(match["number"]) - (int(match["number"]) > number)
            found[f"{match['above']}{below}{match['below']}"] = array
    return found


def layer_count(model: schema.Model, where: str) -> int:
    """Layers that a transformer has. Raises RunError for another model."""
    if not isinstance(model, schema.Bert | schema.Vit | schema.Decoder) or model.layers is None:
        hint = f"of this model there are {_known(model)}"
        raise RunError(f"model={model.kind} has no layers that can go", where=where, hint=hint)
    return model.layers
