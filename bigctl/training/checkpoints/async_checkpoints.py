"""Checkpoints that are written in the background, one after the other: those of small models, which are trained faster
than they can be saved, and above all those of many runs in a process.

Saving one after the other would hold all of them up. So a save waits in a queue until the disk has time for it, and one
that is not needed any more by then, because there is a later one, is never written: what is lost by a crash is a little
more, what comes out in the end is the same. The best checkpoint so far, and what a rewind goes back to, are always
needed. A few saves of the process are written at a time.

Where many runs are trained at once, each is written after a pause only: one that ends before saves its best and its
last state alone.
"""

from __future__ import annotations

import contextvars
import copy
import threading
import time
from dataclasses import dataclass
from typing import Any, cast

from bigctl.training.checkpoints.arrays import copied
from bigctl.training.checkpoints.store import Checkpoints
from bigctl.training.state import Progress, TrainState

_WRITING = threading.Semaphore(4)
PAUSE = 2.0
"""Between what is written of a run among many [s]."""


@dataclass(frozen=True)
class _Save:
    state: TrainState
    progress: Progress
    meta: dict[str, Any]


class QueuedCheckpoints:
    """What a `Checkpoints` is to the training, but that `save` never waits.

    Args:
        checkpoints: where they go; all but saving is left to it.
        pause: how long the first save waits, and each after one that was written, for another in its place [s].
    """

    def __init__(self, checkpoints: Checkpoints, pause: float = 0.0):
        self._inner = checkpoints
        self._pause = pause
        self._due = time.monotonic() + pause
        self._awaited = threading.Event()
        self._lock = threading.Lock()
        self._queue: list[_Save] = []
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def save(self, state: TrainState, progress: Progress, meta: dict[str, Any]) -> None:
        """Have it saved. Raises TrainingFailed if a save before it failed, unless `on_failure` is "warn"."""
        self._raise()
        kept = copied(state)  # the next step takes the state itself
        new = _Save(kept, copy.deepcopy(progress), meta)
        needed = {progress.best_step, *progress.anchors}
        with self._lock:
            self._queue = [*(save for save in self._queue if save.progress.step in needed), new]
            if self._thread is None:
                run = contextvars.copy_context().run
                self._thread = threading.Thread(target=run, args=(self._write,), name="checkpoint-queue", daemon=True)
                self._thread.start()

    def wait(self, *, last: bool = False) -> None:
        """As `Checkpoints.wait`, after all that is in the queue."""
        self._awaited.set()
        while (thread := self._thread) is not None:
            thread.join()
        self._awaited.clear()
        self._raise()
        self._inner.wait(last=last)

    def close(self) -> None:
        self.wait()
        self._inner.close()

    def _write(self) -> None:
        self._awaited.wait(max(0.0, self._due - time.monotonic()))
        while True:
            with self._lock:
                if not self._queue:
                    self._due = time.monotonic() + self._pause
                    self._thread = None
                    return
            with _WRITING:
                with self._lock:
                    save = self._queue.pop(0)
                try:
                    self._inner.save(save.state, save.progress, save.meta)
                    self._inner.join()
                except Exception as error:
                    with self._lock:
                        self._failure, self._queue = error, []

    def _raise(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure


def queued(checkpoints: Checkpoints) -> Checkpoints:
    """The same checkpoints, saved in the background."""
    return cast(Checkpoints, QueuedCheckpoints(checkpoints))


def of_many(checkpoints: Checkpoints) -> Checkpoints:
    """The same of a run that is trained beside many others."""
    return cast(Checkpoints, QueuedCheckpoints(checkpoints, PAUSE))
