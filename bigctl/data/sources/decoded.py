"""What a reader hands over: decoded examples by split, and what is known about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bigctl.data.number_style import NumberStyle
from bigctl.data.pictures.encoded_images import EncodedImages
from bigctl.data.sources.column_files import StoredRows, StoredTexts
from bigctl.data.target import Target

Columns = dict[str, np.ndarray]
"""Named arrays of equal first dimension, one row an example."""
GROUP, TIME = "<group>", "<time>"
"""Columns that only the splits look at: examples of one group (object [N]) stay together, later ones (float64 [N]) are
held out."""


ORIGIN = "<origin>"
"""A column that says where each example comes from, int64 [N], see `Origins`."""


ROW = "<row>"
"""A column that says which of `Decoded.rows` each example is, int64 [N]."""


@dataclass(frozen=True)
class Origins:
    """Where the examples of each split come from.

    Attributes:
        sources: names of files.
        places: split -> int64 [N], which of the files times 2**32, plus the line or row in it from 1 on, or 0 where the
            file is one example.
        unit: "line" or "row".
    """

    sources: Sequence[str]
    places: Mapping[str, np.ndarray]
    unit: str = "line"

    BITS: ClassVar[int] = 32
    MOST: ClassVar[int] = 2**32 - 1

    @classmethod
    def of_lines(cls, lines: Mapping[str, tuple[str, Sequence[int]]]) -> Origins:
        """Of rows of one file a split: its name, and the line that each row begins on."""
        places: dict[str, np.ndarray] = {}
        for number, (split, (_, own)) in enumerate(lines.items()):
            places[split] = np.asarray(own, np.int64) + (number << cls.BITS)
        return cls([Path(name).name for name, _ in lines.values()], places)

    def name(self, place: int) -> str:
        """A place in words: photos/3.jpg, table.csv:17, table.parquet:row 3."""
        source, number = str(self.sources[place >> self.BITS]), place & self.MOST
        if not number:
            return source
        return f"{source}:{number}" if self.unit == "line" else f"{source}:{self.unit} {number}"


@dataclass(frozen=True)
class Decoded:
    """A data set as its reader found it, before any split is made by rule.

    Attributes:
        kind: "image" (columns `image` uint8 [N, H, W, C] and `label` int32 [N]); "table" (one column per
            feature, numeric as float64 with NaN for a missing value, categorical as an object array of str with None
            for a missing one, plus the target column `label`: int32 class numbers, or float64 for regression); or
            "text" (columns `text`, and `text_pair` for pairs, object arrays of str, and `label` int32 [N]); or "stream"
            (a column `document`, object array of str, of what is one long text, without labels); or "tokens" (a column
            `inputs`, `TokenShards` [T], of such a text as tokens that were made elsewhere and stay where they are).
        splits: the splits the source itself has, by their own names ("train", "test", ...), in the source's order.
        classes: class names in label order, where each example has one class; else None.
        info: facts worth showing a user (source, version, licence, files read), JSON-serialisable.
        styles: of table columns whose numbers are not written as programs do.
        target: what is to be predicted; None for what follows from `classes`, which is filled in.
        origins: where the examples come from, if that is known.
        index: where pictures stay in their files, what is known of these; the column `image` is then int64 [N], their
            places in it.
        rows: where they are too many for memory, the features of a table, or texts; the splits then have ROW in their
            place.
        most: tokens that are scored at most, of validation and of test, where these are not written out.
    """

    kind: str
    splits: dict[str, Columns]
    classes: tuple[str, ...] | None
    info: dict[str, Any] = field(default_factory=dict)
    target: Target = None  # type: ignore[assignment]  # filled in below
    styles: Mapping[str, NumberStyle] = field(default_factory=dict)
    origins: Origins | None = None
    most: int | None = None
    index: EncodedImages | None = None
    rows: StoredRows | StoredTexts | None = None

    def __post_init__(self) -> None:
        if self.target is None:
            object.__setattr__(self, "target", Target.usual(self.kind, self.classes))
        for name, columns in self.splits.items():
            lengths = {column: len(values) for column, values in columns.items()}
            if len(set(lengths.values())) > 1:
                raise ValueError(f"split {name!r} has columns of different lengths: {lengths}")
