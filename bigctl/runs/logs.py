"""What is logged while a run is trained: into its log.txt, warnings also to stderr."""

from __future__ import annotations

import contextlib
import contextvars
import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from bigctl.errors import RunError
from bigctl.files import append_regular
from bigctl.terminal import escaped, wrapped

_run: contextvars.ContextVar[Path | None] = contextvars.ContextVar("run", default=None)
"""Whose log.txt is kept in this context; other threads than those that a run has started know of none."""


class _LogFile(logging.FileHandler):
    """log.txt, which must not fail a run or fill its terminal when the disk is full, nor write elsewhere."""

    def _open(self) -> io.TextIOWrapper:
        return io.TextIOWrapper(append_regular(Path(self.baseFilename)), encoding=self.encoding, errors=self.errors)

    def handleError(self, record: logging.LogRecord) -> None:
        pass


class _Escaped(logging.Formatter):
    """Lines that a terminal can only show: who reads a log often sends it there."""

    def format(self, record: logging.LogRecord) -> str:
        return escaped(super().format(record))


class _Rest(logging.Handler):
    """What Python itself does where no handler is set, for all that is told nowhere else."""

    def emit(self, record: logging.LogRecord) -> None:
        ours = record.name.partition(".")[0] == "bigctl"
        if ours and _run.get() is not None:  # its log has it, and its warnings are shown
            return
        with contextlib.suppress(OSError):
            text = record.getMessage()
            print(f"{record.levelname.lower()}: {text}" if ours else text, file=sys.stderr, flush=True)


def show_warnings() -> None:
    """Have warnings shown once: absl, which Orbax logs with, gives the root logger a handler of its own where it has
    none, by which all that is logged would be shown a second time, with its traceback."""
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(_Rest(logging.WARNING))


class _Warnings(logging.Handler):
    """Warnings on stderr, wherever that is at the moment: a live progress line stands in front of it for a while."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            print(wrapped(f"warning: {record.getMessage()}", sys.stderr, 9), file=sys.stderr, flush=True)


@contextlib.contextmanager
def kept(path: Path) -> Iterator[None]:
    """Everything that is logged goes to log.txt; warnings of our own also to stderr. Of several runs in one process,
    each keeps what is logged in its own context."""
    root = logging.getLogger()
    try:
        handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise RunError(f"cannot be written: {error.strerror}", where=str(path)) from error
    handler.setFormatter(_Escaped("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.setLevel(logging.INFO)
    warnings = _Warnings(logging.WARNING)
    warnings.addFilter(lambda record: record.levelno == logging.WARNING)  # errors end the command and are told by it
    for each in (handler, warnings):
        each.addFilter(lambda record: _run.get() in (None, path))
    mine = _run.set(path)
    bigctl_logger = logging.getLogger("bigctl")
    bigctl_logger.setLevel(logging.INFO)
    bigctl_logger.addHandler(warnings)
    root.addHandler(handler)
    bigctl_logger.info("bigctl %s", json.dumps(sys.argv[1:]))
    try:
        yield
    finally:
        _run.reset(mine)
        bigctl_logger.removeHandler(warnings)
        root.removeHandler(handler)
        handler.close()
