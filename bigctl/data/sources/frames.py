"""Columns that Python holds, as one Arrow table: frames of pandas, Polars or Arrow, and dicts of columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from bigctl.data.files.paths import some
from bigctl.data.sources.parquet_files import Part
from bigctl.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

Examples = Any
"""What Python has of examples: a frame, an array, pictures, texts, paths; whoever is given it finds out."""


def is_frame(value: object) -> bool:
    """Whether something has named columns: a frame, an Arrow table, or a dict of columns."""
    return isinstance(value, Mapping) or (hasattr(value, "columns") and getattr(value, "ndim", 2) == 2)


def row_of(value: object) -> dict[str, object] | None:
    """The values by their names of one row of a pandas frame, as `frame.iloc[0]` gives it; None for all else. Raises
    DataError for names that occur twice."""
    names = getattr(value, "index", None)
    if getattr(value, "ndim", None) != 1 or callable(names) or not isinstance(value, Iterable):
        return None
    names = list(names) if isinstance(names, Iterable) else []
    if not names or not all(isinstance(name, str) for name in names):
        return None
    _require_unique(names, "the row")
    return {name: one.item() if isinstance(one, np.generic) else one for name, one in zip(names, value, strict=True)}


def is_texts(value: object) -> TypeGuard[Sequence[str]]:
    """Whether something is a sequence of texts, of any kind but one text."""
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__len__") or not hasattr(value, "__iter__"):
        return False
    return len(value) > 0 and all(isinstance(text, str) for text in value)


def table_of(frame: object, name: str) -> pa.Table:
    """A frame as an Arrow table; `name` is what messages call it.

    Raises:
        DataError: columns of different lengths, or one of mixed types; names that occur twice.
    """
    import pyarrow as pa

    try:
        found = _table(frame)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, ValueError, TypeError) as error:
        what = " ".join(str(part) for part in error.args).strip() or type(error).__name__
        hint = "give columns of one type and one length each"
        raise DataError(f"the columns cannot be read: {what[:200]}", where=name, hint=hint) from None
    _require_unique(found.column_names, name)
    return found


def _require_unique(names: list[str], where: str) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"duplicate column names: {some(twice)}", where=where, hint="rename them")


def _table(frame: object) -> pa.Table:
    import pyarrow as pa

    if isinstance(frame, pa.Table):
        return frame
    if hasattr(frame, "to_arrow"):  # Polars
        return frame.to_arrow()
    if isinstance(frame, Mapping):
        return pa.table({str(name): column_of(values) for name, values in frame.items()})
    return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)


def column_of(values: object) -> pa.Array:
    """One column; an array of numbers as it is stored, NaN being a missing value."""
    import pyarrow as pa

    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    if isinstance(values, Sequence):  # a list of mixed types is refused, where numpy would make texts of them
        return pa.array(list(values), from_pandas=True)
    array = np.asarray(values)
    if array.ndim == 1 and array.dtype.kind in "biuf":
        return pa.array(array, from_pandas=True)
    return pa.array(array.tolist(), from_pandas=True)


def part_of(table: pa.Table, name: str) -> Part:
    """The rows of a split that Python gave. Raises DataError where there are none."""
    if not table.num_rows:
        raise DataError("there are no rows", where=name, hint="give some")
    return Part(name, table, (0,), (Path(name),))
