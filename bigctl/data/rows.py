"""Files of rows (`csv`, `tsv`, `jsonl`) -> columns of strings, each row with the line it starts on."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigctl.data.paths import require_file, some
from bigctl.errors import DataError

FORMATS = ("csv", "tsv", "jsonl")


@dataclass(frozen=True)
class TextTable:
    """The rows of one file as strings."""

    source: str
    names: tuple[str, ...]  # of all columns
    columns: dict[str, list[str]]  # those that were asked for, blanks stripped
    lines: list[int]  # where each row starts, from 1
    notes: list[str]

    def at(self, row: int, column: str) -> str:
        return f"{self.source}:{self.lines[row]}:{column}"


def load(source: Path | bytes, format: str, keep: Callable[[str], bool]) -> TextTable:
    """The columns that `keep` wants of a file, or of its content; DataError if it is missing, malformed or empty."""
    if format not in FORMATS:
        raise DataError(f"there is no table format {format!r}", hint=f"one of {', '.join(FORMATS)}")
    name = "input" if isinstance(source, bytes) else str(source)
    try:
        data = source if isinstance(source, bytes) else require_file(source).read_bytes()
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}", where=name) from None
    table = (_load_jsonl if format == "jsonl" else _load_csv)(_text(data, name), name, format, keep)
    if not table.lines:
        what = "there is a header but not a single row" if table.names else "there are no rows"
        raise DataError(what, where=name, hint="is it the right file?")
    return table


def _text(data: bytes, name: str) -> str:
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
    return text


def _line(data: bytes, position: int) -> int:
    before = data[:position]
    return 1 + (before.count(b"\n") or before.count(b"\r"))


def _load_csv(text: str, name: str, format: str, keep: Callable[[str], bool]) -> TextTable:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if format == "tsv" else ",", strict=True)
    header: list[str] | None = None
    rows: list[list[str]] = []
    lines: list[int] = []
    line = 1
    try:
        for row in reader:
            if not row:
                pass  # a blank line
            elif header is None:
                header = [field.strip() for field in row]
            elif len(row) != len(header):
                raise DataError(
                    f"{len(row)} fields, where the header has {len(header)}",
                    where=f"{name}:{line}",
                    hint="quote fields that contain the separator" if len(row) > len(header) else "is the row cut off?",
                )
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
            what = f"malformed quotes: {error}"
        raise DataError(
            what,
            where=f"{name}:{line}",
            hint='a quote inside a quoted field is written twice: ""',
        ) from None
    names = [field for field in header or () if field]
    if duplicates := [field for field, count in Counter(names).items() if count > 1]:
        raise DataError(f"duplicate column names: {some(duplicates)}", where=f"{name}:1", hint="rename them")
    columns = {
        field: [value.strip() for value in values]
        for field, values in zip(header or (), zip(*rows, strict=True), strict=False)
        if field and keep(field)
    }
    # pandas writes its index like this; as a feature it would give away the order of the rows.
    notes = [f"column {i} has no name and is left out" for i, field in enumerate(header or (), 1) if not field]
    return TextTable(name, tuple(names), columns, lines, notes)


def _load_jsonl(text: str, name: str, format: str, keep: Callable[[str], bool]) -> TextTable:
    columns: dict[str, list[str]] = {}
    names: dict[str, None] = {}
    lines: list[int] = []
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
                f"this is {_json_type(record)}, not an object",
                where=f"{name}:{number}",
                hint='every line must be an object such as {"age": 42, "city": "Rome"}',
            )
        for field in record:
            if field not in names:
                names[field] = None
                if keep(field):
                    columns[field] = [""] * len(lines)
        for field, values in columns.items():
            values.append(_json_text(record.get(field), f"{name}:{number}:{field}"))
        lines.append(number)
    return TextTable(name, tuple(names), columns, lines, [])


def _json_text(value: Any, where: str) -> str:
    """What the value would be in a CSV file, so that either format means the same."""
    if isinstance(value, str):
        return value.strip()
    if value is None:
        return ""
    if isinstance(value, (dict, list)):
        raise DataError(
            f"the value is {_json_type(value)}", where=where, hint="write one column per number, or use data.drop"
        )
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _json_type(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else "a number"
