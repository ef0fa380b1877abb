"""Columns of more rows than memory should hold, in files that are removed when the data is prepared.

`TextColumns` are cells as they were read, `StoredRows` what they mean: numbers, and categories by their number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_REMEMBERED = 2**16
"""Different cells of a column that are kept once however often they occur."""


class TextColumns(Mapping[str, list[str]]):
    """Columns of strings that are read from a file whenever one is asked for.

    Args:
        file: where they are written, block after block.
    """

    def __init__(self, file: Path):
        self._stream = file.open("w+b")
        self._blocks: list[tuple[int, dict[str, tuple[int, int]]]] = []  # rows; name -> place and bytes
        self._names: dict[str, None] = {}
        self._last: tuple[str, list[str]] | None = None

    def append(self, columns: Mapping[str, Sequence[str]], rows: int) -> None:
        """So many rows more; a column that is new has been empty so far. Raises OSError where there is no room."""
        places = {}
        for name, cells in columns.items():
            lengths = np.fromiter(map(len, cells), np.int32, rows).tobytes()
            content = lengths + "".join(cells).encode("utf-8", "surrogatepass")
            places[name] = (self._stream.seek(0, 2), len(content))
            self._stream.write(content)
        self._names |= dict.fromkeys(columns)
        self._blocks.append((rows, places))
        self._last = None

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
    """Typed columns in files, the rows of one file of a source after those of another.

    Args:
        folder: where the files are.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._files: dict[str, Path] = {}
        self._known: dict[str, dict[str | None, int]] = {}

    def keep(self, name: str, values: np.ndarray) -> np.ndarray:
        """Further rows of a column: float64 [N], or object [N] of str with None. Gives what was written, mapped into
        memory: of categories their numbers, int32 [N]. Raises OSError where there is no room."""
        file = self._files.setdefault(name, self._folder / f"{len(self._files)}.column")
        before = file.stat().st_size if file.is_file() else 0
        if values.dtype.kind != "f":
            known = self._known.setdefault(name, {})
            numbers = (known.setdefault(value, len(known)) for value in values.tolist())
            values = np.fromiter(numbers, np.int32, len(values))
        with file.open("ab") as stream:
            stream.write(np.ascontiguousarray(values).data)
        return np.memmap(file, values.dtype, "r", before)

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
    """

    def __init__(self, columns: Mapping[str, Sequence[TextColumns]], names: Mapping[str, str] | None = None):
        self._named = names or {}
        self._blocks: dict[str, list[tuple[TextColumns, int]]] = {}
        self._starts: dict[str, np.ndarray] = {}
        for role, files in columns.items():
            self._blocks[role] = [(each, number) for each in files for number in range(len(each.sizes))]
            sizes = [size for each in files for size in each.sizes]
            self._starts[role] = np.cumsum([0, *sizes], dtype=np.int64)
        self._last: dict[str, tuple[int, list[str]]] = {}

    @property
    def names(self) -> list[str]:
        return [*self._blocks]

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

    def _block(self, role: str, number: int) -> list[str]:
        if role not in self._last or self._last[role][0] != number:
            columns, own = self._blocks[role][number]
            self._last[role] = number, columns.block(self._named.get(role, role), own)
        return self._last[role][1]
