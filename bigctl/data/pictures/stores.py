"""Where encoded pictures are: each in a file of its own, or all in a few large files, such as tar shards.

A store says where each picture is and how it was when it was indexed. A file that is not as it was is never read.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from bigctl.data.pictures import records
from bigctl.data.sources import image_decoding
from bigctl.errors import DataError

RANGES, RECORDS = "ranges", "records"

_CHANGED = "the file has changed since it was indexed"

_SAMPLE = 2**12
"""Bytes at the beginning and at the end of a picture that stand for its content."""


Header = tuple[tuple[int, int], bool]
"""(height, width) of a picture, and whether it is grey."""


class Store(Protocol):
    """Encoded pictures."""

    @property
    def sizes(self) -> np.ndarray:
        """Of each [bytes], int64 [N]."""

    @property
    def digests(self) -> np.ndarray:
        """Of samples of the content of each, uint64 [N]."""

    def name(self, row: int) -> str:
        """What a picture is called in messages."""

    def read(self, row: int) -> bytes:
        """A picture as it is stored. Raises DataError where it is not there, or not as it was."""

    def take(self, rows: np.ndarray) -> Store:
        """Some of them, integers [n], in that order."""

    def columns(self) -> dict[str, np.ndarray]:
        """The arrays to be stored, by name."""

    def to_json(self) -> dict[str, Any]:
        """What is stored besides the arrays."""


@dataclass(frozen=True)
class Names:
    """Names, one after the other.

    Attributes:
        content: in the encoding of the file system, uint8 [bytes].
        ends: where each name ends, int64 [N].
    """

    content: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, names: Sequence[bytes]) -> Names:
        ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        return cls(np.frombuffer(b"".join(names), np.uint8), ends)

    def __getitem__(self, row: int) -> str:
        start = int(self.ends[row - 1]) if row else 0
        return os.fsdecode(self.content[start : int(self.ends[row])].tobytes())

    def take(self, rows: np.ndarray) -> Names:
        starts = np.concatenate([[0], self.ends[:-1]]).astype(np.int64)[rows] if len(rows) else np.empty(0, int)
        lengths = self.ends[rows] - starts
        ends = np.cumsum(lengths, dtype=np.int64)
        places = np.repeat(starts - (ends - lengths), lengths) + np.arange(int(lengths.sum()))
        return Names(self.content[places], ends)


@dataclass(frozen=True)
class Files:
    """Pictures each in a file of its own.

    Attributes:
        roots: folders that the names are below.
        names: of all files.
        folders: which of `roots`, uint8 [N].
        sizes: of the files [bytes], int64 [N].
        times: of their last change [ns], int64 [N].
        digests: of samples of their content, uint64 [N].
        listing: the file that says what was found in the folders, which is removed once it is known to be wrong.
    """

    roots: tuple[str, ...]
    names: Names
    folders: np.ndarray
    sizes: np.ndarray
    times: np.ndarray
    digests: np.ndarray
    listing: str = ""

    untold: ClassVar[tuple[str, ...]] = ("times",)

    def path(self, row: int) -> Path:
        """Where a picture is."""
        return Path(self.roots[int(self.folders[row])], self.names[row])

    def name(self, row: int) -> str:
        return str(self.path(row))

    def read(self, row: int) -> bytes:
        """The picture, from a file that may have been touched since it was indexed, and is not another. Raises
        DataError."""
        file = self.path(row)
        try:
            with file.open("rb") as stream:
                status = os.fstat(stream.fileno())
                content = stream.read() if status.st_size == int(self.sizes[row]) else b""
            if status.st_mtime_ns == int(self.times[row]) and len(content) == status.st_size:
                return content
            self._look_again()
            if content and digest_of(content) == self.digests[row]:
                return content
            message = _CHANGED
        except FileNotFoundError:
            message = "the file is not there any more"
        except OSError as error:
            message = f"the file cannot be read: {error.strerror}"
        self._look_again()
        hint = f"bring back {file.name} as it was, or run the command again: pictures of the same content go on"
        raise DataError(message, where=str(file), hint=hint)

    def _look_again(self) -> None:
        """Have the next start look at the folders again."""
        with contextlib.suppress(OSError):
            Path(self.listing or os.devnull).unlink()

    def take(self, rows: np.ndarray) -> Files:
        columns = {name: getattr(self, name)[rows] for name in ("folders", "sizes", "times", "digests")}
        return replace(self, names=self.names.take(rows), **columns)

    def columns(self) -> dict[str, np.ndarray]:
        named = {"names": self.names.content, "name_ends": self.names.ends}
        return named | {name: getattr(self, name) for name in ("folders", "sizes", "times", "digests")}

    def to_json(self) -> dict[str, Any]:
        return {"roots": list(self.roots), "listing": self.listing}


@dataclass(frozen=True)
class Held:
    """A file that holds many pictures.

    Attributes:
        path: where it is.
        bytes: its size.
        time: of its last change [ns].
        shown: what stands before the names of its pictures in messages; empty where these say it themselves.
    """

    path: str
    bytes: int
    time: int
    shown: str

    @classmethod
    def of(cls, file: Path, shown: str | None = None) -> Held:
        """A file as it is now. Raises OSError."""
        status = file.stat()
        return cls(os.path.abspath(file), status.st_size, status.st_mtime_ns, str(file) if shown is None else shown)


@dataclass(frozen=True)
class Ranges:
    """Pictures that are parts of a few files.

    Attributes:
        files: all of them.
        names: of the pictures.
        places: which of `files`, uint32 [N].
        starts: where each picture begins there [bytes], int64 [N].
        sizes: of the pictures [bytes], int64 [N].
        digests: of samples of their content, uint64 [N].
    """

    files: tuple[Held, ...]
    names: Names
    places: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    digests: np.ndarray

    kind: ClassVar[str] = RANGES
    untold: ClassVar[tuple[str, ...]] = ("names", "name_ends", "places", "starts")

    def name(self, row: int) -> str:
        shown, name = self.files[int(self.places[row])].shown, self.names[row]
        return f"{shown}:{name}" if shown else name

    def read(self, row: int) -> bytes:
        """The picture, from a file that may have been touched since it was indexed; that it is another is seen by its
        size and by the picture. Raises DataError."""
        start, end = int(self.starts[row]), int(self.starts[row] + self.sizes[row])
        found = b""
        with self.opened(row) as (descriptor, touched):
            while more := os.pread(descriptor, end - start - len(found), start + len(found)):
                found = found + more if found else more  # of more than 2 GiB at once the system gives a part
        return self._same(row, found) if touched else found

    def _same(self, row: int, content: bytes) -> bytes:
        """A picture of a file that was touched. Raises DataError where it is another."""
        if digest_of(content) != self.digests[row]:
            raise _lost(self.files[int(self.places[row])], _CHANGED)
        return content

    def look(self, row: int) -> tuple[np.uint64, Header]:
        """The digest of a picture, and its header, without reading all of it. Raises DataError."""
        start, size, name = int(self.starts[row]), int(self.sizes[row]), self.name(row)
        with self.opened(row) as (descriptor, touched):
            if touched:
                raise _lost(self.files[int(self.places[row])], _CHANGED)
            found = digest(descriptor, size, start)
            return found, image_decoding.header(io.BufferedReader(Window(descriptor, start, size)), name)

    @contextlib.contextmanager
    def opened(self, row: int) -> Iterator[tuple[int, bool]]:
        """The file that a picture is in, as a descriptor, and whether it has another time than when it was indexed.
        Raises DataError where it has another size, or is not there."""
        file = self.files[int(self.places[row])]
        try:
            descriptor = os.open(file.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError:
            raise _lost(file, "the file is not there any more") from None
        except OSError as error:
            raise _lost(file, f"the file cannot be read: {error.strerror}") from None
        try:
            status = os.fstat(descriptor)
            if status.st_size != file.bytes:
                raise _lost(file, _CHANGED)
            yield descriptor, status.st_mtime_ns != file.time
        except OSError as error:
            raise _lost(file, f"the file cannot be read: {error.strerror}") from None
        finally:
            os.close(descriptor)

    def take(self, rows: np.ndarray) -> Ranges:
        columns = {name: getattr(self, name)[rows] for name in ("places", "starts", "sizes", "digests")}
        return replace(self, names=self.names.take(rows), **columns)

    def columns(self) -> dict[str, np.ndarray]:
        named = {"names": self.names.content, "name_ends": self.names.ends}
        return named | {name: getattr(self, name) for name in ("places", "starts", "sizes", "digests")}

    def to_json(self) -> dict[str, Any]:
        files = [[file.path, file.bytes, file.time, file.shown] for file in self.files]
        return {"store": self.kind, "files": files}


@dataclass(frozen=True)
class Records(Ranges):
    """Pictures in records of a few files; `starts` are numbers of records.

    Attributes:
        field: of a record, that holds the picture.
    """

    field: str = ""

    kind: ClassVar[str] = RECORDS

    def read(self, row: int) -> bytes:
        file = self.files[int(self.places[row])]
        with self.opened(row) as (_, touched):
            try:
                found = records.read(file.path, file.time, int(self.starts[row]), self.field)
            except (ValueError, RuntimeError, IndexError) as error:
                raise _lost(file, f"the file is damaged: {error}") from None
        if len(found) != int(self.sizes[row]):
            raise _lost(file, _CHANGED)
        return self._same(row, found) if touched else found

    def look(self, row: int) -> tuple[np.uint64, Header]:
        content = self.read(row)
        return digest_of(content), image_decoding.header(content, self.name(row))

    def to_json(self) -> dict[str, Any]:
        return super().to_json() | {"field": self.field}


def _lost(file: Held, message: str) -> DataError:
    hint = f"bring back {Path(file.path).name} as it was, or run the command again: pictures of the same content go on"
    return DataError(message, where=file.path, hint=hint)


def joined(parts: Sequence[Ranges]) -> Ranges:
    """The pictures of several, one after the other."""
    first = np.cumsum([0, *(len(part.files) for part in parts)])
    ends = np.cumsum([0, *(len(part.names.content) for part in parts)])
    names = Names(
        np.concatenate([part.names.content for part in parts]),
        np.concatenate([part.names.ends + end for part, end in zip(parts, ends, strict=False)]),
    )
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("starts", "sizes", "digests")}
    places = np.concatenate([part.places + np.uint32(start) for part, start in zip(parts, first, strict=False)])
    files = tuple(file for part in parts for file in part.files)
    return replace(parts[0], files=files, names=names, places=places, **columns)


def in_one(
    file: Held, names: Sequence[bytes], starts: Sequence[int] | np.ndarray, sizes: Sequence[int] | np.ndarray
) -> Ranges:
    """Pictures in one file, whose content nobody has looked at."""
    count = len(names)
    columns = np.asarray(starts, np.int64), np.asarray(sizes, np.int64)
    return Ranges((file,), Names.of(names), np.zeros(count, np.uint32), *columns, np.zeros(count, np.uint64))


def stored(columns: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> Store:
    """The store that `columns` and `to_json` gave."""
    others = {name: array for name, array in columns.items() if name not in ("names", "name_ends")}
    names = Names(columns["names"], columns["name_ends"])
    if values.get("store") == RECORDS:
        return Records(tuple(Held(*file) for file in values["files"]), names, **others, field=values["field"])
    if values.get("store") == RANGES:
        return Ranges(tuple(Held(*file) for file in values["files"]), names, **others)
    return Files(tuple(values["roots"]), names, **others, listing=values["listing"])


def untold(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns of the store that `to_json` gave which change nothing in the pictures."""
    return Ranges.untold if values.get("store") in (RANGES, RECORDS) else Files.untold


# ------------------------------------------------------------------------------------------------------------- looking


def digest(descriptor: int, size: int, start: int = 0) -> np.uint64:
    """What the content of a picture is known by: its size, and samples of it."""
    head = os.pread(descriptor, min(size, _SAMPLE), start)
    end = start + size
    tail_start = max(start + len(head), end - _SAMPLE)
    tail = os.pread(descriptor, end - tail_start, tail_start)
    return _digest(size, head, tail)


def digest_of(content: bytes) -> np.uint64:
    """The same of a picture that is in memory."""
    return _digest(len(content), content[:_SAMPLE], content[max(_SAMPLE, len(content) - _SAMPLE) :])


def _digest(size: int, head: bytes, tail: bytes) -> np.uint64:
    found = hashlib.blake2b(b"%d\n" % size + head + tail, digest_size=8).digest()
    return np.frombuffer(found, np.uint64)[0]


class Window(io.RawIOBase):
    """A part of an open file, as a file."""

    def __init__(self, descriptor: int, start: int, size: int):
        self._descriptor, self._start, self._size, self._at = descriptor, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # which is what it is given
        wanted = max(0, min(len(buffer), self._size - self._at))
        found = os.pread(self._descriptor, wanted, self._start + self._at)
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)
