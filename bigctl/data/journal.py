"""What is finished of a long preparation, on the disk: what a process that is killed leaves to the next one."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

_EVERY = 1.0
"""Seconds between two times at which what was written is made to outlive this process, and the machine."""


class Journal:
    """Facts by key, of which the last one counts. A line that is cut off is no fact.

    Args:
        file: where it is kept, a line of JSON a fact.
    """

    def __init__(self, file: Path):
        self._file = file
        self._known: dict[str, Any] = {}
        self._new: list[str] = []
        self._last = time.monotonic()
        whole = 0
        with contextlib.suppress(OSError, ValueError, TypeError):
            content = file.read_bytes()
            for line in content.splitlines(keepends=True):
                if not line.endswith(b"\n"):
                    break
                key, fact = json.loads(line)
                self._known[key] = fact
                whole += len(line)
            if whole < len(content):
                os.truncate(file, whole)

    def get(self, key: str) -> Any:
        """The fact of a key; None where there is none."""
        return self._known.get(key)

    def note(self, key: str, fact: object, streams: Iterable[IO[bytes]] = (), *, now: bool = False) -> None:
        """Keep a fact about what was written into some files: soon, or `now`. Raises OSError where there is no room."""
        self._known[key] = fact
        self._new.append(json.dumps([key, fact], ensure_ascii=True) + "\n")
        if now or time.monotonic() - self._last >= _EVERY:
            self.save(streams)

    def save(self, streams: Iterable[IO[bytes]] = ()) -> None:
        """Keep all facts so far, once what they are about is on the disk. Raises OSError."""
        if not self._new:
            return
        for stream in streams:
            stream.flush()
            os.fsync(stream.fileno())
        with self._file.open("ab") as file:
            file.write("".join(self._new).encode())
        self._new = []
        self._last = time.monotonic()
