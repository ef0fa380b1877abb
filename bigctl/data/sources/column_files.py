"""Columns of more rows than memory should hold, in files that are removed when the data is prepared.

`TextColumns` are cells as they were read, `StoredRows` what they mean: numbers, and categories by their number.
"""

from __future__ import annotations

import itertools
import os
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bigctl.data.journal import Journal

_REMEMBERED = 2**16
"""Different cells of a column that are kept once however often they occur."""


class TextColumns(Mapping[str, list[str]]):
    """Columns of strings that are read from a file whenever one is asked for. Where writing ended early it goes on
    behind the last block.

    Args:
        file: where they are written, block after block.

    Attributes:
        states: what was said with each block.
    """

    def __init__(self, file: Path):
        self._journal = Journal(file.with_suffix(".journal"))
        self._stream = os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        self._blocks: list[tuple[int, dict[str, tuple[int, int]]]] = []  # rows; name -> place and bytes
        self._names: dict[str, None] = {}
        self._last: tuple[str, list[str]] | None = None
        self._lines: list[tuple[int, int]] = []
        self.states: list[Any] = []
        while (known := self._journal.get(str(len(self._blocks)))) is not None:
            rows, places, lines, state = known
            self.states.append(state)
            self._names |= dict.fromkeys(places)
            self._blocks.append((rows, {name: (place, size) for name, (place, size) in places.items()}))
            self._lines += [tuple(lines)] if lines else []
        ends = [place + size for _, places in self._blocks for place, size in places.values()]
        self._stream.truncate(max([*ends, *(place + size for place, size in self._lines)], default=0))

    def append(
        self, columns: Mapping[str, Sequence[str]], rows: int, lines: Sequence[int] | None = None, state: object = None
    ) -> None:
        """So many rows more; a column that is new has been empty so far.

        Args:
            columns: their cells.
            rows: how many they are.
            lines: of the file, that they begin on.
            state: what a later start has to know to go on behind them, for JSON.

        Raises:
            OSError: there is no room.
        """
        places = {}
        for name, cells in columns.items():
            lengths = np.fromiter(map(len, cells), np.int32, rows).tobytes()
            places[name] = self._write(lengths + "".join(cells).encode("utf-8", "surrogatepass"))
        if lines is not None:
            self._lines.append(self._write(np.asarray(lines, np.int64).tobytes()))
        self._names |= dict.fromkeys(columns)
        said = [rows, places, self._lines[-1] if lines is not None else None, state]
        self._journal.note(str(len(self._blocks)), said, [self._stream])
        self._blocks.append((rows, places))
        self._last = None
        self.states.append(state)

    def _write(self, content: bytes) -> tuple[int, int]:
        place = self._stream.seek(0, os.SEEK_END)
        self._stream.write(content)
        return place, len(content)

    def save(self) -> None:
        """All of it outlives this process. Raises OSError."""
        self._journal.save([self._stream])

    def lines(self) -> array[int]:
        """The lines that all rows begin on."""
        found = array("q")
        for place, size in self._lines:
            self._stream.seek(place)
            found.frombytes(self._stream.read(size))
        return found

    def blocks(self, name: str) -> Iterator[list[str]]:
        """A column, some rows at a time."""
        if name not in self._names:
            raise KeyError(name)
        yield from (self.block(name, number) for number in range(len(self._blocks)))

    @property
    def sizes(self) -> list[int]:
        """Rows of each block."""
        return [rows for rows, _ in self._blocks]

    def block(self, name: str, number: int) -> list[str]:
        """The rows of a block."""
        rows, places = self._blocks[number]
        return self._read(*places[name], rows) if name in places else [""] * rows

    def _read(self, place: int, size: int, rows: int) -> list[str]:
        self._stream.seek(place)
        content = self._stream.read(size)
        ends = np.cumsum(np.frombuffer(content, np.int32, rows), dtype=np.int64).tolist()
        text = content[4 * rows :].decode("utf-8", "surrogatepass")
        return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def __getitem__(self, name: str) -> list[str]:
        if self._last is None or self._last[0] != name:
            found: list[str] = []
            known: dict[str, str] = {}
            for block in self.blocks(name):
                repeated = len(known) < _REMEMBERED
                found += [known.setdefault(cell, cell) for cell in block] if repeated else block
            self._last = name, found
        return self._last[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def close(self) -> None:
        self._stream.close()


class Chosen(Mapping[str, list[str]]):
    """Some columns of others, read no sooner than they are asked for."""

    def __init__(self, columns: Mapping[str, list[str]], left_out: Collection[str | None]):
        self._columns = columns
        self._names = [name for name in columns if name not in left_out]

    def __getitem__(self, name: str) -> list[str]:
        if name not in self._names:
            raise KeyError(name)
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True)
class Categories:
    """A column of categories.

    Attributes:
        values: each once, object [K] of str, with None for a missing one.
        numbers: which of them each row has, int32 [N].
    """

    values: np.ndarray
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Of some rows, object [n]."""
        found: np.ndarray = self.values[self.numbers[rows]]
        return found

    def counts(self, rows: np.ndarray) -> Counter[Any]:
        """How often some rows have each."""
        found = np.bincount(self.numbers[rows], minlength=len(self.values)).tolist()
        return Counter({value: count for value, count in zip(self.values.tolist(), found, strict=True) if count})


class StoredRows:
    """Typed columns in files, the rows of one file of a source after those of another. Those that an earlier start has
    written are found again.

    Args:
        folder: where the files are.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._files: dict[str, Path] = {}
        self._known: dict[str, dict[str | None, int]] = {}
        self._parts: dict[str, int] = {}
        self._ends: dict[str, int] = {}
        self._journal = Journal(folder / "columns.journal")

    def keep(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Further rows of a column, which `make` gives: float64 [N], or object [N] of str with None. Where an earlier
        start has written them they are not made again.

        Returns:
            What was written, mapped into memory: of categories their numbers, int32 [N].

        Raises:
            OSError: there is no room.
        """
        return self.keep_noted(name, lambda: (make(), None))[0]

    def keep_noted(self, name: str, make: Callable[[], tuple[np.ndarray, Any]]) -> tuple[np.ndarray, Any]:
        """The same where `make` gives what is to be said of these rows too, for JSON; an earlier start's is given
        again."""
        file = self._files.setdefault(name, self._folder / f"{len(self._files)}.column")
        part = self._parts[name] = self._parts.get(name, -1) + 1
        before, step = self._ends.get(name, 0), f"column {part} {name}"
        known = self._journal.get(step)
        written = file.stat().st_size if file.is_file() else -1
        if known is None or "said" not in known or written < before + known["bytes"]:
            values, said = make()
            known = self._written(file, name, before, values) | {"said": said}
            self._journal.note(step, known, now=True)
        elif known["new"] is not None:
            categories = self._known.setdefault(name, {})
            categories |= {value: len(categories) + number for number, value in enumerate(known["new"])}
        self._ends[name] = before + known["bytes"]
        kind = np.float64 if known["new"] is None else np.int32
        if not known["bytes"]:
            return np.empty(0, kind), known["said"]
        rows = known["bytes"] // np.dtype(kind).itemsize
        return np.memmap(file, kind, "r", before, (rows,)), known["said"]

    def _written(self, file: Path, name: str, before: int, values: np.ndarray) -> dict[str, Any]:
        new: list[str | None] | None = None
        if values.dtype.kind != "f":
            known = self._known.setdefault(name, {})
            first = len(known)
            numbers = (known.setdefault(value, len(known)) for value in values.tolist())
            values = np.fromiter(numbers, np.int32, len(values))
            new = [*itertools.islice(known, first, None)]
        with os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as stream:
            stream.truncate(before)
            stream.seek(before)
            stream.write(np.ascontiguousarray(values).data)
            stream.flush()
            os.fsync(stream.fileno())
        return {"bytes": values.nbytes, "new": new}

    def known(self, step: str) -> Any:
        """What an earlier start has found, or None."""
        return self._journal.get(step)

    def remember(self, step: str, fact: object) -> None:
        """Keep what was found for a later start. Raises OSError where there is no room."""
        self._journal.note(step, fact, now=True)

    def only(self, names: Sequence[str]) -> StoredRows:
        """The same rows, with these columns in this order."""
        found = StoredRows(self._folder)
        found._files = {name: self._files[name] for name in names}
        found._known = {name: known for name, known in self._known.items() if name in names}
        return found

    @property
    def names(self) -> list[str]:
        return [*self._files]

    def column(self, name: str) -> np.ndarray | Categories:
        """All rows of a column."""
        if name not in self._known:
            return np.memmap(self._files[name], np.float64, "r")
        values = np.empty(len(self._known[name]), object)
        values[:] = list(self._known[name])
        return Categories(values, np.memmap(self._files[name], np.int32, "r"))


class StoredTexts:
    """Columns of texts in files, the rows of one file of a source after those of another.

    Args:
        columns: of each role, such as "text", the files with its column.
        names: what the column of a role is called there, where that is not the role.
        numbers: of the tags, by the number that stands for each in the column TAGS, int32 [K].
    """

    TAGS: ClassVar[str] = "<tags>"
    """The role of tags of words, a character each."""

    def __init__(
        self,
        columns: Mapping[str, Sequence[TextColumns]],
        names: Mapping[str, str] | None = None,
        numbers: np.ndarray | None = None,
    ):
        self._named, self._numbers = names or {}, numbers
        self._blocks: dict[str, list[tuple[TextColumns, int]]] = {}
        self._starts: dict[str, np.ndarray] = {}
        for role, files in columns.items():
            self._blocks[role] = [(each, number) for each in files for number in range(len(each.sizes))]
            sizes = [size for each in files for size in each.sizes]
            self._starts[role] = np.cumsum([0, *sizes], dtype=np.int64)
        self._last: dict[str, tuple[int, list[str]]] = {}

    @property
    def names(self) -> list[str]:
        """The roles of texts."""
        return [role for role in self._blocks if role != self.TAGS]

    def only(self, role: str) -> StoredTexts:
        """The same rows, with the column of one role."""
        found = StoredTexts({}, self._named)
        found._blocks, found._starts = {role: self._blocks[role]}, {role: self._starts[role]}
        return found

    def take(self, role: str, rows: np.ndarray) -> list[str]:
        """The texts of some rows, int64 [n]; those that lie close together are read at once."""
        found: list[str] = []
        starts = self._starts[role]
        blocks = np.searchsorted(starts, rows, side="right") - 1
        ends = [*(np.flatnonzero(np.diff(blocks)) + 1).tolist(), len(rows)]
        for start, end in zip([0, *ends], ends, strict=False):
            if start < end:
                number = int(blocks[start])
                texts = self._block(role, number)
                found += [texts[place] for place in (rows[start:end] - starts[number]).tolist()]
        return found

    def tags(self, rows: np.ndarray) -> list[np.ndarray]:
        """The tags of each of some rows, int32 [words]."""
        assert self._numbers is not None  # without which there are none
        found = self.take(self.TAGS, rows)
        codes = np.frombuffer("".join(found).encode("utf-32-le", "surrogatepass"), "<u4")
        return np.split(self._numbers[codes], np.cumsum([len(row) for row in found])[:-1])

    def _block(self, role: str, number: int) -> list[str]:
        if role not in self._last or self._last[role][0] != number:
            columns, own = self._blocks[role][number]
            self._last[role] = number, columns.block(self._named.get(role, role), own)
        return self._last[role][1]
