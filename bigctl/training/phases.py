"""What a training process tells a rehearsal of crashes about itself: what it is doing now, and what it trained on.

Off, and free, unless the variable BIGCTL_WITNESS names a file. That file then holds one line of fixed length: what goes
on, whether a checkpoint is being saved besides, and the step. After SIGKILL it is as the process left it. And the run
gets a `batches.jsonl` with a digest of what each dispatched step was given.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

VARIABLE = "BIGCTL_WITNESS"
START, STEP, EVAL, SAVE, END = PHASES = ("start-up", "step", "eval", "save", "end")
"""START lasts until the first step is dispatched, END from the last checkpoint on: test scores, summary.json."""
_LENGTH = 32


@dataclass(frozen=True)
class Moment:
    """What a process was doing: one of PHASES, and after which step. SAVE wins: it overlaps others."""

    phase: str
    step: int


class _Witness:
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


_witness: _Witness | None = None


def begin() -> bool:
    """Open the file that BIGCTL_WITNESS names, if it does; whether anybody wants to know."""
    global _witness
    path = os.environ.get(VARIABLE)
    if path and _witness is None:
        _witness = _Witness(path)
    return _witness is not None


def now(activity: str, step: int | None = None) -> None:
    """Say what begins."""
    if _witness is not None:
        _witness.change(activity, step=step)


@contextlib.contextmanager
def during(activity: str) -> Iterator[None]:
    """Say what goes on within, and afterwards what went on before."""
    if _witness is None:
        yield
        return
    before = _witness.activity
    _witness.change(activity)
    try:
        yield
    finally:
        _witness.change(before)


def saving(count: int) -> None:
    """One more (1) or one less (-1) checkpoint is being written."""
    if _witness is not None:
        _witness.change(saving=count)


def read(path: Path) -> Moment:
    """What the process that writes to `path` is doing, or was when it ended. Before it says anything, it starts up."""
    try:
        activity, saving, step = path.read_text(encoding="ascii").split()
        return Moment(SAVE if int(saving) else activity, int(step))
    except (OSError, ValueError):
        return Moment(START, 0)


# ----------------------------------------------------------------------------------------------------------- batches


class Batches:
    """Notes in `lines` what every call of the training programs is given.

    Args:
        programs: a `training.step.Programs`, whose step programs are replaced by ones that take note.
        lines: a `writers.JsonLines`.
        step: updates done so far.
    """

    def __init__(self, programs: Any, lines: Any, *, step: int):
        self.lines, self.step = lines, step
        self._host: tuple[Any, dict[str, np.ndarray]] = (None, {})
        for name, note in (
            ("step_resident", self._one), ("steps_resident", self._many), ("step_sent", self._sent),
        ):  # fmt: skip
            setattr(programs, name, _Noting(getattr(programs, name), note))

    def cut(self, step: int) -> None:
        self.step = step
        self.lines.cut(step)

    def close(self) -> None:
        self.lines.close()

    def _one(self, arrays: Any, indices: Any, numbers: Any, length: int | None) -> None:
        self._write(arrays, indices, length)

    def _many(self, arrays: Any, indices: Any, count: Any, numbers: Any, length: int | None) -> None:
        for each in np.asarray(indices)[: int(count)]:
            self._write(arrays, each, length)

    def _sent(self, batch: Any, numbers: Any) -> None:
        self._note(digest({name: np.asarray(values) for name, values in batch.items()}))

    def _write(self, arrays: Any, indices: Any, length: int | None) -> None:
        from bigctl.training.feed import gather

        if self._host[0] is not arrays:
            self._host = (arrays, {name: np.asarray(values) for name, values in arrays.items()})
        indices = np.asarray(indices)
        self._note(digest({"indices": indices, **gather(self._host[1], indices, length)}))

    def _note(self, found: str) -> None:
        self.step += 1
        self.lines.write(self.step, {"sha256": found})


class _Noting:
    """A compiled program that tells `note` its arguments, without the state, before it runs."""

    def __init__(self, program: Any, note: Any):
        self._program, self._note = program, note

    def __call__(self, state: Any, *arguments: Any) -> Any:
        self._note(*arguments)
        return self._program(state, *arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._program, name)


def digest(columns: dict[str, np.ndarray]) -> str:
    """sha256 of named arrays: names, dtypes, shapes and every byte."""
    found = hashlib.sha256()
    for name, values in sorted(columns.items()):
        found.update(f"{name} {values.dtype} {values.shape}\n".encode())
        found.update(np.ascontiguousarray(values).tobytes())
    return found.hexdigest()
