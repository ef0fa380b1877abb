"""When checkpoints are saved where `checkpoint.every` leaves it open: by the clock, within a share of the time. With a
cadence, when better ones are that come between its steps: a small training has one every few milliseconds.

When a run is saved has no say in what it computes, so a clock may decide. What must not be lost is the best so far: it
is held in memory until the next checkpoint, which is saved after it. So whatever is on the disk has the best of its
time beside it, and a run that is killed goes on from there and comes by the same best again.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

from bigctl.training.checkpoints.arrays import copied, size_of
from bigctl.training.checkpoints.store import Checkpoints
from bigctl.training.state import Progress, TrainState

LEAST, SHARE = 30.0, 0.03
"""Seconds between two checkpoints, at least; and of the time since the last one, the most that saving may take."""
HELD = 2**28
"""The largest state of which a copy is held [bytes]; a larger one is saved at once when it is the best."""


def is_small(state: TrainState) -> bool:
    """Whether a copy of a state, or of one of these shapes, may be held."""
    return size_of(state) <= HELD


@dataclass(frozen=True)
class _Held:
    state: TrainState
    progress: Progress


class TimedSaves:
    """What a loop asks at steps for which its cadence has no checkpoint.

    Args:
        checkpoints: of the run; in several processes the first one's clock counts.
        begin: begin to save a state and its progress.
        clock: seconds since any moment.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        begin: Callable[[TrainState, Progress], None],
        clock: Callable[[], float] = time.monotonic,
    ):
        self._checkpoints, self._begin, self._clock = checkpoints, begin, clock
        self._last, self._count = clock(), 1
        self._held: _Held | None = None

    def due(self) -> bool:
        """Whether it is time to save; all processes must ask, and are told the same."""
        return self._checkpoints.group.first(lambda: self._clock() - self._last >= self._interval())

    def _interval(self) -> float:
        return max(LEAST, self._count * self._checkpoints.seconds / SHARE)

    def hold(self, state: TrainState, progress: Progress) -> bool:
        """Keep the best so far until the next save; whether it is small enough for that."""
        if not is_small(state):
            return False
        self._held = _Held(copied(state), copy.deepcopy(progress))
        return True

    def save(self, state: TrainState, progress: Progress) -> None:
        """Save a state, and before it the best so far where that is still held."""
        held = self._held
        best = held is not None and progress.best_step == held.progress.step != progress.step
        if best:
            self.save_held()
        self._held = None
        self._begin(state, progress)
        self._last, self._count = self._clock(), 1 + best

    def save_held(self) -> None:
        """Save the best so far where it is still held: nothing may follow it."""
        held, self._held = self._held, None
        if held is not None:
            self._begin(held.state, held.progress)
