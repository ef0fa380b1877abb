"""Rows of a file as strings, each with the line it starts on."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bigctl.data.files.paths import some
from bigctl.errors import DataError


@dataclass(frozen=True)
class TextTable:
    """The rows of one file as strings."""

    source: str
    names: tuple[str, ...]  # of all columns
    columns: Mapping[str, list[str]]  # those that were asked for, blanks stripped
    lines: Sequence[int]  # where each row starts, from 1
    notes: list[str]
    header: bool = False  # whether the first line names the columns
    absent: dict[str, int] = field(default_factory=dict)  # of JSON lines: the first one that lacks a column
    bad: dict[int, DataError] = field(default_factory=dict)  # rows that could not be read, which are empty here
    blocks: Callable[[str], Iterator[list[str]]] | None = None  # a column some rows at a time, of columns in files
    left_out: Sequence[Mapping[str, Any]] = ()  # see `BadRows.facts`

    def parts(self, column: str) -> Iterator[list[str]]:
        """A column that is looked at from its first cell to its last, some rows at a time."""
        if self.blocks is None:
            yield self.columns[column]
        else:
            yield from self.blocks(column)

    def at(self, row: int, column: str) -> str:
        return f"{self.source}:{self.lines[row]}:{column}"

    def require(self, column: str, what: str) -> None:
        """Raises a DataError that names the likeliest mistake, where a column that was asked for is not there."""
        if column in self.columns:
            return
        hint = self.close(column)
        if len(self.names) == 1 and (found := [mark for mark in ";\t,|" if mark in self.names[0]]):
            mark = "tab" if found[0] == "\t" else found[0]
            hint = f"the fields seem to be separated by {found[0]!r}: set data.separator='{mark}'"
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
