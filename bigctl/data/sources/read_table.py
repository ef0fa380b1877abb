"""Files of rows (`csv`, `tsv`, `jsonl`) -> columns of strings, each row with the line it starts on."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigctl.config import schema
from bigctl.data.number_style import moments
from bigctl.data.sources import json_parts
from bigctl.data.sources.bad_rows import LEFT_OUT, BadRows
from bigctl.data.sources.content import read_text
from bigctl.data.sources.decoded import GROUP, TIME, Columns, Origins
from bigctl.data.sources.delimited_rows import load_delimited
from bigctl.data.sources.text_rows import TextTable
from bigctl.errors import DataError

FORMATS = ("csv", "tsv", "jsonl")
SUFFIXES = {suffix: cls.kind for cls in (schema.Csv, schema.Tsv, schema.Jsonl) for suffix in cls.suffixes}
_DEPTH = 8
"""Objects within objects whose values are columns of their own."""

EMPTY_CELLS, EMPTY_CELLS_A_CHARACTER = 1_000_000, 8
"""Cells that a table of JSON lines may have: any number in a small file, and so many for each character of a large one.
A table that is full has less than one for five characters."""


def split_columns(table: TextTable, group: str | None, time: str | None) -> Columns:
    """The columns by which splits are made. Raises DataError where one is missing, or is no time."""
    found: Columns = {}
    for name, role in ((group, GROUP), (time, TIME)):
        if name is not None:
            table.require(name, role.strip("<>"))
    if group is not None:
        found[GROUP] = np.array(table.columns[group], object)
    if time is not None:
        values = moments(table.columns[time])
        if values is None:
            hint = "write numbers, or dates such as 2024-03-31 in every row"
            raise DataError(f"the column {time!r} is not in order of time", where=table.source, hint=hint)
        found[TIME] = np.array(values)
    return found


def file_facts(tables: Mapping[str, TextTable]) -> dict[str, Any]:
    """Which files the splits are from, how many rows they have and which columns, for the facts of a data set."""
    found: dict[str, Any] = {
        "columns": list(tables["train"].names),
        "files": {split: table.source for split, table in tables.items()},
        "rows": {split: len(table.lines) for split, table in tables.items()},
    }
    left_out = [fact for table in tables.values() for fact in table.left_out]
    return found | ({LEFT_OUT: left_out} if left_out else {})


def file_origins(tables: Mapping[str, TextTable]) -> Origins:
    """The file and the line that each row begins on."""
    return Origins.of_lines({split: (table.source, table.lines) for split, table in tables.items()})


@dataclass(frozen=True)
class Dialect:
    """How files are written, as keys of the data say.

    Attributes:
        columns: names of all columns, for a csv or tsv file whose first line does not name them; a first line that does
            is skipped all the same.
        quoting: whether quotes may enclose a field; otherwise they are characters like others.
        separator: what stands between fields; None for that of the format.
        encoding: of the text; None for UTF-8.
        skip_bad: whether rows that cannot be read are left out, with a note, where the default refuses the file.
        bad_limit: share of the rows that may be left out at most.
    """

    columns: Sequence[str] | None = None
    quoting: bool = True
    separator: str | None = None
    encoding: str | None = None
    skip_bad: bool = False
    bad_limit: float = 1.0

    @classmethod
    def of(cls, config: schema.Table) -> Dialect:
        separator = {"tab": "\t", "\\t": "\t"}.get(config.separator or "", config.separator)
        return cls(
            config.columns, config.quoting, separator, config.encoding, config.on_bad == "skip", config.bad_limit
        )


PLAIN = Dialect()


def load(
    source: Path | bytes,
    format: str,
    keep: Callable[[str], bool],
    *,
    dialect: Dialect = PLAIN,
    lists: Container[str] = (),
    collect: bool = False,
) -> TextTable:
    """The columns that `keep` wants of a file, or of its content.

    Args:
        source: a file, or the content of one.
        format: "csv", "tsv" (quoting as in CSV) or "jsonl" (or one JSON list of objects).
        keep: which columns, by name; those of objects within objects have names such as "user.age".
        dialect: how it is written.
        lists: columns of JSON lines whose values may be lists; they are given as JSON.
        collect: keep rows that cannot be read, as empty ones, and say in `bad` what is wrong with each.

    Raises:
        DataError: the file is missing, malformed or empty.
    """
    if format not in FORMATS:
        raise DataError(f"there is no table format {format!r}", hint=f"one of {', '.join(FORMATS)}")
    text, name = read_text(source, dialect.encoding)
    if format != "jsonl":
        table = load_delimited(text, name, "\t" if format == "tsv" else ",", keep, dialect, all_rows=collect)
    elif dialect.columns:
        raise DataError("every JSON line names its own columns", where="data.columns", hint="leave data.columns out")
    else:
        table = _load_jsonl(text, name, keep, lists)
    if table.bad and not collect:
        table = without_bad(table, dialect)
    require_rows(table)
    return table


def require_rows(table: TextTable) -> None:
    """Raises DataError where there are none."""
    if not table.lines:
        what = "there is a header but not a single row" if table.names else "there are no rows"
        raise DataError(what, where=table.source, hint="is it the right file?")


def without_bad(table: TextTable, dialect: Dialect) -> TextTable:
    """The table without its bad rows, with a note. Raises DataError where they are not to be left out, or too many."""
    bad = BadRows.of(table.bad)
    note = bad.left_out(len(table.lines), dialect.skip_bad, dialect.bad_limit)
    kept = [row for row in range(len(table.lines)) if row not in table.bad]
    columns = {name: [values[row] for row in kept] for name, values in table.columns.items()}
    lines = [table.lines[row] for row in kept]
    notes, left_out = [*table.notes, *note], bad.facts(len(table.lines))
    return dataclasses.replace(table, columns=columns, lines=lines, notes=notes, bad={}, left_out=left_out)


def _load_jsonl(text: str, name: str, keep: Callable[[str], bool], lists: Container[str]) -> TextTable:
    rows = JsonRows(name, keep, lists, len(text))
    for number, found in json_records([text], name):
        rows.add(number, found)
    columns, lines, bad = rows.take()
    return TextTable(name, tuple(rows.names), columns, lines, [], absent=rows.absent, bad=bad)


class JsonRows:
    """Records as columns, which can be taken block by block.

    Args:
        name: of the file, for messages.
        keep: which columns, by name.
        lists: columns whose values may be lists.
        characters: of the whole file.

    Attributes:
        names: of all columns so far.
        absent: the first line that lacks a column.
        characters: of the values that can be taken.
    """

    def __init__(self, name: str, keep: Callable[[str], bool], lists: Container[str], characters: int):
        self.names: dict[str, None] = {}
        self.absent: dict[str, int] = {}
        self.characters = 0
        self._name, self._keep, self._lists = name, keep, lists
        self._most = EMPTY_CELLS + EMPTY_CELLS_A_CHARACTER * characters
        self._kept: dict[str, None] = {}
        self._rows, self._first = 0, 0
        self._columns: dict[str, list[str]] = {}
        self._lines: list[int] = []
        self._bad: dict[int, DataError] = {}

    def __len__(self) -> int:
        """Rows that can be taken."""
        return len(self._lines)

    def add(self, number: int, found: dict[str, Any] | DataError) -> None:
        """A record, or what is wrong with it, and its line. Raises DataError for keys that are no columns."""
        self._first = self._first or number
        if isinstance(found, DataError):
            self._bad[len(self._lines)] = found
        for key, value in () if isinstance(found, DataError) else _flat(found).items():
            if key not in self.names:
                self.names[key] = None
                if self._keep(key):
                    self._kept[key] = None
                    if self._rows:
                        self.absent.setdefault(key, self._first)
            if key in self._kept:
                self._put(key, value, number)
        if len(self._kept) * (self._rows + len(self._lines)) > self._most:
            raise DataError(
                f"there are {len(self._kept):,} keys by now, and most of them are missing in most lines",
                where=f"{self._name}:{number}",
                hint="a key is the name of a column: what differs from line to line is a value",
            )
        self._lines.append(number)

    def _put(self, key: str, value: object, number: int) -> None:
        values = self._columns.setdefault(key, [])
        _fill(key, values, self._lines, self.absent)
        if isinstance(value, list) and key in self._lists:
            value = json.dumps(value, ensure_ascii=False)
        try:
            values.append(_json_text(value, f"{self._name}:{number}:{key}"))
            self.characters += len(values[-1])
        except DataError as error:
            values.append("")
            self._bad.setdefault(len(self._lines), error)

    def state(self) -> dict[str, Any]:
        """What `go_on` has to know behind the rows that were taken, for JSON."""
        return {
            "names": [*self.names],
            "kept": [*self._kept],
            "absent": self.absent,
            "rows": self._rows,
            "first": self._first,
        }

    def go_on(self, state: Mapping[str, Any]) -> None:
        """Begin behind the rows that others have taken."""
        self.names, self._kept = dict.fromkeys(state["names"]), dict.fromkeys(state["kept"])
        self.absent, self._rows, self._first = dict(state["absent"]), state["rows"], state["first"]

    def take(self) -> tuple[dict[str, list[str]], list[int], dict[int, DataError]]:
        """The rows since the last call: the columns that are kept, their lines, and what is wrong with some."""
        columns = {key: self._columns.get(key, []) for key in self._kept}
        for key, values in columns.items():
            _fill(key, values, self._lines, self.absent)
        found = columns, self._lines, self._bad
        self._rows += len(self._lines)
        self._columns, self._lines, self._bad, self.characters = {}, [], {}, 0
        return found


def _fill(key: str, values: list[str], lines: Sequence[int], absent: dict[str, int]) -> None:
    """Empty values for the lines so far that lack a key."""
    if len(values) < len(lines):
        absent.setdefault(key, lines[len(values)])
        values.extend([""] * (len(lines) - len(values)))


def _flat(record: Mapping[str, Any], prefix: str = "", depth: int = 0) -> dict[str, Any]:
    """A record whose inner objects are spread: {"user": {"age": 3}} has a column "user.age"."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, dict) and value and depth < _DEPTH:
            flat |= _flat(value, f"{prefix}{key}.", depth + 1)
        else:
            flat[prefix + key] = value
    return flat


