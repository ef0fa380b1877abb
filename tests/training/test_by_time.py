"""Checkpoints by the clock: a share of the time at most, the best never lost, and nothing computed otherwise for it."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from bigctl.config import cadence, schema
from bigctl.config.cadence import Cadence
from bigctl.parallel.distributed import SINGLE_PROCESS
from bigctl.training.checkpoints import by_time
from bigctl.training.checkpoints.by_time import LEAST, SHARE, TimedSaves
from bigctl.training.checkpoints.store import Checkpoints
from bigctl.training.state import Progress, TrainState
from tests.training.loops import FakeFeed, built, fit, loop_of


class Saved:
    """Timed saves by a clock of the test's own."""

    def __init__(self, seconds: float = 0.0):
        self.now, self.steps = 0.0, list[int]()
        self.store = SimpleNamespace(group=SINGLE_PROCESS, seconds=seconds)
        self.saves = TimedSaves(cast(Checkpoints, self.store), self._begin, lambda: self.now)

    def _begin(self, state: TrainState, progress: Progress) -> None:
        self.steps.append(progress.step)

    def due_after(self, seconds: float) -> bool:
        self.now += seconds
        return self.saves.due()


STATE = cast(TrainState, {"weights": np.zeros(3)})


def test_it_is_time_every_half_minute_and_more_seldom_where_saving_takes_long() -> None:
    saved = Saved(seconds=0.2)
    assert not saved.due_after(LEAST - 1) and saved.due_after(1.5)
    saved.saves.save(STATE, Progress(step=5))
    assert not saved.due_after(LEAST - 1) and saved.due_after(1.5)
    saved.store.seconds = 6.0
    saved.saves.save(STATE, Progress(step=6))
    assert not saved.due_after(6.0 / SHARE - 1) and saved.due_after(1.5)
    saved.saves.hold(STATE, Progress(step=7, best_step=7))
    saved.saves.save(STATE, Progress(step=8, best_step=7))
    assert not saved.due_after(2 * 6.0 / SHARE - 1) and saved.due_after(1.5), "two were written"


def test_the_best_is_saved_before_what_follows_it_and_only_while_it_is_the_best() -> None:
    saved = Saved()
    assert saved.saves.hold(STATE, Progress(step=1, best_step=1))
    assert saved.saves.hold(STATE, Progress(step=2, best_step=2))
    saved.saves.save(STATE, Progress(step=3, best_step=2))
    saved.saves.save(STATE, Progress(step=4, best_step=2))
    assert saved.saves.hold(STATE, Progress(step=5, best_step=5))
    saved.saves.save(STATE, Progress(step=5, best_step=5))
    assert saved.saves.hold(STATE, Progress(step=6, best_step=6))
    saved.saves.save(STATE, Progress(step=7, best_step=7))
    assert saved.steps == [2, 3, 4, 5, 7]


def test_a_large_state_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_time, "HELD", 10)
    assert not Saved().saves.hold(STATE, Progress(step=1, best_step=1))


# ------------------------------------------------------------------------------------------------------- in the loop


def seen(
    scores: list[float], *, due: Any = lambda: False, stop_at: int | None = None, save: int | None = None
) -> list[tuple[str, int]]:
    """What a loop of 12 steps holds and saves, with an evaluation every 3 and a log line every 2."""
    exp = built()
    loop, events = loop_of(exp, Cadence(12, 2, 3, save), scores, feed=FakeFeed([], most=1))
    loop.hooks.due = due
    loop.hooks.hold = lambda state, progress: events.append(("hold", progress.step)) or True
    if stop_at is not None:
        loop.stop = SimpleNamespace(reached=lambda steps: steps >= stop_at, room=lambda steps, limit: limit)  # type: ignore
    fit(exp, loop)
    return [event[:2] for event in events if event[0] in ("hold", "save")]


def test_what_is_better_is_held_until_the_end() -> None:
    assert seen([0.1, 0.5, 0.3, 0.2]) == [("hold", 3), ("hold", 6), ("save", 12)]


def test_when_it_is_time_the_next_event_saves() -> None:
    due = iter([False, True])
    assert seen([0.1, 0.5, 0.3, 0.6], due=lambda: next(due, False)) == [("save", 3), ("hold", 6), ("save", 12)]


def test_a_request_to_stop_saves_at_once() -> None:
    assert seen([0.1, 0.5, 0.3, 0.2], stop_at=7) == [("hold", 3), ("hold", 6), ("save", 7)]


def test_with_a_cadence_a_better_one_is_saved_at_once_if_it_is_time_and_held_if_not() -> None:
    due = iter([True, False, False])  # asked where an evaluation was the best so far, and nowhere else
    saves = seen([0.1, 0.5, 0.3, 0.6], save=5, due=lambda: next(due))
    assert saves == [("save", 3), ("save", 5), ("hold", 6), ("save", 10), ("save", 12)]


# --------------------------------------------------------------------------------------------------------- the cadence


@pytest.mark.parametrize("total", [*range(1, 60, 7), 64, 150, 199, 200, 320, 1001, 2000, 12345, 10**6, 2 * 10**9])
def test_the_curve_of_a_training_of_any_length_has_enough_points(total: int) -> None:
    points = total // cadence.about(total / cadence.LOG_LINES)
    assert points == total if total < 250 else 120 <= points <= 320


def test_packed_trials_log_when_they_are_evaluated_unless_it_is_typed() -> None:
    config = built().config
    alone = Cadence(total=1000, log=5, evaluate=50, save=None)
    typed = dataclasses.replace(config, train=dataclasses.replace(config.train, log_every=5))
    assert cadence.in_pack(config, alone).log == 50 and cadence.in_pack(typed, alone).log == 5


def test_a_rewind_hangs_on_no_clock() -> None:
    def found(**train: Any) -> tuple[int, int | None]:
        config = dataclasses.replace(built().config, train=schema.Train(steps=640, batch_size=32, **train))
        resolved = cadence.resolve_cadence(config, examples=640)
        return resolved.log, resolved.save

    assert found() == (5, None)
    assert found(divergence=schema.Divergence(policy="rewind")) == (50, 20)
    assert found(divergence=schema.Divergence(policy="rewind"), log_every=3) == (3, 20)
