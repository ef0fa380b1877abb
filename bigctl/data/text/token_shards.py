"""Tokens that stay in the files they were written to, as one array: mapped into memory, and never read as a whole.

Every token that is read is held against the vocabulary, and every file against what it was when it was looked at, so
that what a model sees is what was prepared.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bigctl.errors import DataError

_MAPPED = 128
"""Files that are open at once; of more, the one that was needed longest ago is closed."""

_RESIDENT = 2**28
"""Bytes of files that may count as memory of this process before they are let go; the system keeps them as it likes."""

_AROUND = 2**17
"""Bytes that one place of a file may bring into memory besides those wanted: pages around it."""

MANY = 2**26
"""Tokens above which they are never read as a whole: no copy is kept on the devices, and what is held against the
vocabulary at once are blocks spread evenly."""

_BLOCK = 2**16  # tokens


@dataclass(frozen=True)
class Part:
    """A run of tokens in one file.

    Attributes:
        file: its path.
        dtype: of a token, as numpy writes it, such as "<u2".
        header: bytes before the first token of the file.
        start: place of the first token of the run, counted from that one.
        count: tokens of the run.
        size: bytes of the whole file.
        modified: when it was changed last [ns].
        digest: what its content is known by.
    """

    file: str
    dtype: str
    header: int
    start: int
    count: int
    size: int
    modified: int
    digest: str

    @property
    def width(self) -> int:
        return np.dtype(self.dtype).itemsize

    @property
    def offset(self) -> int:
        """Byte of the first token of the run."""
        return self.header + self.start * self.width


@dataclass
class TokenShards:
    """Parts of files, one after the other, in place of an array [T].

    Attributes:
        parts: none of them empty.
        vocab: tokens are below it; None where that is not known.
    """

    parts: Sequence[Part]
    vocab: int | None = None
    _maps: dict[str, tuple[mmap.mmap, np.ndarray]] = field(default_factory=dict, repr=False)
    _touched: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        self._begins = np.concatenate([[0], np.cumsum([part.count for part in self.parts], dtype=np.int64)])
        self._begins = self._begins.astype(np.int64)
        self.dtype = np.result_type(*(np.dtype(part.dtype) for part in self.parts)) if self.parts else np.dtype("<u2")

    # What arrays say of themselves.

    ndim = 1

    def __len__(self) -> int:
        return int(self._begins[-1])

    @property
    def shape(self) -> tuple[int]:
        return (len(self),)

    @property
    def nbytes(self) -> int:
        return len(self) * self.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of it, read from the files."""
        found = np.empty(len(self), self.dtype)
        for part, start, stop in zip(self.parts, self._begins[:-1], self._begins[1:], strict=True):
            self._require_unchanged(part)
            read = np.fromfile(part.file, part.dtype, part.count, offset=part.offset)
            if len(read) != part.count:
                raise _changed(part.file)
            self._require_known(read, part, lambda place: place)
            found[start:stop] = read
        return found if dtype is None else found.astype(dtype)

    def __getitem__(self, places: Any) -> np.ndarray:
        """Tokens at some places, integers of any shape, or a slice of neighbouring ones.

        Raises:
            DataError: for a token that is not of the vocabulary, and a file that is not what it was.
        """
        if isinstance(places, slice):
            start, stop, step = places.indices(len(self))
            if step != 1:
                raise ValueError("only neighbouring tokens can be cut out")
            places = np.arange(start, max(start, stop), dtype=np.int64)
        places = np.asarray(places)
        if len(self.parts) == 1:
            return self._read(self.parts[0], places).astype(self.dtype, copy=False)
        owner = np.searchsorted(self._begins, places, side="right") - 1
        found = np.empty(places.shape, self.dtype)
        for number in np.unique(owner).tolist():
            own = owner == number
            found[own] = self._read(self.parts[number], places[own] - self._begins[number])
        return found

    def _read(self, part: Part, places: np.ndarray) -> np.ndarray:
        self._require_unchanged(part)
        values = self._mapped(part)
        found = np.asarray(values[places])
        self._require_known(found, part, lambda place: int(places.ravel()[place]))
        self._let_go(found.nbytes + _AROUND * max(1, places.size // max(1, places.shape[-1] if places.ndim else 1)))
        return found

    # ------------------------------------------------------------------------------------------------------ files

    def _mapped(self, part: Part) -> np.ndarray:
        """All tokens of a part, mapped; the map outlives its place among the open ones for as long as it is read."""
        key = f"{part.file}\0{part.offset}"
        opened = self._maps.pop(key, None)
        if opened is None:
            try:
                with open(part.file, "rb") as stream:
                    mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
                with contextlib.suppress(OSError, AttributeError):
                    mapped.madvise(mmap.MADV_RANDOM)
                opened = mapped, np.frombuffer(mapped, part.dtype, part.count, part.offset)
            except (OSError, ValueError) as error:  # a file that is shorter by now
                raise _unreadable(part.file, error) from error
        self._maps[key] = opened
        while len(self._maps) > _MAPPED:
            with contextlib.suppress(KeyError, RuntimeError, StopIteration):  # another thread may be as quick
                del self._maps[next(iter(self._maps))]
        return opened[1]

    def _require_unchanged(self, part: Part) -> None:
        """Before it is read: what a map has lost would else end the process."""
        try:
            status = os.stat(part.file)
        except OSError as error:
            raise _unreadable(part.file, error) from error
        if (status.st_size, status.st_mtime_ns) != (part.size, part.modified):
            raise _changed(part.file)

    def _let_go(self, count: int) -> None:
        """Files that are mapped count as memory of the process as they are read: give that back now and then."""
        self._touched += count
        if self._touched > _RESIDENT:
            self._touched = 0
            for mapped, _ in list(self._maps.values()):
                with contextlib.suppress(OSError, AttributeError, ValueError):
                    mapped.madvise(mmap.MADV_DONTNEED)

    # ------------------------------------------------------------------------------------------------- vocabulary

    def _require_known(self, found: np.ndarray, part: Part, place_of: Any) -> None:
        if self.vocab is None or not found.size or (found.max() < self.vocab and found.min() >= 0):
            return
        wrong = int(np.flatnonzero((found.ravel() >= self.vocab) | (found.ravel() < 0))[0])
        place = place_of(wrong) + part.start
        raise DataError(
            f"token {int(found.ravel()[wrong]):,} at place {place:,} is not in the vocabulary of {self.vocab:,}",
            where=part.file,
            hint="recipe.tokenizer must be the one that made the tokens (of type ids: a larger recipe.tokenizer.size), "
            "and data.dtype that of files that do not say theirs",
        )

    def check(self) -> None:
        """Hold tokens against the vocabulary: all of few, of many a sample of blocks. Raises DataError."""
        for start in self._blocks():
            self[start : start + _BLOCK]

    def blocks(self, part: Part, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """The tokens of a part in order, so many at once, each block with its place in the part. Raises as indexing."""
        for start in range(0, part.count, size):
            self._require_unchanged(part)
            count = min(size, part.count - start)
            read = np.fromfile(part.file, part.dtype, count, offset=part.offset + start * part.width)
            if len(read) != count:
                raise _changed(part.file)
            self._require_known(read, part, lambda place, start=start: start + place)
            yield start, read

    def _blocks(self) -> Iterator[int]:
        if len(self) <= MANY:
            yield from range(0, len(self), _BLOCK)
        else:
            yield from np.linspace(0, len(self) - _BLOCK, 256).astype(np.int64).tolist()

    # ------------------------------------------------------------------------------------------- parts and storing

    def between(self, start: int, stop: int) -> TokenShards:
        """The tokens [start, stop), in the same files."""
        kept = []
        for part, begin in zip(self.parts, self._begins[:-1].tolist(), strict=True):
            first, last = max(start - begin, 0), min(stop - begin, part.count)
            if first < last:
                kept.append(replace(part, start=part.start + first, count=last - first))
        return TokenShards(kept, self.vocab)

    @classmethod
    def joined(cls, shards: Sequence[TokenShards]) -> TokenShards:
        """Some of them one after the other."""
        return cls([part for each in shards for part in each.parts], shards[0].vocab if shards else None)

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(part) for part in self.parts]

    @classmethod
    def from_json(cls, parts: list[dict[str, Any]], vocab: int | None) -> TokenShards:
        return cls([Part(**part) for part in parts], vocab)


def fingerprint(parts: list[dict[str, Any]]) -> list[list[Any]]:
    """What of stored parts makes the tokens what they are: not where the files lie."""
    return [[part[name] for name in ("digest", "dtype", "header", "start", "count")] for part in parts]


def _changed(file: str) -> DataError:
    hint = "bring it back as it was, or run the command again: tokens of the same content go on"
    return DataError("the file has changed since it was prepared", where=file, hint=hint)


def _unreadable(file: str, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError):
        what = "the file is not there any more"
    else:
        what = f"the file cannot be read: {getattr(error, 'strerror', None) or error}"
    return DataError(what, where=file, hint=f"bring back {Path(file).name} as it was, or start a new run")
