"""Pictures that stay encoded where they are, in place of an array [N, H, W, C].

They are decoded as they are asked for, by threads.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike

from bigctl import memory
from bigctl.data.pictures import crops
from bigctl.data.pictures import stores as picture_stores
from bigctl.data.pictures.stores import Store
from bigctl.data.pictures.sums import Sums
from bigctl.data.progress import Progress
from bigctl.data.sources import image_decoding
from bigctl.data.sources.image_decoding import Part
from bigctl.data.work import Work
from bigctl.errors import DataError


@dataclass(frozen=True)
class Form:
    """What is made of each picture.

    Attributes:
        height, width: [pixels].
        channels: 1 for grey, 3 for colour.
        background: "black" or "white", below what is transparent.
        resize: "stretch", "crop", or "fast" to stretch what need not be exact: what becomes of another shape.
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
    """Pictures [N, H, W, C], uint8, that stay encoded where they are.

    Attributes:
        form: what is made of them.
        store: where they are.
        sums: what they were when they were first read; None where that is not kept.
        work: takes note of what reading and decoding them takes.
    """

    form: Form
    store: Store
    sums: Sums | None = field(default=None, compare=False, repr=False)
    work: Work | None = field(default=None, compare=False, repr=False)

    ndim: ClassVar[int] = 4
    dtype: ClassVar[Any] = np.dtype(np.uint8)

    # What arrays say of themselves.

    def __len__(self) -> int:
        return len(self.store.sizes)

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
        where = self.store.name(0) if len(self) else "data"
        memory.require(self.nbytes, f"{len(self):,} decoded pictures", where=where)
        found = self.decode(np.arange(len(self)))
        return found if dtype is None else found.astype(dtype)

    def __getitem__(self, rows: slice | int | np.ndarray) -> np.ndarray:
        """Some pictures, decoded as for an evaluation: those of a slice or of integers [n], or one."""
        if isinstance(rows, slice):
            return self.decode(np.arange(len(self))[rows])
        rows = np.asarray(rows)
        return self._decoded(int(rows), self._usual) if rows.ndim == 0 else self.decode(rows)

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
        numbers = None if keys is None else crops.draws(keys)

        def decode(place: int) -> None:
            part = self._usual
            if numbers is not None:
                part = partial(crops.drawn, least=least, numbers=numbers[place])
            found[place] = self._decoded(int(rows[place]), part)

        _in_parts(decode, len(rows), threads or cores())
        return found

    @property
    def _usual(self) -> Part | None:
        """What is taken of a picture where nothing is drawn."""
        return image_decoding.part_of(self.form.resize)

    def _decoded(self, row: int, part: Part | None) -> np.ndarray:
        form = self.form
        size = (form.height, form.width)
        wanted = size if form.sized or part is not None else None
        began = time.perf_counter()
        content, name = self.store.read(row), self.store.name(row)
        if self.sums is not None and not self.sums.agrees(row, content):
            hint = "bring it back as it was; `bigctl data ... --clean` forgets what it was, for new runs on it as it is"
            raise DataError("the file is not what it was when it was first read", where=name, hint=hint)
        read = time.perf_counter()
        array = image_decoding.read_part(content, name, wanted, form.channels, form.background, part)
        if self.sums is not None:
            self.sums.keep(row, content)
        if array.shape != form.shape:  # an orientation stored after the pixels is not in the header
            raise image_decoding.differs(name, array.shape, "the first one", size)
        if self.work is not None:
            self.work.add(read=read - began, decode=time.perf_counter() - read, pictures=1)
        return array

    def verify(self) -> None:
        """Read and decode every one, some at a time. Raises DataError for the first that cannot be used."""
        with Progress("data: reading", len(self), ("pictures", 1)) as progress:
            for start in range(0, len(self), _VERIFIED):
                rows = np.arange(start, min(start + _VERIFIED, len(self)))
                self.decode(rows)
                progress.update(int(rows[-1]) + 1)

    # --------------------------------------------------------------------------------------------- parts and storing

    def take(self, rows: np.ndarray) -> EncodedImages:
        """Some of them, integers [n], in that order."""
        return replace(self, store=self.store.take(rows), sums=self.sums.take(rows) if self.sums is not None else None)

    def small(self, side: int) -> EncodedImages:
        """All of them, squeezed into a square of so many pixels, which is decoded as fast as can be."""
        return replace(self, form=replace(self.form, height=side, width=side, resize=image_decoding.FAST, sized=True))

    def columns(self) -> dict[str, np.ndarray]:
        """The arrays to be stored, by name."""
        return self.store.columns()

    def to_json(self) -> dict[str, Any]:
        """What is stored besides the arrays."""
        return {"form": asdict(self.form), **self.store.to_json()}

    @classmethod
    def stored(
        cls, columns: Mapping[str, np.ndarray], values: Mapping[str, Any], fingerprint: str, split: str
    ) -> EncodedImages:
        """What `columns` and `to_json` gave, of a split of a set."""
        store = picture_stores.stored(columns, values)
        return cls(Form(**values["form"]), store, Sums.of(fingerprint, split, len(store.sizes)))


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
