"""What the content of large files is known by, kept so that they are read once and not at every start.

A file is taken to be as it was where its size, times and number on the disk are; the time at which its record was
changed last cannot be set by anybody. Whoever does not trust that has the files read anew: `distrust`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from bigctl.cache_root import cache_root
from bigctl.data.progress import Progress
from bigctl.errors import DataError
from bigctl.files import sha256, write_text

LARGE = 2**24
"""Bytes from which a file is kept in the index; smaller ones are read in no time."""

DAMAGED = "the file is damaged: its content has changed, and its size and times have not"

_MOST = 10_000
"""Files in the index; of more, those that were read longest ago are forgotten."""

_SETTLED = 10**9
"""Nanoseconds after its last change from which on a change would show in the times of a file, on any file system."""


_TRUSTED = ContextVar("trusted", default=True)


def trusted() -> bool:
    """Whether a file that seems not to have changed needs not be read again."""
    return _TRUSTED.get()


@contextlib.contextmanager
def distrust() -> Iterator[None]:
    """Read everything anew."""
    token = _TRUSTED.set(False)
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def stamp(file: Path) -> list[int]:
    """What changes with a file: size, times of change of content and record, number on the disk. Raises OSError."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def digest(file: Path) -> str:
    """The sha256 of the content of a file, from the index where it is there and trusted.

    Raises:
        OSError: where it cannot be read.
        DataError: where it changes meanwhile.
    """
    before = stamp(file)
    if before[0] < LARGE:
        return sha256(file)
    if trusted() and (known := recalled(file)) is not None:
        return known
    found = _read_whole(file, before[0])
    if stamp(file) != before:
        hint = "wait until nothing writes to it any more, or give a copy"
        raise DataError("the file changes while it is read", where=str(file), hint=hint)
    keep(file, before, found)
    return found


def recalled(file: Path) -> str | None:
    """The sha256 that is kept of a file, if that seems not to have changed since."""
    with contextlib.suppress(OSError):
        known = _read().get(os.path.realpath(file))
        if known is not None and known[:-1] == stamp(file):
            return str(known[-1])
    return None


def keep(file: Path, before: list[int], found: str) -> None:
    """Keep the sha256 of a file that had this `stamp` when it was read, unless it was changed just before."""
    if time.time_ns() - before[2] > _SETTLED:
        _keep(os.path.realpath(file), [*before, found])


def require_as_kept(file: Path) -> None:
    """Read a file of which a sha256 may be kept, and keep it. Raises DataError where it is another; OSError."""
    before = recalled(file)
    with distrust():
        found = digest(file)
    if before not in (None, found):
        raise DataError(DAMAGED, where=str(file), hint="bring it back as it was")


def _read_whole(file: Path, size: int) -> str:
    digest, done = hashlib.sha256(), 0
    with file.open("rb") as stream, Progress(f"data: checking {file.name}", size) as progress:
        while block := stream.read(2**22):
            digest.update(block)
            progress.update(done := done + len(block))
    return digest.hexdigest()


def _path() -> Path:
    return cache_root() / "data" / ".digests.json"


def _read() -> dict[str, list[int | str]]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(_path().read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return {name: value for name, value in found.items() if isinstance(value, list) and len(value) == 5}
    return {}


def _keep(key: str, value: list[int | str]) -> None:
    """Where the cache cannot be written, the file is read again next time."""
    with contextlib.suppress(OSError, UnicodeError):
        known = _read()
        known.pop(key, None)
        _path().parent.mkdir(parents=True, exist_ok=True)
        write_text(_path(), json.dumps(dict([*known.items(), (key, value)][-_MOST:])))
