"""Fields between separators -> columns of strings: quotes, headers, and what spreadsheets write besides."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bigctl.data.files.paths import some
from bigctl.data.number_style import number
from bigctl.data.sources.text_rows import TextTable, short
from bigctl.errors import DataError

_FIRST_ROWS = 10
"""Rows that there must be before the first one is taken for a header that `data.columns` replaces."""
SEPARATED = "every row ends in a separator, which the header does not; it is left out"
_SPREADSHEET = re.compile(r"sep=(.)\r?\n")


class Written(Protocol):
    """Of a `Dialect`, what is read here."""

    @property
    def columns(self) -> Sequence[str] | None: ...

    @property
    def quoting(self) -> bool: ...

    @property
    def separator(self) -> str | None: ...


@dataclass
class _Rows:
    """The fields of each row, `header` included as the first one, and the line each begins on."""

    rows: list[list[str]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, found: Iterable[tuple[int, list[str]]]) -> _Rows:
        rows = cls()
        for line, row in found:
            rows.rows.append(row)
            rows.lines.append(line)
        return rows


def load_delimited(
    text: str, name: str, separator: str, keep: Callable[[str], bool], dialect: Written, *, all_rows: bool = False
) -> TextTable:
    """The columns that `keep` wants of a csv or tsv file, its bad rows named; `all_rows` keeps even those without any
    value. See `read_table.load`."""
    notes: list[str] = []
    text, skipped, separator = beginning(text, separator, dialect, notes)
    found = _parsed(text, name, separator, dialect.quoting, skipped)
    given = dialect.columns
    header, start = _header(found, given, notes)
    check_names(header, "data.columns" if given else f"{name}:{found.lines[0] if found.lines else 1}")
    rows, lines = found.rows[start:], found.lines[start:]
    rows = _without_last_separator(rows, len(header), notes)
    if not all_rows:
        rows, lines = _without_empty(rows, lines, len(header), notes)
    bad = {}
    for place, row in enumerate(rows):
        if len(row) != len(header):
            bad[place] = uneven(row, header, given is not None, f"{name}:{lines[place]}")
            known = row if len(row) < len(header) else []  # of a row that is cut off, such as its id
            rows[place] = [*known, *[""] * (len(header) - len(known))]
    columns = {
        field: [value.strip() for value in values]
        for field, values in zip(header, zip(*rows, strict=True), strict=False)
        if field and keep(field)
    }
    names = named(header, notes)
    return TextTable(name, names, columns, lines, notes, header=given is None, bad=bad)


def beginning(text: str, separator: str, dialect: Written, notes: list[str]) -> tuple[str, int, str]:
    """The text without what stands before its header, how many lines that was, and the separator."""
    skipped = 0
    if match := _SPREADSHEET.match(text):
        separator, skipped, text = match[1], 1, text[match.end() :]
    separator = dialect.separator or separator
    comments = 0
    if dialect.columns is None:
        while text.startswith("#") and "\n" in text:
            line, rest = text.split("\n", 1)
            if separator in line or separator not in rest.split("\n", 1)[0]:
                break
            text, comments = rest, comments + 1
    if comments:
        notes.append(f"{comments} lines of comments before the header are left out")
    return text, skipped + comments, separator


def _parsed(text: str, name: str, separator: str, quoting: bool, skipped: int) -> _Rows:
    def parsed(blank_before_quote: bool) -> _Rows:
        lines = io.StringIO(text, newline="")
        most = len(text) + 1
        return _Rows.of(fields(lines, name, separator, quoting, skipped, most, blank_before_quote=blank_before_quote))

    if quoting and separator != " " and f'{separator} "' in text:
        try:  # a quote after a blank encloses a field too, if that can be
            return parsed(True)
        except DataError:
            pass
    return parsed(False)


def fields(
    lines: Iterable[str],
    name: str,
    separator: str,
    quoting: bool,
    skipped: int,
    most: int,
    *,
    blank_before_quote: bool = False,
) -> Generator[tuple[int, list[str]]]:
    """The fields of each row, with the line that it begins on.

    Args:
        lines: of the file, each with its line end, behind `skipped` lines.
        name: of the file, for messages.
        separator, quoting: see `Dialect`.
        most: characters of a field.
        blank_before_quote: whether a quote after a blank encloses a field too.

    Raises:
        DataError: quotes that cannot be understood.
    """
    reader = csv.reader(
        lines,
        delimiter=separator,
        quoting=csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE,
        skipinitialspace=blank_before_quote,
        strict=True,
    )
    line, limit = 1, csv.field_size_limit()
    try:
        csv.field_size_limit(max(limit, most))  # one for the whole process
        for row in reader:
            if row:
                yield line + skipped, row
            line = reader.line_num + 1
    except csv.Error as error:
        open_quote = "unexpected end of data" in str(error) or "field larger than" in str(error)
        told = str(error).replace("\t", "\\t")
        what = "a quote is opened and never closed" if open_quote else f"malformed quotes: {told}"
        raise DataError(
            what,
            where=f"{name}:{line + skipped}",
            hint='a quote in a quoted field is written twice: ""; if quotes are plain characters, data.quoting=false',
        ) from None
    finally:
        csv.field_size_limit(limit)


def _header(found: _Rows, given: Sequence[str] | None, notes: list[str]) -> tuple[list[str], int]:
    """The names of the columns, and at which row examples begin."""
    first = [field.strip() for field in found.rows[0]] if found.rows else []
    if given is None:
        return first, 1
    if not first:
        return list(given), 0
    if names_columns(first, given):
        return first, 1
    even = [row for row in found.rows[1:] if len(row) == len(first)]
    values = ([row[place].strip() for row in even] for place in range(len(first)))
    if replaced_header(len(found.rows), first, values):
        notes.append(said_of_header(first, found.lines[0]))
        return list(given), 1
    return list(given), 0


def said_of_header(first: Sequence[str], line: int) -> str:
    """The note on a header that is no example."""
    return f"line {line} ({short(', '.join(first))}) names columns, which data.columns replaces; it is no example"


def names_columns(first: Sequence[str], given: Sequence[str]) -> bool:
    """Whether a first line is the header that `data.columns` repeats: in any order, but for names that are numbers."""
    if any(number(field) is not None for field in first):
        return list(first) == list(given)
    return set(first) <= set(given) and len(set(first)) == len(first)


def may_replace(rows: int, first: Sequence[str]) -> bool:
    """Whether a first line can be a header with other names, as far as that can be told without the rows below it."""
    if rows <= _FIRST_ROWS or any(number(field) is not None or len(field) > 60 for field in first):
        return False
    return len(set(first)) == len(first)


def replaced_header(rows: int, first: Sequence[str], columns: Iterable[list[str]]) -> bool:
    """Whether a first line is a header with other names: words where all else are numbers, or are often the same.

    Args:
        rows: how many there are, the first one among them.
        first: its fields.
        columns: the fields of the others, of those that have as many.
    """
    if not may_replace(rows, first):
        return False
    for title, values in zip(first, columns, strict=True):
        counts = Counter(values)
        known = [number(value) for value in counts]
        if counts and all(value is not None for value in known) and any(value == value for value in known):
            return True
        if counts and title not in counts and min(counts.values()) > 1 and len(counts) <= len(values) / 5:
            return True
    return False


def named(header: Sequence[str], notes: list[str]) -> tuple[str, ...]:
    """The columns that have a name, with a note for each that has none."""
    # pandas writes its index like this; as a feature it would give away the order of the rows.
    notes += [f"column {i} has no name and is left out" for i, field in enumerate(header, 1) if not field]
    return tuple(field for field in header if field)


def check_names(header: Sequence[str], where: str) -> None:
    if duplicates := [field for field, count in Counter(header).items() if field and count > 1]:
        raise DataError(f"duplicate column names: {some(duplicates)}", where=where, hint="rename them")


def _without_last_separator(rows: list[list[str]], width: int, notes: list[str]) -> list[list[str]]:
    """Rows as some spreadsheets write them, without the separator behind the last field of each."""
    if not rows or any(len(row) != width + 1 or row[-1].strip() for row in rows):
        return rows
    notes.append(SEPARATED)
    return [row[:-1] for row in rows]


def _without_empty(
    rows: list[list[str]], lines: list[int], width: int, notes: list[str]
) -> tuple[list[list[str]], list[int]]:
    """Rows with a value; spreadsheets write others below the last one."""
    kept = [place for place, row in enumerate(rows) if len(row) == 1 or any(field.strip() for field in row)]
    if width > 1 and len(kept) < len(rows):
        notes.append(said_of_empty(len(rows) - len(kept)))
        return [rows[place] for place in kept], [lines[place] for place in kept]
    return rows, lines


def said_of_empty(count: int) -> str:
    """The note on rows without any value."""
    return f"{count} rows without any value are left out"


def uneven(row: Sequence[str], header: Sequence[str], names_given: bool, where: str) -> DataError:
    found, expected = len(row), len(header)
    if names_given:
        return DataError(f"{found} fields, where data.columns names {expected}", where=where, hint="name every column")
    hint = "quote fields that contain the separator" if found > expected else "is the row cut off?"
    if expected == 1 and (marks := [mark for mark in ";\t|" if mark in header[0]]):
        named = "tab" if marks[0] == "\t" else marks[0]
        hint = f"the fields seem to be separated by {marks[0]!r}: set data.separator='{named}'"
    return DataError(f"{found} fields, where the header has {expected}", where=where, hint=hint)
