"""Loops whose every call outward is written down, on steps that compute nothing."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

import bigctl
from bigctl.engine import experiment
from bigctl.engine.experiment import Experiment
from bigctl.training.calls import Calls
from bigctl.training.loop import Cadence, Hooks, Loop
from bigctl.training.signals import StopRequest
from bigctl.training.state import Progress, TrainState

MLP = ("recipe=mlp_cls", "data=breast_cancer", "model.hidden=[8]", "train.batch_size=32", "mesh=single")


@functools.cache
def built(*overrides: str) -> Experiment:
    return experiment.build(bigctl.compose([*MLP, *overrides, "train.steps=12"]))


class FakeFeed:
    """Takes steps as long as the loop allows, `most` at a time, without computing anything."""

    def __init__(
        self, events: list[Any], most: int = 100, pause: Callable[[int], float] = lambda call: 0.0,
        sleep: Callable[[float], None] = time.sleep,
    ):  # fmt: skip
        self.events, self.most, self.pause, self.sleep = events, most, pause, sleep
        self.waited, self.waits_for_data = 0.0, True
        self.work, self.nbytes = None, 0
        self.shapes, self.calls = 1, Calls(None)
        self.unforeseen: set[int | None] = set()
        self.advanced = 0

    def shape(self, position: int) -> None:
        return None

    def advance(self, state: TrainState, position: int, limit: int) -> tuple[TrainState, int]:
        self.events.append(("draw", position))
        wait = self.pause(self.advanced)
        self.advanced += 1
        self.waited += wait
        self.sleep(wait)
        return state, min(limit, self.most)

    def program(self) -> Any:
        return None

    def close(self) -> None: ...


class FakeEvaluator:
    """Scores weights as `score` does."""

    def __init__(self, score: Callable[[Any], dict[str, Any]]):
        self.score, self.calls = score, Calls(None)

    def __call__(self, params: Any, variables: Any) -> dict[str, Any]:
        return self.score(params)


def loop_of(
    exp: Experiment, cadence: Cadence, scores: Any, *, feed: Any = None, mode: str = "max", save: Any = None
) -> tuple[Loop, list[Any]]:
    """A loop whose every call outward is written down. `scores` are the values of val/accuracy, or an evaluator."""
    events: list[Any] = [] if feed is None else feed.events
    values = iter(scores) if not callable(scores) else None

    def score(params: Any) -> dict[str, Any]:
        return {"val/accuracy": next(values), "val/confusion": [[1]]} if values is not None else scores(params)

    def write(step: int, found: dict[str, Any]) -> None:
        which = "evaluate" if any(name.startswith("val/") for name in found) else "log"
        events.append((which, step, found))

    def saved(state: TrainState, progress: Progress) -> None:
        events.append(("save", progress.step, progress.to_json()))
        if save is not None:
            save()

    hooks = Hooks(
        write=write, save=saved, flush=lambda: events.append(("flush",)), warn=lambda text: events.append((text,))
    )
    loop = Loop(
        exp.programs, feed or FakeFeed(events), FakeEvaluator(score), cadence, exp.config, hooks, StopRequest(),  # type: ignore
        metric="val/accuracy", mode=mode, examples_per_epoch=exp.dataset.size("train"),
    )  # fmt: skip
    return loop, events


def fit(exp: Experiment, loop: Loop) -> Progress:
    return loop.fit(state_of(exp), Progress())[1]


@functools.cache
def initial(programs: Any) -> Any:
    return jax.device_get(programs.initialise())


def state_of(exp: Experiment) -> TrainState:
    copied = jax.tree.map(np.array, initial(exp.programs))
    return jax.device_put(copied, exp.programs.state_shardings, may_alias=False)


def names(events: Sequence[Any]) -> list[Any]:
    return [event[:2] for event in events]
