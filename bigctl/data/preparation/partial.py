"""The folder in which a large set is prepared over several starts, until it is whole."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from bigctl.errors import DataError
from bigctl.terminal import tell

LOCK = "lock"


def partial_folder(folder: Path) -> Path:
    """Where a set that belongs into `folder` is made."""
    return folder.with_name(f".{folder.name}.partial")


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[Path | None]:
    """That folder, for this process alone; None where another process, which was waited for, has made the set whole.

    What is in it stays there if anything fails. Raises OSError.
    """
    work, before = partial_folder(folder), _number(folder)
    while True:
        if _number(folder) not in (before, None):
            yield None
            return
        work.mkdir(parents=True, exist_ok=True)
        try:
            lock = (work / LOCK).open("a")
        except FileNotFoundError:  # another process has just moved it
            continue
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                tell(f"data: another process is preparing {folder.name}; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is(lock.fileno(), work / LOCK):
                continue
            if _number(folder) not in (before, None):  # made whole after the first look, before there was a new folder
                shutil.rmtree(work, ignore_errors=True)
                yield None
                return
            yield work
            return


def _is(descriptor: int, file: Path) -> bool:
    """Whether an open file is still the one of that name."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), file.stat())
    return False


def forget(folder: Path) -> None:
    """Remove what was prepared so far."""
    shutil.rmtree(partial_folder(folder), ignore_errors=True)


def require(unchanged: bool, folder: Path) -> None:
    """Raises DataError where the files are not what they were when the preparation began, which is then forgotten."""
    if not unchanged:
        forget(folder)
        hint = "wait until nothing writes to it any more, or give a copy"
        raise DataError("a file has changed while it was read", where="data.path", hint=hint)


def _number(folder: Path) -> int | None:
    with contextlib.suppress(OSError):
        return folder.stat().st_ino
    return None
