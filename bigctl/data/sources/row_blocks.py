"""Files of rows (`csv`, `tsv`, `jsonl`) -> columns of strings in files: as `read_table.load` reads them as a whole, in
memory that does not grow."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigctl.data.journal import Journal
from bigctl.data.progress import Progress
from bigctl.data.sources import content, delimited_rows, json_parts, read_table, text_parts
from bigctl.data.sources.bad_rows import BadRows
from bigctl.data.sources.column_files import TextColumns
from bigctl.data.sources.read_table import Dialect, JsonRows
from bigctl.data.sources.text_rows import TextTable
from bigctl.errors import DataError

_ROWS = 2**14
"""Rows that are in memory at once."""

_CHARACTERS = 2**23
"""Characters of such rows, at about which they are fewer."""

_HEAD = 2**20
"""Characters among which the header is looked for."""

_LONGEST = 2**25
"""Characters of one field, or line: a quote that is never closed would hold the rest of the file."""


def are_large(files: Iterable[Path], size: int) -> bool:
    """Whether one of some files has so many bytes, or a packed one a quarter."""
    try:
        sizes = [file.stat().st_size * (4 if file.suffix.lower() in content.COMPRESSED else 1) for file in files]
        return max(sizes, default=0) >= size
    except OSError:  # which reading it as a whole tells
        return False


def load(
    file: Path,
    format: str,
    keep: Callable[[str], bool],
    *,
    folder: Path,
    dialect: Dialect,
    lists: Container[str] = (),
) -> TextTable:
    """The columns that `keep` wants of a file, written into `folder`; see `read_table.load`.

    Raises:
        DataError: the file is malformed or empty.
        OSError: there is no room.
    """
    reading = Reading(file, str(file), dialect.encoding, folder)
    if format != "jsonl":
        found = _Delimited(reading, "\t" if format == "tsv" else ",", keep, dialect).load()
    elif dialect.columns:
        raise DataError("every JSON line names its own columns", where="data.columns", hint="leave data.columns out")
    else:
        found = _load_jsonl(reading, keep, lists, dialect)
    read_table.require_rows(found)
    return found


@dataclass
class Reading:
    """A file that is read more than once.

    Attributes:
        name: of it, for messages.
        folder: for what is written.
        characters: in it, after `look`.
    """

    file: Path
    name: str
    encoding: str | None
    folder: Path
    characters: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(self.folder / "looked.journal")

    def parts(self, what: str = "reading") -> Generator[str]:
        """Its text. Raises DataError for what is none."""
        with Progress(f"data: {what} {self.file.name}", self.file.stat().st_size) as progress:
            for text, _, done in text_parts.decoded(self.file, self.encoding, 0):
                yield text
                progress.update(done)

    def look(self, wanted: str = "") -> bool:
        """Count its characters and check them; says whether a text is in it."""
        if (known := self.journal.get("look")) is not None:
            self.characters = known[0]
            return bool(known[1])
        found, end, blank = False, "", True
        for text in self.parts("looking through"):
            found = found or (bool(wanted) and wanted in end + text)
            end = text[-len(wanted) :] if wanted else ""
            self.characters, blank = self.characters + len(text), blank and not text.strip()
        if blank:
            raise DataError("the file is empty", where=self.name, hint="is it the right file?")
        self.journal.note("look", [self.characters, found], now=True)
        return found

    def columns(self, name: str) -> TextColumns:
        """Those of a name, as far as an earlier start has written them."""
        return TextColumns(self.folder / f"{name}.cells")


@dataclass
class Place:
    """How far a file is read, in characters and lines."""

    characters: int = 0
    lines: int = 0

    def counted(self, lines: Iterable[str], end: int = 0) -> Iterator[str]:
        """Lines, each of them counted before it is given away, with `end` characters that it does not show."""
        for line in lines:
            self.characters += len(line) + end
            self.lines += 1
            yield line


def _lines(parts: Iterable[str], name: str) -> Iterator[str]:
    """The lines of a text, each with its line end of any kind. Raises DataError for one that is too long."""
    rest = ""
    for part in parts:
        text = rest + part
        end = max(text.rfind("\n"), text.rfind("\r", 0, len(text) - 1)) + 1  # a last \r may be half of a line end
        yield from io.StringIO(text[:end], newline="")
        rest = text[end:]
        if len(rest) > _LONGEST:
            raise DataError(f"a line has more than {_LONGEST:,} characters", where=name, hint="is it the right file?")
    yield from io.StringIO(rest, newline="")


class _Unlike(Exception):
    """Not every row ends in a separator, as the first ones do."""


@dataclass
class _Delimited:
    """A csv or tsv file, see `delimited_rows.load_delimited`."""

    reading: Reading
    separator: str
    keep: Callable[[str], bool]
    dialect: Dialect

    def load(self) -> TextTable:
        notes: list[str] = []
        self._begin(notes)
        quoting, mark = self.dialect.quoting, self.separator
        looser = self.reading.look(f'{mark} "') and quoting and mark != " "
        last_separator = True
        while True:
            try:
                return self._read(list(notes), looser, last_separator)
            except _Unlike:
                last_separator = False
            except DataError:
                if not looser:
                    raise
                looser = False

    def _begin(self, notes: list[str]) -> None:
        """What comes before the header."""
        head = ""
        for part in self.reading.parts():
            head += part
            if len(head) >= _HEAD:
                break
        text, self.skipped, self.separator = delimited_rows.beginning(head, self.separator, self.dialect, notes)
        self.before = len(head) - len(text)

    def _fields(self, looser: bool, place: Place | None = None) -> Generator[tuple[int, list[str]]]:
        place = place or Place()
        skipped = self.skipped + place.lines
        parts = text_parts.behind(self.reading.parts(), self.before + place.characters)
        lines = place.counted(_lines(parts, self.reading.name))
        quoting = self.dialect.quoting
        name = self.reading.name
        return delimited_rows.fields(lines, name, self.separator, quoting, skipped, _LONGEST, blank_before_quote=looser)

    def _read(self, notes: list[str], looser: bool, last_separator: bool) -> TextTable:
        """Raises _Unlike where it turns out that some rows end in a separator and others do not."""
        name, given = self.reading.name, self.dialect.columns
        header, start = self._header(looser, notes)
        found = _Found(self, header, last_separator, f"rows-{looser:d}{last_separator:d}")
        if not found.whole:
            begun = found.place.lines > 0
            with contextlib.closing(self._fields(looser, found.place)) as rows:
                if not begun:
                    first = next(rows, None)
                    at = f"{name}:{first[0] if first else 1}"
                    delimited_rows.check_names(header, "data.columns" if given else at)
                    if first and not start:
                        found.add(*first)
                for line, row in rows:
                    found.add(line, row)
            found.flush(whole=True)
        notes += found.notes()
        names = delimited_rows.named(header, notes)
        columns, lines = found.columns, found.columns.lines()
        count = len(lines) + found.bad.count
        notes += found.bad.left_out(count, self.dialect.skip_bad, self.dialect.bad_limit)
        left_out = found.bad.facts(count)
        return TextTable(
            name, names, columns, lines, notes, header=given is None, blocks=columns.blocks, left_out=left_out
        )

    def _header(self, looser: bool, notes: list[str]) -> tuple[list[str], int]:
        """The names of the columns, and at which row examples begin; where only all rows tell, these are read."""
        given = self.dialect.columns
        with contextlib.closing(self._fields(looser)) as rows:
            line, row = next(rows, (1, []))
        first = [field.strip() for field in row]
        if given is None:
            return first, 1
        if first and delimited_rows.names_columns(first, given):
            return first, 1
        if not first or not delimited_rows.may_replace(2**31, first):
            return list(given), 0
        step = f"header {looser:d}"
        is_header = self.reading.journal.get(step)
        if is_header is None:
            is_header = self._is_header(first, looser)
            self.reading.journal.note(step, is_header, now=True)
        if is_header:
            notes.append(delimited_rows.said_of_header(first, line))
        return list(given), int(is_header)

    def _is_header(self, first: list[str], looser: bool) -> bool:
        """Whether a first line that is none of the names that are given is a header, by all rows below it."""
        columns, place, count = self.reading.columns(f"header-{looser:d}"), Place(), 1
        if columns.states:
            *at, count = columns.states[-1]
            place = Place(*at)
        begun = place.lines > 0
        with contextlib.closing(self._fields(looser, place)) as rows:
            if not begun:
                next(rows, None)
            while block := [row for _, row in itertools.islice(rows, _ROWS)]:
                even = [row for row in block if len(row) == len(first)]
                cells = {str(at): [row[at].strip() for row in even] for at in range(len(first))}
                count += len(block)
                columns.append(cells, len(even), state=[place.characters, place.lines, count])
        values = ([cell for block in columns.blocks(str(at)) for cell in block] for at in range(len(first)))
        is_header = count > 1 and delimited_rows.replaced_header(count, first, values)
        columns.close()
        return is_header


class _Found:
    """Rows that become columns, block by block, behind those that an earlier start has written.

    Attributes:
        columns: of all rows.
        place: behind the last one.
        bad: rows that cannot be read.
        whole: whether all of the file is read.
    """

    def __init__(self, file: _Delimited, header: Sequence[str], last_separator: bool, name: str):
        self.columns, self.place, self.bad, self.whole = file.reading.columns(name), Place(), BadRows(), False
        self._file, self._header, self._width = file, header, len(header)
        self._kept = [(at, name) for at, name in enumerate(header) if name and file.keep(name)]
        self._last_separator, self._cut, self._empty = last_separator, 0, 0
        self._rows: list[list[str]] = []
        self._lines: list[int] = []
        self._characters = 0
        if self.columns.states:
            state = self.columns.states[-1]
            self.place, self.bad, self.whole = Place(*state["place"]), BadRows.from_json(state["bad"]), state["whole"]
            self._last_separator, self._cut, self._empty = state["ends"]

    def add(self, line: int, row: list[str]) -> None:
        if self._last_separator:
            if len(row) == self._width + 1 and not row[-1].strip():
                row.pop()
                self._cut += 1
            elif self._cut:
                raise _Unlike
            else:
                self._last_separator = False
        if self._width > 1 and len(row) != 1 and not any(map(str.strip, row)):
            self._empty += 1
        elif len(row) != self._width:
            file = self._file
            where, given = f"{file.reading.name}:{line}", file.dialect.columns is not None
            self.bad.add([delimited_rows.uneven(row, self._header, given, where)])
        else:
            self._lines.append(line)
            self._rows.append(row)
            self._characters += sum(map(len, row))
            if len(self._rows) >= _ROWS or self._characters >= _CHARACTERS:
                self.flush()

    def flush(self, *, whole: bool = False) -> None:
        """Write what is new; `whole` says that there is no more."""
        cells = [*zip(*self._rows, strict=True)] if self._rows else [()] * self._width
        columns = {name: [*map(str.strip, cells[at])] for at, name in self._kept}
        state = {
            "place": [self.place.characters, self.place.lines],
            "bad": self.bad.to_json(),
            "ends": [self._last_separator, self._cut, self._empty],
            "whole": whole,
        }
        self.columns.append(columns, len(self._rows), self._lines, state)
        if whole:
            self.columns.save()
        self._rows, self._lines, self._characters, self.whole = [], [], 0, whole

    def notes(self) -> list[str]:
        found = [delimited_rows.SEPARATED] if self._cut else []
        return found + ([delimited_rows.said_of_empty(self._empty)] if self._empty else [])


def _load_jsonl(reading: Reading, keep: Callable[[str], bool], lists: Container[str], dialect: Dialect) -> TextTable:
    reading.look()
    rows = JsonRows(reading.name, keep, lists, reading.characters)
    columns, place, bad, whole = reading.columns("rows"), Place(), BadRows(), False
    if columns.states:
        state = columns.states[-1]
        place, bad, whole = Place(*state["place"]), BadRows.from_json(state["bad"]), state["whole"]
        rows.go_on(state["rows"])
    if not whole:
        for number, found in itertools.chain(records(reading, place), [(0, None)]):
            if found is not None:
                rows.add(number, found)
                if len(rows) < _ROWS and rows.characters < _CHARACTERS:
                    continue
            _store(rows, columns, place, bad, whole=found is None)
        columns.save()
    numbers = columns.lines()
    count = len(numbers) + bad.count
    notes, left_out = bad.left_out(count, dialect.skip_bad, dialect.bad_limit), bad.facts(count)
    names, absent = tuple(rows.names), rows.absent
    return TextTable(
        reading.name, names, columns, numbers, notes, absent=absent, blocks=columns.blocks, left_out=left_out
    )


def records(reading: Reading, place: Place) -> Iterator[tuple[int, dict[str, Any] | DataError]]:
    """The objects behind a place, which goes on with them: of lines, or of one list."""
    with contextlib.closing(reading.parts()) as parts:
        is_list = next((part for part in parts if part.strip()), "").lstrip().startswith("[")
    if is_list:
        behind, number = place.characters, place.lines
        for at, found, end in read_table.listed(reading.parts(), reading.name, behind=behind, number=number):
            place.characters, place.lines = end, at
            yield at, found
    else:
        behind_parts = text_parts.behind(reading.parts(), place.characters)
        lines = place.counted(json_parts.lines(behind_parts, reading.name), end=1)
        yield from read_table.json_lines(lines, reading.name, place.lines + 1)


def _store(rows: JsonRows, columns: TextColumns, place: Place, bad: BadRows, *, whole: bool) -> None:
    """Write the rows that can be taken, but for bad ones."""
    values, numbers, wrong = rows.take()
    bad.add(wrong[row] for row in sorted(wrong))
    kept = [row for row in range(len(numbers)) if row not in wrong]
    if wrong:
        values = {name: [cells[row] for row in kept] for name, cells in values.items()}
    state = {
        "place": [place.characters, place.lines],
        "bad": bad.to_json(),
        "rows": rows.state(),
        "whole": whole,
    }
    columns.append(values, len(kept), [numbers[row] for row in kept], state)
