"""Files of rows (`csv`, `tsv`, `jsonl`) -> columns of strings, each row with the line it starts on."""

from __future__ import annotations

import contextlib
import csv
import difflib
import io
import json
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigctl.data.paths import require_file, some
from bigctl.errors import DataError

FORMATS = ("csv", "tsv", "jsonl")
SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}


@dataclass(frozen=True)
class TextTable:
    """The rows of one file as strings."""

    source: str
    names: tuple[str, ...]  # of all columns
    columns: dict[str, list[str]]  # those that were asked for, blanks stripped
    lines: list[int]  # where each row starts, from 1
    notes: list[str]
    header: bool = False  # whether the first line names the columns
    absent: dict[str, int] = field(default_factory=dict)  # of JSON lines: the first one that lacks a column

    def at(self, row: int, column: str) -> str:
        return f"{self.source}:{self.lines[row]}:{column}"

    def require(self, column: str, what: str) -> None:
        """Raises a DataError that names the likeliest mistake, where a column that was asked for is not there."""
        if column in self.columns:
            return
        hint = self.close(column)
        if len(self.names) == 1 and (found := [mark for mark in ";\t,|" if mark in self.names[0]]):
            hint = f"the fields seem to be separated by {found[0]!r}: convert the file, or choose data=csv or data=tsv"
        elif self.header and not hint.startswith("did you mean"):
            hint = (
                f"the first line must name the columns; or name all {len(self.names)} with data.columns=[...]; {hint}"
            )
        raise DataError(f"there is no {what} column {column!r}", where=self.source, hint=hint)

    def close(self, name: str) -> str:
        """A hint for a name that is no column."""
        close = difflib.get_close_matches(name, self.names, n=1) or [n for n in self.names if n.lower() == name.lower()]
        found = some([short(n) for n in self.names])
        return (f"did you mean {close[0]!r}? " if close else "") + f"the columns are {found}"


