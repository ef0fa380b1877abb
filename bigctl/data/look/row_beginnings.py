"""The first rows of a table of any format, as columns that `column_roles` can judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigctl.config import schema
from bigctl.data.files.paths import some
from bigctl.data.look import column_roles
from bigctl.data.look.column_roles import Column
from bigctl.data.number_style import number
from bigctl.data.sources import arrow, parquet_columns, read_table
from bigctl.data.sources.content import read_beginning, read_text
from bigctl.data.sources.delimited_rows import load_delimited
from bigctl.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

BEGINNING, _ROWS = 2**21, 5000
"""Bytes and rows that are looked at."""
_SEPARATORS = {",": ",", ";": ";", "\t": "tab", "|": "|"}


@dataclass(frozen=True)
class Beginning:
    """What the first rows show.

    Attributes:
        source: the file, for messages.
        columns: in the order of the file.
        looked_at, total: rows; `cut` says that the second is an estimate.
        keys: of `data` that the format needs, each with a sentence in `reasons`.
        image: the column with encoded images.
    """

    source: str
    columns: tuple[Column, ...]
    looked_at: int
    total: int
    cut: bool = False
    keys: Mapping[str, Any] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    image: str | None = None


def of_file(file: Path, kind: str, given: Mapping[str, Any]) -> Beginning:
    """The first rows of a csv, tsv or jsonl file. Raises DataError where they cannot be read."""
    data, more = read_beginning(file, BEGINNING)
    if kind == "jsonl":
        return _of_records(file, data, more, given)
    keys: dict[str, Any] = {}
    reasons: list[str] = []
    if kind == "csv" and "separator" not in given and (mark := _separator(data)) != ",":
        keys["separator"] = _SEPARATORS[mark]
        reasons.append(f"fields are separated by {_SEPARATORS[mark]!r} (data.separator)")
    cls = schema.Csv if kind == "csv" else schema.Tsv
    names = ("columns", "quoting", "separator", "encoding", "on_bad")
    said = cls(**{name: value for name, value in {**given, **keys}.items() if name in names})
    text, name = read_text(data, said.encoding, str(file))
    dialect, mark = read_table.Dialect.of(said), "\t" if kind == "tsv" else ","
    table = load_delimited(text, name, mark, lambda column: True, dialect, all_rows=True)
    if "columns" not in given and (found := [name for name in table.names if number(name) is not None]):
        hint = "name all of them with data.columns=[...]"
        raise DataError(f"the first line has {found[0]!r}, which is no name of a column", where=f"{file}:1", hint=hint)
    if not table.lines:
        raise _no_rows(str(file))
    rows = min(len(table.lines), _ROWS)
    columns = tuple(column_roles.describe(name, values[:rows]) for name, values in table.columns.items())
    total = len(table.lines) if more is None else _estimate(len(table.lines), more, len(data))
    return Beginning(str(file), columns, rows, total, more is not None, keys, tuple(reasons))


def _no_rows(where: str) -> DataError:
    return DataError("there are no rows", where=where, hint="is it the right file?")


def _estimate(rows: int, of_all: int, looked_at: int) -> int:
    return max(rows, round(rows * of_all / looked_at))


def _separator(data: bytes) -> str:
    """What stands between fields: the mark that is in each of the first lines, as often as in the header."""
    lines = [line for line in data[:65536].decode("utf-8", "replace").splitlines()[:20] if line.strip()]
    counts = {mark: [line.count(mark) for line in lines] for mark in _SEPARATORS}
    even = [mark for mark, found in counts.items() if found and min(found) > 0 and len(set(found)) == 1]
    if counts[","] and counts[","][0]:
        return ","
    found = [mark for mark in even or _SEPARATORS if counts[mark] and counts[mark][0]]
    return max(found, key=lambda mark: counts[mark][0], default=",")


def _of_records(file: Path, data: bytes, more: int | None, given: Mapping[str, Any]) -> Beginning:
    text, _ = read_text(data, given.get("encoding"), str(file))
    if more is not None and text.lstrip().startswith("["):
        raise DataError("a JSON list of this size is not looked into", where=str(file), hint="write an object a line")
    records = [record for _, record in read_table.json_objects(text, str(file))]
    if not records:
        raise _no_rows(str(file))
    total = len(records) if more is None else _estimate(len(records), more, len(data))
    values: dict[str, list[Any]] = {}
    for record in records[:_ROWS]:
        for name, value in record.items():
            values.setdefault(name, []).append(value)
    lists = {name: each for name, each in values.items() if any(isinstance(value, list) for value in each)}
    plain = {name: each for name, each in values.items() if not any(isinstance(v, (list, dict)) for v in each)}
    columns = tuple(column_roles.describe(name, [_cell(v) for v in each]) for name, each in plain.items())
    keys, reasons = _roles_of_lists(lists, str(file)) if lists and "tokens" not in given else ({}, ())
    return Beginning(str(file), columns, min(len(records), _ROWS), total, more is not None, keys, reasons)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def _roles_of_lists(lists: Mapping[str, list[Any]], where: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Words with tags where two lists are always as long as each other; several classes where there is one list."""
    lengths = {name: [len(v) if isinstance(v, list) else -1 for v in values] for name, values in lists.items()}
    if len(lists) == 1:
        name = next(iter(lists))
        return {"labels": name, "label": None}, (f"{name!r} has several classes an example, or none (data.labels)",)
    names = sorted(lists, key=lambda name: -_different(lists[name]))
    tags = next((name for name in reversed(names[1:]) if lengths[name] == lengths[names[0]]), None)
    if tags is None:
        hint = "data.labels=FIELD for several classes; data.tokens=FIELD data.tags=FIELD for words with tags"
        raise DataError(f"the fields {some(sorted(lists))} hold lists", where=where, hint=hint)
    reason = f"the words are {names[0]!r} and their tags {tags!r}, lists of one length (data.tokens, data.tags)"
    return {"tokens": names[0], "tags": tags, "label": None}, (reason,)


