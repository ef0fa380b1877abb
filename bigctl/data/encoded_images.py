"""Pictures that stay in their files, in place of an array [N, H, W, C]; where they are is kept, and how they were.

They are decoded as they are asked for, by threads. A file that is not as it was when it was indexed is never read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike

from bigctl import memory
from bigctl.data import crops
from bigctl.data.progress import Progress
from bigctl.data.sources import image_decoding
from bigctl.data.sources.image_decoding import Part
from bigctl.errors import DataError

COLUMNS = ("names", "name_ends", "folders", "sizes", "times", "digests")
"""Arrays of an index, as they are stored."""
UNTOLD = "times"
"""That of them which changes nothing in the pictures."""


@dataclass(frozen=True)
class Form:
    """What is made of each picture.

    Attributes:
        height, width: [pixels].
        channels: 1 for grey, 3 for colour.
        background: "black" or "white", below what is transparent.
        resize: "stretch" or "crop", what becomes of another shape.
        sized: whether pictures of another size are resized, and not refused.
    """

    height: int
    width: int
    channels: int
    background: str = "black"
    resize: str = "stretch"
    sized: bool = True

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels


@dataclass(frozen=True)
class EncodedImages:
    """Pictures [N, H, W, C], uint8, each in a file of its own.

    Attributes:
        form: what is made of them.
        roots: folders that the names are below.
        names: of all files, one after the other, in the encoding of the file system, uint8 [bytes].
        name_ends: where each name ends, int64 [N].
        folders: which of `roots`, uint8 [N].
        sizes: of the files [bytes], int64 [N].
        times: of their last change [ns], int64 [N].
        digests: of samples of their content, uint64 [N].
        listing: the file that says what was found in the folders, which is removed once it is known to be wrong.
    """

    form: Form
    roots: tuple[str, ...]
    names: np.ndarray
    name_ends: np.ndarray
    folders: np.ndarray
    sizes: np.ndarray
    times: np.ndarray
    digests: np.ndarray
    listing: str = ""

    ndim: ClassVar[int] = 4
    dtype: ClassVar[Any] = np.dtype(np.uint8)

    # What arrays say of themselves.

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self), *self.form.shape

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Of all of them, decoded."""
        return self.size

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        """All of them, decoded."""
        memory.require(self.nbytes, f"{len(self):,} decoded pictures", where=self.roots[0] if self.roots else "data")
        found = self.decode(np.arange(len(self)))
        return found if dtype is None else found.astype(dtype)

    def __getitem__(self, rows: slice | int | np.ndarray) -> np.ndarray:
        """Some pictures, decoded as for an evaluation: those of a slice or of integers [n], or one."""
        if isinstance(rows, slice):
            return self.decode(np.arange(len(self))[rows])
        rows = np.asarray(rows)
        return self.decode(np.atleast_1d(rows))[0] if rows.ndim == 0 else self.decode(rows)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(len(self)))

    # ------------------------------------------------------------------------------------------------------- decoding

    def decode(
        self, rows: np.ndarray, *, keys: np.ndarray | None = None, least: float = 1.0, threads: int | None = None
    ) -> np.ndarray:
        """Some pictures: uint8 [n, H, W, C].

        Args:
            rows: which, integers [n].
            keys: what a random part of each is drawn with, uint64 [n]; None for what an evaluation sees.
            least: share of a picture's area that a random part has at least.
            threads: that decode; None for one a core.

        Raises:
            DataError: for the first file that is not there, not as it was, or damaged.
        """
        found = np.empty((len(rows), *self.form.shape), np.uint8)
        usual = image_decoding.part_of(self.form.resize)
        numbers = None if keys is None else crops.draws(keys)

        def decode(place: int) -> None:
            part: Part | None = usual
            if numbers is not None:
                part = partial(crops.drawn, least=least, numbers=numbers[place])
            found[place] = self._decoded(int(rows[place]), part)

        _in_parts(decode, len(rows), threads or cores())
        return found

    def _decoded(self, row: int, part: Part | None) -> np.ndarray:
        file, form = self.path(row), self.form
        size = (form.height, form.width)
        wanted = size if form.sized or part is not None else None
        content = self._content(row, file)
        array = image_decoding.read_part(content, str(file), wanted, form.channels, form.background, part)
        if array.shape != form.shape:  # an orientation stored after the pixels is not in the header
            raise image_decoding.differs(str(file), array.shape, "the first one", size)
        return array

    def path(self, row: int) -> Path:
        """Where a picture is."""
        start = int(self.name_ends[row - 1]) if row else 0
        name = os.fsdecode(self.names[start : int(self.name_ends[row])].tobytes())
        return Path(self.roots[int(self.folders[row])], name)

    def _content(self, row: int, file: Path) -> bytes:
        try:
            with file.open("rb") as stream:
                status = os.fstat(stream.fileno())
                if (status.st_size, status.st_mtime_ns) == (int(self.sizes[row]), int(self.times[row])):
                    return stream.read()
            message = "the file has changed since it was indexed"
        except FileNotFoundError:
            message = "the file is not there any more"
        except OSError as error:
            message = f"the file cannot be read: {error.strerror}"
        with contextlib.suppress(OSError):  # so that the next start looks at the folders again
            Path(self.listing or os.devnull).unlink()
        hint = f"bring back {file.name} as it was, or start a new run with the pictures as they are"
        raise DataError(message, where=str(file), hint=hint)

    def verify(self) -> None:
        """Read and decode every file, some at a time. Raises DataError for the first that cannot be used."""
        with Progress("data: reading", len(self), ("pictures", 1)) as progress:
            for start in range(0, len(self), _VERIFIED):
                rows = np.arange(start, min(start + _VERIFIED, len(self)))
                self.decode(rows)
                progress.update(int(rows[-1]) + 1)

    # --------------------------------------------------------------------------------------------- parts and storing

    def take(self, rows: np.ndarray) -> EncodedImages:
        """Some of them, integers [n], in that order."""
        starts = np.concatenate([[0], self.name_ends[:-1]]).astype(np.int64)[rows] if len(rows) else np.empty(0, int)
        lengths = self.name_ends[rows] - starts
        ends = np.cumsum(lengths, dtype=np.int64)
        places = np.repeat(starts - (ends - lengths), lengths) + np.arange(int(lengths.sum()))
        columns = {name: getattr(self, name)[rows] for name in COLUMNS if name not in ("names", "name_ends")}
        return replace(self, names=self.names[places], name_ends=ends, **columns)

    def columns(self) -> dict[str, np.ndarray]:
        """The arrays to be stored, by name."""
        return {name: getattr(self, name) for name in COLUMNS}

    def to_json(self) -> dict[str, Any]:
        """What is stored besides the arrays."""
        return {"form": asdict(self.form), "roots": list(self.roots), "listing": self.listing}

    @classmethod
    def stored(cls, columns: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> EncodedImages:
        """What `columns` and `to_json` gave."""
        return cls(
            Form(**values["form"]),
            tuple(values["roots"]),
            **{name: columns[name] for name in COLUMNS},
            listing=values["listing"],
        )


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="decode")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads are not there in a process that is forked


def _in_parts(work: Callable[[int], None], count: int, threads: int) -> None:
    """`work` of each of so many places, on threads. Raises what the first of those raises that cannot be done."""
    step = max(1, min(_A_TASK, count // (4 * threads)))

    def part(start: int) -> None:
        for place in range(start, min(start + step, count)):
            work(place)

    tasks = [_pool(threads).submit(part, start) for start in range(0, count, step)]
    try:
        for task in tasks:
            task.result()
    finally:
        for task in tasks:
            task.cancel()


_VERIFIED = 64
_A_TASK = 8
"""Pictures that one thread decodes in a row, of large batches."""
