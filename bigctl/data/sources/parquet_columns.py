"""Columns of Parquet files by the type that they are stored with: numbers, categories, texts, images.

A value that cannot be used is an error that names its row. Where `bad` is given, it is noted there by its row instead,
and the value is a placeholder.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from bigctl.config.suggestions import listed
from bigctl.data.number_style import MISSING, find_dates
from bigctl.data.sources.cells import FEW
from bigctl.data.sources.parquet_files import Part
from bigctl.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

NUMBER, CATEGORY = "a number", "a category"
Bad = dict[int, DataError]
_REMEMBERED = 2**16
"""Different strings of a column that are kept once however often they occur."""


def _refuse(bad: Bad | None, part: Part, row: int, name: str, what: str, hint: str) -> None:
    """Raises DataError for a value, or notes it."""
    error = DataError(what, where=part.at(row, name), hint=hint)
    if bad is None:
        raise error
    bad.setdefault(row, error)


def kind_of(stored: pa.DataType) -> str | None:
    """NUMBER or CATEGORY, see the table in docs/parquet.md; None for what is no column of a table."""
    import pyarrow.types as types

    if types.is_dictionary(stored):
        return CATEGORY
    if types.is_string(stored) or types.is_large_string(stored):
        return CATEGORY
    numeric = types.is_integer(stored) or types.is_floating(stored) or types.is_decimal(stored)
    return NUMBER if numeric or types.is_boolean(stored) or types.is_temporal(stored) else None


def numbers(part: Part, name: str, bad: Bad | None = None) -> np.ndarray:
    """A column of numbers, float64 [N] with NaN for null; none may be infinite."""
    found = [_numbers(block) for block in part.blocks(name)]
    values = np.concatenate(found) if len(found) != 1 else found[0]
    rows = np.flatnonzero(np.isinf(values)).tolist()
    for row in rows if bad is not None else rows[:1]:
        more = f", and {len(rows) - 1} more are" if len(rows) > 1 and bad is None else ""
        hint = "store a finite number, or null if it is unknown"
        _refuse(bad, part, row, name, f"the value is infinite{more}", hint)
    return np.where(np.isinf(values), math.nan, np.asarray(values, np.float64))


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.types as types

    stored, scale = column.type, 1.0
    if types.is_date(stored):
        column = column.cast(pa.date32()).cast(pa.int32())
    elif types.is_timestamp(stored) or types.is_time(stored) or types.is_duration(stored):
        scale = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}[stored.unit]
        column = column.cast(pa.int32() if types.is_time32(stored) else pa.int64())
    if types.is_boolean(stored):
        column = column.cast(pa.int8())
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy() / scale)


def told(part: Part, name: str, kind: str) -> list[str]:
    """A note on a training column that numbers the rows, or that holds dates, which are no more than they are stored
    as: one number, or categories."""
    import pyarrow.types as types

    stored = part.stored(name)
    if types.is_integer(stored):
        values = numbers(part, name)
        counts = len(values) >= FEW and np.array_equal(values - values[0], np.arange(len(values)))
        return [f"column {name!r} numbers the rows; {listed('data.drop', name)} leaves it out"] if counts else []
    parts = "columns of year, month, day and weekday tell a model more"
    if types.is_date(stored) or types.is_timestamp(stored):
        unit = "days" if types.is_date(stored) else "seconds"
        return [f"column {name!r} of dates is read as one number, {unit} since 1970; {parts}"]
    if kind == CATEGORY and not types.is_dictionary(stored):
        return [f"column {name!r} holds dates as strings, which stay strings; {parts}"] if _dates(part, name) else []
    return []


def _dates(part: Part, name: str) -> bool:
    """Whether all strings of a column are dates."""
    found: set[str] = set()
    try:
        for block in part.blocks(name):
            new = set(block.unique().to_pylist()) - {None}
            if any(text.lower() not in MISSING for text in new) and find_dates(new) is None:
                return False  # whatever else there is
            found |= new
    except UnicodeDecodeError:
        return False
    return find_dates(found) is not None


def is_empty(part: Part, name: str) -> bool:
    """Whether all values of a column are null."""
    return all(block.null_count == len(block) for block in part.blocks(name))


def all_different(part: Part, name: str) -> bool:
    """Whether every row of a column of categories has a value, and another one than all others."""
    found = list[np.ndarray]()
    for block in part.blocks(name):
        if block.null_count or len(block.unique()) < len(block):
            return False
        found.append(np.empty(0, np.uint64) if len(block) == part.rows else _digests(block))
    return len(found) == 1 or len(np.unique(np.concatenate(found))) == part.rows


def _digests(column: pa.ChunkedArray) -> np.ndarray:
    """Of each value 64 bits that tell it from others, uint64 [N]."""
    import pyarrow.types as types

    values: list[Any] = []
    for chunk in column.chunks:
        plain = chunk.dictionary_decode() if types.is_dictionary(chunk.type) else chunk
        text = types.is_string(plain.type) or types.is_large_string(plain.type)
        values += [scalar.as_buffer().to_pybytes() for scalar in plain] if text else map(repr, plain.to_pylist())
    found = (hashlib.blake2b(v if isinstance(v, bytes) else v.encode(), digest_size=8).digest() for v in values)
    return np.frombuffer(b"".join(found), np.uint64)


def categories(part: Part, name: str, bad: Bad | None = None) -> np.ndarray:
    """A column of categories, object [N] of str with None for null."""
    values = np.empty(part.rows, object)
    values[:] = [None if value is None else name_of(value) for value in values_of(part, name, bad)]
    return values


def values_of(part: Part, name: str, bad: Bad | None = None) -> list[Any]:
    """The values of a column; strings must be UTF-8. Equal strings are one object, as far as there are few."""
    import pyarrow as pa

    try:
        known: dict[str, str] = {}
        found: list[Any] = []
        for block in value_blocks(part, name, bad):
            few = len(known) < _REMEMBERED
            found += [known.setdefault(v, v) if type(v) is str else v for v in block] if few else block
        return found
    except (ValueError, OverflowError):  # of times that Python has no value for
        whole = pa.int64() if part.stored(name).bit_width == 64 else pa.int32()
        return [value for block in part.blocks(name) for value in block.cast(whole).to_pylist()]


def value_blocks(part: Part, name: str, bad: Bad | None = None, first: int = 0) -> Iterator[list[Any]]:
    """The values of a column from a row on, some rows at a time. Raises ValueError or OverflowError for times that
    Python has no value for."""
    import pyarrow.types as types

    for block in part.blocks(name, first=first):
        try:
            yield block.to_pylist()
        except UnicodeDecodeError:
            found: list[Any] = []
            for row, value in enumerate(block, first):
                try:
                    found.append(value.as_py())
                except UnicodeDecodeError:
                    _refuse(bad, part, row, name, "the string is not UTF-8", "write it anew")
                    found.append(None)
            yield found
        except (ValueError, OverflowError):
            if types.is_temporal(block.type):
                raise
            hint = "name another column"
            raise DataError(f"{block.type} is more than can be told apart", where=part.source, hint=hint) from None
        first += len(block)


def name_of(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def typed(part: Part, name: str, kind: str, bad: Bad | None = None) -> np.ndarray:
    """A column as the training files have it. Raises DataError where it is stored as something else."""
    stored = part.stored(name)
    if kind_of(stored) != kind and not is_empty(part, name):
        told = "text" if str(stored) in ("string", "large_string", "string_view") else str(stored)
        was = f"{told}, where it was {kind} in training"
        raise DataError(f"the column {name!r} is {was}", where=part.source, hint="store it as the training files do")
    return numbers(part, name, bad) if kind == NUMBER else categories(part, name, bad)


def texts(part: Part, name: str, bad: Bad | None = None) -> np.ndarray:
    """A column of texts, object [N] of str; none may be null or empty."""
    found = np.empty(part.rows, object)
    found[:] = [text for block in text_blocks(part, name, bad) for text in block]
    return found


def text_blocks(part: Part, name: str, bad: Bad | None = None, first: int = 0) -> Iterator[list[str]]:
    """The same from a row on, some rows at a time."""
    require_texts(part, name)
    for values in value_blocks(part, name, bad, first):
        found = ["" if value is None else str(value) for value in values]
        for row, text in enumerate(found, first):
            if not text.strip():
                _refuse(bad, part, row, name, "the text is empty", "write the text, or remove the row")
        yield found
        first += len(found)


def require_texts(part: Part, name: str) -> None:
    """Raises DataError where a column is not there, or not of strings."""
    stored = part.stored(name, "text")
    if kind_of(stored) != CATEGORY:
        raise DataError(f"the column {name!r} is {stored}, not of strings", where=part.source, hint="name another")


def encoded_images(part: Part, name: str, bad: Bad | None = None) -> tuple[list[bytes], list[str]]:
    """A column of images as they are stored, in PNG, JPEG or the like, and what to call each; none may be missing."""
    import pyarrow.types as types

    column = part.column(name, "image")
    if types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:  # as Hugging Face writes images
        column = column.combine_chunks().field("bytes")
    if not (types.is_binary(column.type) or types.is_large_binary(column.type)):
        raise DataError(f"the column {name!r} is {column.type}, not of bytes", where=part.source, hint="name another")
    contents = column.to_pylist()
    for row, content in enumerate(contents):
        if content is None:
            _refuse(bad, part, row, name, "there is no image", "store one, or remove the row")
            contents[row] = b""
    return contents, [part.at(row, name) for row in range(len(contents))]
