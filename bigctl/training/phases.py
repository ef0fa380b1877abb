"""What a training process tells a crash test about itself: what it is doing now, and what it trained on.

Off, and free, unless the variable BIGCTL_WITNESS names a file. That file then holds one line of fixed length: what goes
on, whether a checkpoint is being saved besides, and the step. After SIGKILL it is as the process left it. And the run
gets a `batches.jsonl` with a digest of what each dispatched step was given.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bigctl.training.tracking.writers import JsonLines

VARIABLE = "BIGCTL_WITNESS"
START, STEP, EVAL, SAVE, END = PHASES = ("start-up", "step", "eval", "save", "end")
"""START lasts until the first step is dispatched, END from the last checkpoint on: test scores, summary.json."""
_LENGTH = 32


@dataclass(frozen=True)
class Moment:
    """What a process was doing: one of PHASES, and after which step. SAVE wins: it overlaps others."""

    phase: str
    step: int


class _PhaseFile:
    """The file, and what is in it. Safe for the thread that commits checkpoints."""

    def __init__(self, path: str):
        self.activity, self.saving, self.step = START, 0, 0
        self._lock = threading.Lock()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self.change()

    def change(self, activity: str | None = None, *, step: int | None = None, saving: int = 0) -> None:
        with self._lock:
            self.activity = activity or self.activity
            self.saving += saving
            self.step = self.step if step is None else step
            line = f"{self.activity} {self.saving} {self.step}".ljust(_LENGTH - 1) + "\n"
            os.pwrite(self._file, line.encode(), 0)


_file: _PhaseFile | None = None


def begin() -> bool:
    """Open the file that BIGCTL_WITNESS names, if it does; whether anybody wants to know."""
    global _file
    path = os.environ.get(VARIABLE)
    if path and _file is None:
        _file = _PhaseFile(path)
    return _file is not None


def now(activity: str, step: int | None = None) -> None:
    """Say what begins."""
    if _file is not None:
        _file.change(activity, step=step)


@contextlib.contextmanager
def during(activity: str) -> Iterator[None]:
    """Say what goes on within, and afterwards what went on before."""
    if _file is None:
        yield
        return
    before = _file.activity
    _file.change(activity)
    try:
        yield
    finally:
        _file.change(before)


def saving(count: int) -> None:
    """One more (1) or one less (-1) checkpoint is being written."""
    if _file is not None:
        _file.change(saving=count)


def read_phase(path: Path) -> Moment:
    """What the process that writes to `path` is doing, or was when it ended. Before it says anything, it starts up."""
    try:
        activity, saving, step = path.read_text(encoding="ascii").split()
        return Moment(SAVE if int(saving) else activity, int(step))
    except (OSError, ValueError):
        return Moment(START, 0)


# ----------------------------------------------------------------------------------------------------------- batches


class BatchDigests:
    """An observer of a feed that notes in `lines` what every step is given.

    Args:
        lines: of `batches.jsonl`.
        step: updates done so far.
    """

    def __init__(self, lines: JsonLines, *, step: int):
        self.lines, self.step = lines, step

    def __call__(self, given: Mapping[str, np.ndarray]) -> None:
        self.step += 1
        self.lines.write(self.step, {"sha256": digest(given)})

    def cut(self, step: int) -> None:
        self.step = step
        self.lines.cut(step)

    def close(self) -> None:
        self.lines.close()


def digest(columns: Mapping[str, np.ndarray]) -> str:
    """sha256 of named arrays: names, dtypes, shapes and every byte."""
    found = hashlib.sha256()
    for name, values in sorted(columns.items()):
        found.update(f"{name} {values.dtype} {values.shape}\n".encode())
        found.update(np.ascontiguousarray(values).tobytes())
    return found.hexdigest()
