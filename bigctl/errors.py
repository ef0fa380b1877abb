"""The errors a user can meet, each with its exit code. `cli.main` renders them; nothing else prints them."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import traceback
from collections.abc import Iterator

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


class BigctlError(Exception):
    """A failure that can be explained in one line.

    Args:
        message: what is wrong, in one sentence, naming the value that was found.
        where: the file, row, or configuration key it was found in.
        hint: what to do about it, usually a command or an override to try.
    """

    exit_code = 1

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None):
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        text = f"{text} ({self.hint})" if self.hint else text
        return text.replace("\n", "\\n").replace("\r", "\\r")  # what a file holds may be called anything

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows, in place of all frames: the line that called bigctl, and the error. IPython asks by
        this name."""
        frames = traceback.extract_tb(self.__traceback__)
        ours = next((n for n, frame in enumerate(frames) if frame.filename.startswith(_PACKAGE)), 0)
        called = [f"line {frame.lineno}: {frame.line}" for frame in frames[:ours][-1:] if frame.line]
        return [*called, f"{type(self).__name__}: {self}"]


class ConfigError(BigctlError):
    """The command line or a configuration file is wrong; nothing was started."""

    exit_code = 2


class DataError(BigctlError):
    """The data cannot be found, read, or used as configured; nothing was started."""

    exit_code = 2


class RunError(BigctlError):
    """A run directory cannot be used as asked: missing, unreadable, or of another experiment."""

    exit_code = 2


class TrainingFailed(BigctlError):
    """Training started and could not go on: it diverged, or a checkpoint could not be written."""

    exit_code = 1


class Diverged(TrainingFailed):
    """The loss, gradient or weights are not finite, or spiked; and it was not to be, or could not be, got over."""


class RunHeld(BigctlError):
    """Another process is using the run directory."""

    exit_code = 5


class Stuck(TrainingFailed):
    """No step has come for longer than `train.step_timeout`, or another process of the run is gone or did not come; the
    last checkpoint is as it was, and the same command goes on from it."""

    exit_code = 6


class Preempted(BigctlError):
    """Training was asked to stop (SIGTERM 75, Ctrl-C 130); its checkpoint is saved."""

    def __init__(self, message: str, *, exit_code: int, **details: str | None):
        super().__init__(message, **details)
        self.exit_code = exit_code


def explained(error: Exception) -> BigctlError | None:
    """An error in one line, where it is one of ours or says that memory has run out; None for any other."""
    if isinstance(error, BigctlError):
        return error
    text = " ".join(str(error).split())
    of_device = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError") and re.search(_NO_MEMORY, text)
    if isinstance(error, MemoryError) or of_device:
        hint = "a smaller model, a smaller train.batch_size, train.accumulate, or smaller images and texts take less"
        return BigctlError(f"there is not enough memory: {text[:200] or 'none is left'}", hint=hint)
    if isinstance(error, OSError) and isinstance(error.filename, str | bytes) and error.errno in _OF_A_FILE:
        return BigctlError(f"cannot be read or written: {error.strerror}", where=os.fsdecode(error.filename))
    return None


@contextlib.contextmanager
def named_as_arguments() -> Iterator[None]:
    """Around what Python calls: an error within speaks of arguments, where it would name flags of the command line.

    Commands to type, which begin with bigctl or stand between backticks, stay as they are.
    """
    try:
        yield
    except BigctlError as error:
        error.message = _without_flags(error.message)
        error.where, error.hint = (text and _without_flags(text) for text in (error.where, error.hint))
        error.args = (error.message,)
        raise


def _without_flags(text: str) -> str:
    text = re.sub(r"^command line\b", "overrides", text)
    if text.startswith("bigctl "):
        return text
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(piece if place % 2 else _FLAG.sub(_as_argument, piece) for place, piece in enumerate(pieces))


_ARGUMENTS = {
    "run-dir": "run_dir", "name": "run_dir", "plugin": "plugins", "config-dir": "config_dirs",
    "allow-drift": "allow_drift", "resume": "resume", "threshold": "threshold", "step": "step", "png": "plot",
}  # fmt: skip
"""What the flags of the command line are called in Python."""
_FLAG = re.compile(
    r"--allow-drift (?P<keys>[a-z][\w.]*(?: --allow-drift [a-z][\w.]*)*)|--resume (?P<resume>auto|never|must)"
    rf"|--(?P<flag>{'|'.join(_ARGUMENTS)})\b(?!-)"
)


def _as_argument(found: re.Match[str]) -> str:
    if found["keys"]:
        return f"allow_drift={found['keys'].split(' --allow-drift ')}"
    return f'resume="{found["resume"]}"' if found["resume"] else _ARGUMENTS[found["flag"]]


_OF_A_FILE = (
    errno.EACCES, errno.EPERM, errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.ELOOP,
    errno.ENAMETOOLONG,
)  # fmt: skip
"""What can be wrong with a file, or with the place where it is; all else may be a fault of ours."""
_NO_MEMORY = r"RESOURCE_EXHAUSTED|[Oo]ut of memory"
