"""What a reader hands over: decoded examples by split, and what is known about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bigctl.data.number_style import NumberStyle
from bigctl.data.target import Target

Columns = dict[str, np.ndarray]
"""Named arrays of equal first dimension, one row an example."""
GROUP, TIME = "<group>", "<time>"
"""Columns that only the splits look at: examples of one group (object [N]) stay together, later ones (float64 [N]) are
held out."""


@dataclass(frozen=True)
class Decoded:
    """A data set as its reader found it, before any split is made by rule.

    Attributes:
        kind: "image" (columns `image` uint8 [N, H, W, C] and `label` int32 [N]); "table" (one column per
            feature, numeric as float64 with NaN for a missing value, categorical as an object array of str with None
            for a missing one, plus the target column `label`: int32 class numbers, or float64 for regression); or
            "text" (columns `text`, and `text_pair` for pairs, object arrays of str, and `label` int32 [N]); or "stream"
            (a column `document`, object array of str, of what is one long text, without labels).
        splits: the splits the source itself has, by their own names ("train", "test", ...), in the source's order.
        classes: class names in label order, where each example has one class; else None.
        info: facts worth showing a user (source, version, licence, files read), JSON-serialisable.
        styles: of table columns whose numbers are not written as programs do.
        target: what is to be predicted; None for what follows from `classes`, which is filled in.
    """

    kind: str
    splits: dict[str, Columns]
    classes: tuple[str, ...] | None
    info: dict[str, Any] = field(default_factory=dict)
    target: Target = None  # type: ignore[assignment]  # filled in below
    styles: Mapping[str, NumberStyle] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.target is None:
            object.__setattr__(self, "target", Target.usual(self.kind, self.classes))
        for name, columns in self.splits.items():
            lengths = {column: len(values) for column, values in columns.items()}
            if len(set(lengths.values())) > 1:
                raise ValueError(f"split {name!r} has columns of different lengths: {lengths}")