def short(text: str, limit: int = 60) -> str:
    """A value as it is shown in a message; one taken for a name may be a whole text."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def file_facts(tables: Mapping[str, TextTable]) -> dict[str, Any]:
    """Which files the splits are from, and how many rows they have, for the facts of a data set."""
    return {
        "files": {split: table.source for split, table in tables.items()},
        "rows": {split: len(table.lines) for split, table in tables.items()},
    }


def load(
    source: Path | bytes,
    format: str,
    keep: Callable[[str], bool],
    *,
    columns: Sequence[str] | None = None,
    quoting: bool = True,
    long_fields: bool = False,
    lists: Container[str] = (),
) -> TextTable:
    """The columns that `keep` wants of a file, or of its content.

    Args:
        source: a file, or the content of one.
        format: "csv", "tsv" (quoting as in CSV) or "jsonl".
        keep: which columns, by name.
        columns: names of all columns, for a csv or tsv file whose first line does not name them; a first line that does
            is skipped all the same.
        quoting: whether quotes may enclose a field; otherwise they are characters like others.
        long_fields: allow fields of any length, where the default refuses more than csv's limit as an unclosed quote.
        lists: columns of JSON lines whose values may be lists; they are given as JSON.

    Raises:
        DataError: the file is missing, malformed or empty.
    """
    if format not in FORMATS:
        raise DataError(f"there is no table format {format!r}", hint=f"one of {', '.join(FORMATS)}")
    text, name = read_text(source)
    if format != "jsonl":
        table = _load_csv(text, name, format, keep, columns, quoting, long_fields)
    elif columns:
        raise DataError("every JSON line names its own columns", where="data.columns", hint="leave data.columns out")
    else:
        table = _load_jsonl(text, name, keep, lists)
    if not table.lines:
        what = "there is a header but not a single row" if table.names else "there are no rows"
        raise DataError(what, where=name, hint="is it the right file?")
    return table


def read_text(source: Path | bytes) -> tuple[str, str]:
    """The text of a UTF-8 file, or of its content, and what to call it in messages; DataError if it is none."""
    name = "input" if isinstance(source, bytes) else str(source)
    try:
        data = source if isinstance(source, bytes) else require_file(source).read_bytes()
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}", where=name) from None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError("the file is UTF-16", where=name, hint="save it as UTF-8")
    if (nul := data.find(b"\0")) >= 0:
        raise DataError("there is a NUL byte", where=f"{name}:{_line(data, nul)}", hint="is this a text file?")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Positions are counted after a byte order mark, which is on the first line anyhow.
        raise DataError(
            f"byte 0x{error.object[error.start]:02x} is not UTF-8",
            where=f"{name}:{_line(error.object, error.start)}",
            hint="save the file as UTF-8",
        ) from None
    if not text.strip():
        raise DataError("the file is empty", where=name, hint="is it the right file?")
    return text, name


def _line(data: bytes, position: int) -> int:
    before = data[:position]
    return 1 + (before.count(b"\n") or before.count(b"\r"))


def _load_csv(
    text: str,
    name: str,
    format: str,
    keep: Callable[[str], bool],
    names_given: Sequence[str] | None,
    quoting: bool,
    long_fields: bool,
) -> TextTable:
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter="\t" if format == "tsv" else ",",
        quoting=csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE,
        strict=True,
    )
    header: list[str] | None = None
    rows: list[list[str]] = []
    lines: list[int] = []
    line = 1
    try:
        with _field_limit(len(text) + 1 if long_fields else None):
            for row in reader:
                if header is None and row:
                    fields = [field.strip() for field in row]
                    is_header = names_given is None or set(fields) <= set(names_given)
                    header = fields if names_given is None or is_header else list(names_given)
                    if is_header:
                        row = []
                if not row:
                    pass  # a blank line, or the header
                elif len(row) != len(header or ()):
                    raise _uneven(len(row), len(header or ()), names_given is not None, f"{name}:{line}")
                else:
                    rows.append(row)
                    lines.append(line)
                line = reader.line_num + 1
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            what = "a quote is opened and never closed"
        elif "field larger" in str(error):  # as is the rest of a large file behind such a quote
            what = f"a field has more than {csv.field_size_limit()} characters; is a quote opened and never closed?"
        else:
            what = f"malformed quotes: {error}".replace("\t", "\\t")
        raise DataError(
            what,
            where=f"{name}:{line}",
            hint='a quote in a quoted field is written twice: ""; if quotes are plain characters, data.quoting=false',
        ) from None
    names = [field for field in header or () if field]
    if duplicates := [field for field, count in Counter(names).items() if count > 1]:
        where = "data.columns" if names_given else f"{name}:1"
        raise DataError(f"duplicate column names: {some(duplicates)}", where=where, hint="rename them")
    columns = {
        field: [value.strip() for value in values]
        for field, values in zip(header or (), zip(*rows, strict=True), strict=False)
        if field and keep(field)
    }
    # pandas writes its index like this; as a feature it would give away the order of the rows.
    notes = [f"column {i} has no name and is left out" for i, field in enumerate(header or (), 1) if not field]
    return TextTable(name, tuple(names), columns, lines, notes, header=names_given is None)


def _uneven(found: int, expected: int, names_given: bool, where: str) -> DataError:
    if names_given:
        return DataError(f"{found} fields, where data.columns names {expected}", where=where, hint="name every column")
    hint = "quote fields that contain the separator" if found > expected else "is the row cut off?"
    return DataError(f"{found} fields, where the header has {expected}", where=where, hint=hint)


@contextlib.contextmanager
def _field_limit(characters: int | None) -> Iterator[None]:
    """Sets csv's limit, which is one for the whole process, and puts the old one back."""
    before = csv.field_size_limit()
    try:
        csv.field_size_limit(max(before, characters or 0))
        yield
    finally:
        csv.field_size_limit(before)


def _load_jsonl(text: str, name: str, keep: Callable[[str], bool], lists: Container[str]) -> TextTable:
    columns: dict[str, list[str]] = {}
    names: dict[str, None] = {}
    lines: list[int] = []
    absent: dict[str, int] = {}
    for number, record in json_objects(text, name):
        for key in record:
            if key not in names:
                names[key] = None
                if keep(key):
                    columns[key] = [""] * len(lines)
                    absent |= {key: lines[0]} if lines else {}
        for key, values in columns.items():
            value = record.get(key)
            if isinstance(value, list) and key in lists:
                value = json.dumps(value, ensure_ascii=False)
            values.append(_json_text(value, f"{name}:{number}:{key}"))
            if key not in record:
                absent.setdefault(key, number)
        lines.append(number)
    return TextTable(name, tuple(names), columns, lines, [], absent=absent)


def json_objects(text: str, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of JSON lines, each with its line from 1; DataError where a line is none. `name` is the file's."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            what = f"{error.msg} at character {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise DataError(
                f"invalid JSON: {what}", where=f"{name}:{number}", hint="every line must be one JSON object"
            ) from None
        if not isinstance(record, dict):
            raise DataError(
                f"this is {json_type(record)}, not an object",
                where=f"{name}:{number}",
                hint='every line must be an object such as {"age": 42, "city": "Rome"}',
            )
        yield number, record


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
