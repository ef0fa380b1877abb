"""Typed table columns -> one float32 matrix, by what the training split held."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bigctl.data.files.paths import some
from bigctl.data.number_style import NumberStyle
from bigctl.data.progress import each
from bigctl.data.sources.column_files import Categories, StoredRows
from bigctl.data.sources.decoded import Columns
from bigctl.data.sources.text_rows import short
from bigctl.errors import DataError

MAX_CATEGORIES = 64


@dataclass(frozen=True)
class Numeric:
    """One numeric column; `missing` asks for an indicator of missing values."""

    name: str
    mean: float
    std: float
    missing: bool
    style: NumberStyle | None = None  # how files write them; None for as programs do

    @property
    def features(self) -> list[str]:
        return [self.name, f"{self.name}=missing"] if self.missing else [self.name]

    @classmethod
    def fit(cls, name: str, values: np.ndarray, style: NumberStyle | None = None) -> Numeric:
        known = values[~np.isnan(values)]
        if not known.size:
            return cls(name, 0.0, 1.0, False, style)
        # The mean of equal numbers may be off by a rounding, which a std of almost 0 would blow up.
        constant = known.min() == known.max()
        with np.errstate(over="ignore", invalid="ignore"):
            mean, std = (float(known[0]), 1.0) if constant else (float(known.mean()), float(known.std()))
        if not math.isfinite(mean) or not math.isfinite(std):
            raise DataError(f"the numbers in column {name!r} are too large to be standardised", hint="rescale them")
        return cls(name, mean, std or 1.0, known.size < values.size, style)

    def encode(self, values: np.ndarray, out: np.ndarray) -> None:
        missing = np.isnan(values)
        with np.errstate(over="ignore"):  # infinite: the answer is none, and says so
            out[:, 0] = np.where(missing, 0.0, (values - self.mean) / self.std)
        if self.missing:
            out[:, 1] = missing


@dataclass(frozen=True)
class Categorical:
    """One categorical column; `other` and `missing` ask for an indicator each."""

    name: str
    categories: tuple[str, ...]
    other: bool
    missing: bool

    @property
    def features(self) -> list[str]:
        special = (["<other>"] if self.other else []) + (["missing"] if self.missing else [])
        return [f"{self.name}={value}" for value in [*self.categories, *special]]

    @classmethod
    def fit(cls, name: str, values: np.ndarray) -> Categorical:
        return cls.of(name, Counter(values.tolist()))

    @classmethod
    def of(cls, name: str, counts: Counter[Any]) -> Categorical:
        """What `fit` gives for values that occur so often."""
        missing = counts.pop(None, 0) > 0
        frequent = sorted(counts, key=lambda value: (-counts[value], value))[:MAX_CATEGORIES]
        return cls(name, tuple(sorted(frequent)), len(counts) > MAX_CATEGORIES, missing)

    def encode(self, values: np.ndarray, out: np.ndarray) -> None:
        k = len(self.categories)
        position: dict[str | None, int] = {value: i for i, value in enumerate(self.categories)}
        position[None] = k + self.other if self.missing else -1
        unseen = k if self.other else -1
        at = np.array([position.get(value, unseen) for value in values.tolist()], np.int64)
        rows = np.flatnonzero(at >= 0)
        out[rows, at[rows]] = 1.0


class TableEncoder:
    """Turns table columns into one float32 matrix [N, D], by what `fit` saw in the training split alone.

    Numeric: (x - mean) / std, std being that of the population (0 counts as 1) and missing values 0; if the training
    split misses some, an indicator `name=missing` follows. Categorical: one indicator `name=value` for each of the 64
    most frequent values, `name=<other>` if there are more, `name=missing` if the training split misses some; a value
    that was not seen is `<other>` where that exists, else all zeros.
    """

    def __init__(self, columns: Sequence[Numeric | Categorical]):
        self.columns = tuple(columns)

    @classmethod
    def fit(cls, columns: Columns, styles: Mapping[str, NumberStyle] | None = None) -> TableEncoder:
        """Learn means, deviations and categories from training columns, which must not include the target; `styles`
        are those of the columns whose numbers are not written as programs do."""
        if "label" in columns:
            raise ValueError("the target must not be encoded as a feature")
        fitted: list[Numeric | Categorical] = []
        for name, values in columns.items():
            if values.dtype.kind in "OUT":
                fitted.append(Categorical.fit(name, values))
            else:
                fitted.append(Numeric.fit(name, values.astype(np.float64), (styles or {}).get(name)))
        return cls(fitted)

    @classmethod
    def fit_stored(cls, rows: StoredRows, places: np.ndarray, styles: Mapping[str, NumberStyle]) -> TableEncoder:
        """The same of the rows at some places, int64 [N], of columns in files."""
        fitted: list[Numeric | Categorical] = []
        for name in each("data: means and categories", rows.names, "columns"):
            values = rows.column(name)
            if isinstance(values, Categories):
                fitted.append(Categorical.of(name, values.counts(places)))
            else:
                fitted.append(Numeric.fit(name, values[places], styles.get(name)))
        return cls(fitted)

    @property
    def feature_names(self) -> list[str]:
        """Names of the D matrix columns."""
        return [feature for column in self.columns for feature in column.features]

    def encode(self, columns: Columns) -> np.ndarray:
        """float32 [N, D] of columns such as `fit` saw; further ones are ignored, a missing one is a DataError."""
        if absent := [column.name for column in self.columns if column.name not in columns]:
            raise DataError(f"the feature columns {some(absent)} are missing", hint=f"found: {some([*columns])}")
        n = len(columns[self.columns[0].name]) if self.columns else 0
        matrix = np.zeros((n, len(self.feature_names)), np.float32)
        start = 0
        for column in self.columns:
            values, width = columns[column.name], len(column.features)
            if isinstance(column, Numeric) != (values.dtype.kind in "fiub"):
                was, now = ("numeric", "text") if isinstance(column, Numeric) else ("text", "numeric")
                raise DataError(f"column {column.name!r} is {now}, and was {was} in training")
            if isinstance(column, Numeric):
                values = values.astype(np.float64)
            column.encode(values, matrix[:, start : start + width])
            start += width
        return matrix

    def unseen(self, columns: Columns, source: str) -> list[str]:
        """Notes on values of `source` that the training split did not hold."""
        notes = []
        for column in self.columns:
            if isinstance(column, Categorical) and not column.other:
                new = Counter(v for v in columns[column.name].tolist() if v is not None and v not in column.categories)
                if new:
                    known = some([repr(short(value)) for value in new], 3)
                    what = f"{new.total()} values of {column.name!r} are not among those of the training"
                    notes.append(f"{source}: {what}: {known}")
        return notes

    def to_json(self) -> dict[str, Any]:
        """What `from_json` needs to build the same encoder, of JSON types only."""
        columns = [{"kind": _KINDS[type(column)], **asdict(column)} for column in self.columns]
        for column, entry in zip(self.columns, columns, strict=True):
            style = entry.pop("style", None)
            if style is not None and isinstance(column, Numeric) and column.style is not None:
                entry["style"] = column.style.to_json()
        return {"version": 1, "columns": columns}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TableEncoder:
        """The encoder that `to_json` described; DataError if this is something else."""
        try:
            if data["version"] != 1:
                raise ValueError(f"version {data['version']!r}")
            columns: list[Numeric | Categorical] = []
            for entry in data["columns"]:
                name, missing = str(entry["name"]), bool(entry["missing"])
                if entry["kind"] == "numeric":
                    style = NumberStyle.from_json(entry["style"]) if "style" in entry else None
                    columns.append(Numeric(name, float(entry["mean"]), float(entry["std"]), missing, style))
                elif entry["kind"] == "categorical":
                    columns.append(Categorical(name, tuple(entry["categories"]), bool(entry["other"]), missing))
                else:
                    raise ValueError(f"kind {entry['kind']!r}")
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"this is not a saved table encoder: {error!r}") from None
        return cls(columns)


_KINDS = {Numeric: "numeric", Categorical: "categorical"}
