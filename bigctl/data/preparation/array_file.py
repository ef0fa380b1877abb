"""Arrays in files of numpy, written by blocks; where writing ended early it goes on behind the last block."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from bigctl.data.journal import Journal
from bigctl.files import sha256

_BLOCK = 2**22
"""Bytes that are read at once."""


class ArrayFile:
    """The file that `numpy.save` would write of an array whose rows come in blocks.

    Args:
        file: where.
        dtype, shape: of the whole array; without a shape it has one dimension, as long as what is written.
        rows: that are there already; what is behind them is removed.

    Attributes:
        rows: that are written.
        sha256: of the file, once it is closed.
    """

    def __init__(self, file: Path, dtype: np.dtype, shape: Sequence[int] | None = None, rows: int = 0):
        self.name, self.rows, self.sha256 = file.name, rows, ""
        self._file, self._dtype, self._grows = file, dtype, shape is None
        header = _header(dtype, (0,) if shape is None else shape)
        self._digest = hashlib.sha256(header)
        self.stream = os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        if not rows:
            self.stream.truncate(0)
            self.stream.write(header)
            return
        self.stream.seek(len(header))
        left = rows * dtype.itemsize * (1 if shape is None else int(np.prod(shape[1:], dtype=np.int64)))
        self.stream.truncate(len(header) + left)
        while not self._grows and (block := self.stream.read(_BLOCK)):
            self._digest.update(block)
        self.stream.seek(0, os.SEEK_END)

    def __enter__(self) -> ArrayFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._grows and kind is None:  # the header is as long for any number of rows
            self.stream.seek(0)
            self.stream.write(_header(self._dtype, (self.rows,)))
        self.stream.close()
        if kind is None:
            self.sha256 = sha256(self._file) if self._grows else self._digest.hexdigest()

    def write(self, rows: np.ndarray) -> None:
        """The next rows. Raises OSError where there is no room."""
        content = np.ascontiguousarray(rows, self._dtype).view(np.uint8).data if rows.size else b""
        self.rows += len(rows)
        if not self._grows:
            self._digest.update(content)
        self.stream.write(content)


class Place(NamedTuple):
    """A file, and what array it is to hold: see `ArrayFile`."""

    file: Path
    dtype: np.dtype
    shape: Sequence[int] | None = None


class ArrayFiles:
    """Arrays that are written together, block by block, and found again up to their last block by a later start.

    Args:
        journal: where it is kept how far they are.
        step: what to call them there.
        places: of the arrays.

    Attributes:
        done: examples that are written.
        facts: what was counted of them.
    """

    def __init__(self, journal: Journal, step: str, places: Sequence[Place]):
        noted = journal.get(step)
        known = noted or {"done": 0, "rows": [0] * len(places), "facts": {}}
        self.done: int = known["done"]
        self.facts: dict[str, Any] = known["facts"]
        self._journal, self._step, self._new = journal, step, noted is None
        self._files = [ArrayFile(*place, rows=rows) for place, rows in zip(places, known["rows"], strict=True)]

    def __enter__(self) -> ArrayFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None and self._new:
            self._note(now=True)
        for file in self._files:
            file.__exit__(kind, error, at)

    @property
    def digests(self) -> dict[str, str]:
        """sha256 of the files by their names, once they are closed."""
        return {file.name: file.sha256 for file in self._files}

    def write(self, examples: int, blocks: Sequence[np.ndarray], facts: Mapping[str, Any] | None = None) -> None:
        """What so many examples more are in each of the files, and what was counted by now. Raises OSError."""
        for file, block in zip(self._files, blocks, strict=True):
            file.write(block)
        self.done += examples
        self.facts, self._new = dict(facts or {}), True
        self._note()

    def _note(self, *, now: bool = False) -> None:
        fact = {"done": self.done, "rows": [file.rows for file in self._files], "facts": self.facts}
        self._journal.note(self._step, fact, [file.stream for file in self._files], now=now)


def _header(dtype: np.dtype, shape: Sequence[int]) -> bytes:
    header = io.BytesIO()
    described = {"descr": dtype.str, "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue()
