"""Data is opened without being read as a whole; what was skipped is read while the first epoch trains on it.

A set that is not what was prepared (a disk that fails, a copy that was cut) is found then, not by its results; so are
large files of ready-made tokens that are not what they were when they were first read as a whole.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from bigctl.cache_root import cache_root
from bigctl.data import cache, in_place
from bigctl.data.dataset import Dataset
from bigctl.data.files import file_index
from bigctl.data.sources import tokens
from bigctl.data.text.joined_tokens import JoinedTokens
from bigctl.errors import DataError

_BLOCK = 2**22
"""Bytes that are read at once."""

_IDLE = 4.0
"""Times as long as a block took the thread is idle after it, so that training is not held up."""


@dataclass(frozen=True)
class Unread:
    """A file that was not read when data was opened.

    Attributes:
        file: its path.
        sha256: what it is known to be; None for one that was never read as a whole, which is then kept.
        folder: the prepared set that it is part of; None for a file that stays where it is.
    """

    file: Path
    sha256: str | None
    folder: Path | None = None

    def problem(self) -> DataError:
        """That it is not what it was."""
        if self.folder is None:
            hint = "bring it back as it was; what this run has learned is of damaged data"
            return DataError(file_index.DAMAGED, where=str(self.file), hint=hint)
        hint = "run the command again, which makes it anew; what this run has learned is of damaged data"
        what = f"the prepared data is damaged: {self.file.name} is not what was prepared"
        return DataError(what, where=str(self.folder), hint=hint)


class BackgroundCheck:
    """Reads files in a thread of its own, and compares their digests."""

    def __init__(self, files: Sequence[Unread]):
        self._files = files
        self._problem: DataError | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="digests", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether there is something left to be read."""
        return self._thread.is_alive()

    def require_sound(self) -> None:
        """Raises DataError where a file was found that is not what was prepared."""
        if self._problem is not None:
            raise self._problem

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        for unread in self._files:
            try:
                before = file_index.stamp(unread.file)
                found = self._digest(unread.file)
                same = file_index.stamp(unread.file) == before
            except OSError:  # removed by `data clean`, which is no damage; what is mapped stays readable
                continue
            if self._stop.is_set():
                return
            if unread.sha256 is None:
                if found is not None and same:
                    file_index.keep(unread.file, before, found)
            elif found != unread.sha256 and (same or unread.folder is not None):
                if unread.folder is not None:
                    cache.forget_sound(unread.folder)
                self._problem = unread.problem()
                return

    def _digest(self, file: Path) -> str | None:
        """Of a file; None where it cannot be read, or this is to end. Raises FileNotFoundError."""
        digest = hashlib.sha256()
        try:
            with file.open("rb") as stream:
                while True:
                    began = time.monotonic()
                    block = stream.read(_BLOCK)
                    digest.update(block)
                    if not block:
                        return digest.hexdigest()
                    if self._stop.wait(_IDLE * (time.monotonic() - began)):
                        return None
        except FileNotFoundError:
            raise
        except OSError:
            return None


def begin(dataset: Dataset) -> BackgroundCheck | None:
    """Begin to read what was not read when data was opened; None where all was, as of a small set."""
    files = [*_prepared(dataset), *_in_place(dataset)]
    return BackgroundCheck(files) if files else None


def _prepared(dataset: Dataset) -> Iterator[Unread]:
    """The files of prepared sets: of one, or of each corpus of a mixture."""
    folders = dict.fromkeys([Path(dataset.path)] if dataset.path else [])
    for columns in dataset.splits.values():
        joined = cast(object, columns.get("inputs"))
        for part in joined.parts if isinstance(joined, JoinedTokens) else ():
            if isinstance(part, np.memmap) and part.filename is not None:
                folders[Path(part.filename).parent] = None
    folders |= dict.fromkeys(Path(part.file).parent for part in in_place.token_files(dataset) if _ours(part.file))
    for folder in folders:
        for name, digest in cache.trusted_digests(folder).items():
            yield Unread(folder / name, digest, folder)


def _in_place(dataset: Dataset) -> Iterator[Unread]:
    """Large files of ready-made tokens, of which a sample was read."""
    files = [Path(part.file) for part in in_place.token_files(dataset) if not _ours(part.file)]
    for file in tokens.sampled(files):
        yield Unread(file, file_index.recalled(file))


def _ours(file: str) -> bool:
    return Path(file).is_relative_to(cache_root() / "data")
