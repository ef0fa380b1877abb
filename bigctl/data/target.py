"""What is to be predicted of each example. Splits, counts, previews and reports follow this description."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

CLASS, NUMBER, CLASSES, TOKEN_CLASS, NONE = "class", "number", "classes", "token_class", "none"
_COUNTED = 2**22
"""Labels that are counted at once."""

_DTYPES = {CLASS: np.int32, NUMBER: np.float32, CLASSES: np.uint8, TOKEN_CLASS: np.int32, NONE: np.int32}


@dataclass(frozen=True)
class Target:
    """The target of a data set.

    Attributes:
        kind: "class" (labels int32 [N]), "number" (float32 [N]), "classes" (several an example, or none: uint8
            [N, names], 1 where the example has the class), "token_class" (int32 [tokens], one a token of `inputs`, -1
            for none) or "none" (int32 [N], all 0).
        names: of the classes, in label order.
        mean, std: of a number in the training split.
        origin: what is subtracted from a number to store it, in float64, where float32 would be too coarse for it.
    """

    kind: str
    names: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0
    origin: float = 0.0

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of labels in prepared data."""
        return np.dtype(_DTYPES[self.kind])

    @property
    def label_shape(self) -> tuple[int, ...]:
        """Of the label of one example."""
        return (len(self.names),) if self.kind == CLASSES else ()

    def restored(self, values: np.ndarray) -> np.ndarray:
        """Stored numbers, or predicted ones, in the unit of the data: float64 where they have an origin."""
        return values.astype(np.float64) + self.origin if self.origin else values

    def counts(self, labels: np.ndarray) -> np.ndarray:
        """How many examples, or tokens, have each class, int64 [names]."""
        if self.kind == CLASSES:
            return labels.sum(0, dtype=np.int64)
        found = np.zeros(len(self.names), np.int64)
        for start in range(0, len(labels), _COUNTED):
            block = labels[start : start + _COUNTED]
            found += np.bincount(block[block >= 0], minlength=len(self.names))
        return found

    def strata(self, labels: np.ndarray) -> np.ndarray:
        """The group of each example, int [N]; splits made by rule hold the same share of each group.

        Of several classes it is the rarest that an example has: those that occur seldom are shared out evenly.
        """
        if self.kind == CLASS:
            return labels
        if self.kind != CLASSES:
            return np.zeros(len(labels), np.int64)
        rarity = np.where(labels > 0, self.counts(labels), len(labels) + 1)
        rarest: np.ndarray = np.where(labels.any(1), rarity.argmin(1), len(self.names))
        return rarest

    def rows(self, labels: np.ndarray, number: int) -> np.ndarray:
        """The examples that have a class, int [n]; all of them where there are no classes."""
        if not self.names:
            return np.arange(len(labels))
        return np.flatnonzero(labels[:, number] if self.kind == CLASSES else labels == number)

    def text(self, label: Any) -> str:
        """One label for people: the name of the class, all names, or the number."""
        if self.kind == CLASSES:
            return ", ".join(self.names[number] for number in np.flatnonzero(label)) or "(none)"
        if self.kind == NUMBER:
            return f"{self.restored(np.asarray(label)):.{12 if self.origin else 4}g}"
        return self.names[int(label)] if self.names else ""

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "names": list(self.names)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Target:
        return cls(values["kind"], tuple(values["names"]))

    @classmethod
    def usual(
        cls, kind: str, classes: tuple[str, ...] | None, mean: float = 0.0, std: float = 1.0, origin: float = 0.0
    ) -> Target:
        """The target of data of a kind ("image", "table", "text" or "stream") that says nothing but its classes."""
        if classes:
            return cls(CLASS, classes)
        return cls(NONE) if kind in ("text", "stream", "tokens") else cls(NUMBER, (), mean - origin, std, origin)
