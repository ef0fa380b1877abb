"""The log of a server: lines of JSON on stderr, warnings among them, contents of requests only if asked."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
import time
import traceback
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_FRAMES = 3
_LOCK = threading.Lock()


def write(**fields: object) -> None:
    """One line."""
    line = json.dumps({"time": round(time.time(), 3), **fields}, default=str)
    with contextlib.suppress(OSError), _LOCK:  # a full disk ends no request
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def failure(error: BaseException, *, contents: bool, **fields: object) -> None:
    """What went wrong and where; the message, which may hold what was asked, only where contents are wanted."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    where = [f"{_short(frame.filename)}:{frame.lineno}" for frame in frames]
    told = {"message": str(error)[:500]} if contents else {}
    write(level="error", **fields, error=type(error).__name__, where=where, **told)


def _short(file: str) -> str:
    with contextlib.suppress(ValueError):
        return str(Path(file).relative_to(_ROOT))
    return "/".join(Path(file).parts[-3:])


class _Lines(logging.Handler):
    """Warnings as lines."""

    def emit(self, record: logging.LogRecord) -> None:
        write(level=record.levelname.lower(), logger=record.name, message=record.getMessage()[:1000])


def take_warnings() -> None:
    """Have the warnings of this process logged as lines."""
    root = logging.getLogger()
    if not any(isinstance(handler, _Lines) for handler in root.handlers):
        root.addHandler(_Lines(logging.WARNING))