def json_records(parts: Iterable[str], name: str) -> Iterator[tuple[int, dict[str, Any] | DataError]]:
    """The objects of JSON lines, or of one JSON list, each with its place from 1; errors in place of what is none. The
    text may come in parts."""
    parts = iter(parts)
    head = list[str]()
    for part in parts:
        head.append(part)
        if part.strip():
            break
    whole = itertools.chain(head, parts)
    if head and head[-1].lstrip().startswith("["):
        yield from ((number, found) for number, found, _ in listed(whole, name))
    else:
        yield from json_lines(json_parts.lines(whole, name), name)


def listed(
    parts: Iterable[str], name: str, *, behind: int = 0, number: int = 0
) -> Iterator[tuple[int, dict[str, Any] | DataError, int]]:
    """The objects of one JSON list as `json_parts.values` gives them; errors in place of what is none."""
    for at, value, end in json_parts.values(parts, name, behind=behind, number=number):
        yield at, value if isinstance(value, dict) else _no_object(value, f"{name}:{at}"), end


def json_objects(text: str, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of JSON lines, each with its line from 1; DataError where a line is none. `name` is the file's."""
    for number, found in json_records([text], name):
        if isinstance(found, DataError):
            raise found
        yield number, found


def json_lines(lines: Iterable[str], name: str, first: int = 1) -> Iterator[tuple[int, dict[str, Any] | DataError]]:
    """The objects of some lines, each with its number, that of the first one being `first`; errors in place of what is
    none."""
    for number, line in enumerate(lines, first):
        if line.strip():
            yield number, _record(line, f"{name}:{number}")


def _record(line: str, where: str) -> dict[str, Any] | DataError:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        what = f"{error.msg} at character {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        return DataError(f"invalid JSON: {what}", where=where, hint="every line must be one JSON object")
    return record if isinstance(record, dict) else _no_object(record, where)


def json_text(line: str, where: str, key: str) -> str | TextTable:
    """What a key of one JSON line is as text; where it is missing, a table with the others. Raises DataError."""
    return field_text(_record(line, where), where, key)


def field_text(found: dict[str, Any] | DataError, where: str, key: str) -> str | TextTable:
    """The same of an object, or of what is wrong in its place."""
    if isinstance(found, DataError):
        raise found
    if isinstance(value := found.get(key), str):
        return value.strip()
    flat = _flat(found)
    if key not in flat:
        return TextTable(where.rpartition(":")[0], tuple(flat), {}, [], [])
    return _json_text(flat[key], f"{where}:{key}")


def _no_object(value: object, where: str) -> DataError:
    hint = 'every line must be an object such as {"age": 42, "city": "Rome"}'
    return DataError(f"this is {json_type(value)}, not an object", where=where, hint=hint)


def _json_text(value: object, where: str) -> str:
    """What the value would be in a CSV file, so that either format means the same."""
    if isinstance(value, str):
        return value.strip()
    if value is None:
        return ""
    if isinstance(value, (dict, list)):
        raise DataError(
            f"the value is {json_type(value)}",
            where=where,
            hint="a value is one text or number: write a column for each, or leave the column out with data.drop",
        )
    return str(value).lower() if isinstance(value, bool) else repr(value)


def json_type(value: object) -> str:
    """What a value of JSON is called in a message."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else "a number"