def _different(values: Sequence[Any]) -> int:
    return len({str(item) for value in values if isinstance(value, list) for item in value})


def of_parquet(file: Path, path: str) -> Beginning:
    """The first rows of a Parquet file; columns have the types that they are stored with. Raises DataError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as opened:
            total = opened.metadata.num_rows
            batch = next(opened.iter_batches(batch_size=_ROWS), None)
    except (pa.ArrowException, OSError, UnicodeError) as error:
        what = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DataError(f"this is no Parquet file, or a damaged one: {what}", where=str(file)) from None
    if batch is None or not batch.num_rows:
        raise _no_rows(path)
    return _of_stored(str(file), pa.Table.from_batches([batch]), total)


def of_arrow(file: Path) -> Beginning:
    """The same of an Arrow file, which is read as a whole."""
    table = arrow.read_file(file, None)
    if not table.num_rows:
        raise _no_rows(str(file))
    return _of_stored(str(file), table.slice(0, _ROWS), table.num_rows)


def _of_stored(source: str, table: pa.Table, total: int) -> Beginning:
    import pyarrow.types as types

    columns, image, keys, reasons = [], None, {}, []
    for stored in table.schema:
        if types.is_binary(stored.type) or types.is_large_binary(stored.type) or _is_image(stored.type):
            image = image or stored.name
        elif (types.is_list(stored.type) or types.is_large_list(stored.type)) and _is_words(stored.type):
            reasons.append(f"{stored.name!r} has several classes an example, or none (data.labels)")
            keys = {"labels": stored.name, "label": None}
        elif (kind := parquet_columns.kind_of(stored.type)) is not None:
            values = table.column(stored.name).to_pylist()
            found = column_roles.describe(stored.name, [_cell(value) for value in values])
            whole = types.is_integer(stored.type) or types.is_boolean(stored.type)
            columns.append(_as_stored(found, kind, whole))
    if any(column.name.lower() in column_roles.NAMES for column in columns):
        keys, reasons = {}, []  # a class an example is likelier
    return Beginning(source, tuple(columns), table.num_rows, total, total > table.num_rows, keys, tuple(reasons), image)


def _is_words(stored: pa.DataType) -> bool:
    return parquet_columns.kind_of(stored.value_type) == parquet_columns.CATEGORY


def _is_image(stored: pa.DataType) -> bool:
    import pyarrow.types as types

    return bool(types.is_struct(stored)) and any(inner.name == "bytes" for inner in stored)


def _as_stored(found: Column, kind: str, whole: bool) -> Column:
    """A column whose type the file says: digits that are stored as a text are a category."""
    if kind == parquet_columns.NUMBER:
        return Column(found.name, "number", found.distinct, found.examples, whole)
    seen = found.kind if found.kind == "text" else "category"
    return Column(found.name, seen, found.distinct, found.examples)
