"""How much a network minds that one of its layers alone is compressed: the loss on rows of the validation split."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigctl.data.dataset import Dataset
from bigctl.inference.compression import calibration
from bigctl.inference.compression.parts import Units
from bigctl.inference.compression.sized import Sized

ROWS, WINDOWS = 512, 32
"""Rows of the validation split, or windows of a text, about so many."""
_BLOCK = re.compile(r"(?:.*?/)??\w+/\d+(?=/)")
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Sensitivity:
    """Mean losses on the same rows.

    Attributes:
        rows: how many.
        before: of the network as it was.
        alone: with one layer alone compressed, by its path, in the order of the network.
        unit: what is counted: "rows", or "windows" of a text.
    """

    rows: int
    before: float
    alone: dict[str, float]
    unit: str = "rows"

    def to_json(self) -> dict[str, Any]:
        return {"rows": self.rows, "unit": self.unit, "loss": self.before, "layers": self.alone}

    @property
    def lines(self) -> list[str]:
        """For people."""
        wide = max(map(len, self.alone), default=0)
        found = [f"loss {self.before:.4f} on {self.rows:,} validation {self.unit}; with one layer alone compressed:"]
        return found + [f"  {name:{wide}}  {loss:.4f} ({loss - self.before:+.4f})" for name, loss in self.alone.items()]


def of_weights(sized: Sized, values: Arrays, compressed: Arrays, dataset: Dataset) -> Sensitivity:
    """Of weights that became others: of each layer all of them at once."""
    layers: dict[str, list[str]] = {}
    for name in values:
        if name in compressed and not np.array_equal(values[name], compressed[name]):
            layers.setdefault(layer_of(name), []).append(name)

    def altered(layer: str) -> Arrays:
        return {**values, **{name: compressed[name] for name in layers[layer]}}

    return _measured(sized, values, layers, altered, dataset)


def of_units(
    sized: Sized, values: Arrays, units: Sequence[Units], removed: Mapping[str, Sequence[int]], dataset: Dataset
) -> Sensitivity:
    """Of parts that went: what reads them is zero, so that nothing of them is left."""
    layers: dict[str, list[Units]] = {}
    for each in units:
        layers.setdefault(layer_of(f"{each.place}/kernel"), []).append(each)

    def altered(layer: str) -> Arrays:
        found: Arrays = values
        for each in layers[layer]:
            gates = np.ones(each.count, np.float32)
            gates[list(removed[each.place])] = 0
            found = each.gated(found, gates)
        return found

    return _measured(sized, values, layers, altered, dataset)


def layer_of(name: str) -> str:
    """The layer of a network that an array belongs to: up to the first number in its path, else all but its name."""
    match = _BLOCK.match(name)
    return match[0] if match else name.rpartition("/")[0] or name


def _measured(
    sized: Sized, values: Arrays, layers: Mapping[str, Any], altered: Callable[[str], Arrays], dataset: Dataset
) -> Sensitivity:
    stream = dataset.features.kind == "stream"
    rows, unit = (WINDOWS, "windows") if stream else (ROWS, "rows")
    batches = list(calibration.batches(dataset, rows, split="validation"))
    count = sum(len(next(iter(batch.values()))) for batch in batches)
    names = sorted(layers, key=_place)
    alone = {name: sized.mean_loss(altered(name), batches) for name in names}
    return Sensitivity(count, sized.mean_loss(values, batches), alone, unit)


def _place(name: str) -> tuple[int, list[tuple[bool, int, str]]]:
    """The order of a network: what stands before its layers, these by their numbers, what comes after."""
    where = 2 if name.startswith(("head", "pooler", "final", "transform")) else 1 if re.search(r"/\d+$", name) else 0
    return where, [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split("/")]
