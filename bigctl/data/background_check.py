"""Prepared data is opened without being read; what was skipped is read while the first epoch trains on it.

A set that is not what was prepared (a disk that fails, a copy that was cut) is found then, not by its results.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from bigctl.data import cache
from bigctl.errors import DataError

_BLOCK = 2**22
"""Bytes that are read at once."""

_IDLE = 4.0
"""Times as long as a block took the thread is idle after it, so that training is not held up."""


class BackgroundCheck:
    """Reads the files of a prepared set in a thread of its own, and compares their digests.

    Args:
        folder: where the set is.
        digests: sha256 of its files, by their names.
    """

    def __init__(self, folder: Path, digests: Mapping[str, str]):
        self._folder, self._digests = folder, digests
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
        for name, expected in self._digests.items():
            try:
                found = self._digest(self._folder / name)
            except FileNotFoundError:  # removed by `data clean`, which is no damage; what is mapped stays readable
                return
            if self._stop.is_set():
                return
            if found != expected:
                cache.forget_sound(self._folder)
                hint = "run the command again, which makes it anew; what this run has learned is of damaged data"
                what = f"the prepared data is damaged: {name} is not what was prepared"
                self._problem = DataError(what, where=str(self._folder), hint=hint)
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


def begin(path: str) -> BackgroundCheck | None:
    """Begin to read a prepared set that was opened without that; None for a small one, which was read."""
    folder = Path(path)
    digests = cache.trusted_digests(folder) if path else {}
    return BackgroundCheck(folder, digests) if digests else None
