"""How many trials are side by side in one program: measured, because it depends on the model and on the machine.

A step of many small models at once costs little more than that of one, as most of it is not arithmetic; of large ones
it costs as much as all of them, and on a CPU more.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bigctl.errors import ConfigError
from bigctl.runs.directory import RunDirectory

if TYPE_CHECKING:
    from bigctl.engine.experiment import Experiment
    from bigctl.training.packed.pack import PackedSteps

log = logging.getLogger("bigctl")

WIDEST_ON_CPU = 8
"""Trials side by side: a CPU has no use for more."""


class TrialGroup(Protocol):
    """What the trials of a process share: `runner.TrialGroup`."""

    experiment: Experiment

    def steps(self, width: int) -> PackedSteps: ...

    def refusal(self) -> str | None: ...


@dataclass(frozen=True)
class Verdict:
    """How many trials are side by side in one program, 1 for none, and why.

    Attributes:
        sentence: for people.
        costs: {width: seconds that a step of one trial takes}, as far as it was measured.
    """

    width: int
    sentence: str
    costs: dict[int, float]

    def to_json(self) -> dict[str, object]:
        return {"width": self.width, "sentence": self.sentence, "costs": self.costs}


def decide(shared: TrialGroup, runs: Sequence[Path], mode: str) -> Verdict:
    """How trials with these run directories are trained: as at a start before, where there was one, so that they go on
    as they began; else as `mode` asks, "yes" for packed, "auto" for what `measure` finds.

    Raises:
        ConfigError: where they cannot be packed as asked.
    """
    refused = shared.refusal()
    if refused is not None and mode == "yes":
        raise ConfigError(refused, where="packed trials", hint="train them one by one")
    if refused is not None:
        return Verdict(1, f"{len(runs)} trials one after another in one process: {refused}", {})
    if (before := _before(runs)) is not None:
        how = f"packed by {before}" if before > 1 else "one after another in one process"
        return Verdict(before, f"{len(runs)} trials {how}, as they began", {})
    if len(runs) == 1:
        return Verdict(1, "1 trial, by itself", {})
    if mode == "auto":
        return measure(shared, len(runs))
    width = widths(len(runs), shared.experiment.programs.mesh.devices.flat[0].platform)[-1]
    return Verdict(width, f"{len(runs)} trials packed by {width}", {})


def _before(runs: Sequence[Path]) -> int | None:
    for run in map(RunDirectory, runs):
        for start in reversed(run.record().get("starts", []) if run.exists else []):
            if "packed" in start:
                return int(start["packed"]["width"])
    return None


def widths(count: int, platform: str) -> list[int]:
    """How many trials side by side are worth a try."""
    most = WIDEST_ON_CPU if platform == "cpu" else 128
    powers = [2**n for n in range(3, 8, 2) if 2**n <= most]
    return sorted({*(w for w in powers if w < count), min(count, most)} - {1})


def measure(shared: TrialGroup, count: int, *, seconds: float = 0.3) -> Verdict:
    """Take a few steps of so many trials both ways, and choose. Nothing of it is kept but the compiled programs.

    Args:
        shared: what the trials have in common.
        count: how many they are.
        seconds: how long to measure each way, besides compiling.
    """
    built = shared.experiment
    platform = built.programs.mesh.devices.flat[0].platform
    costs = {width: _cost(shared, width, seconds) for width in [1, *widths(count, platform)]}
    alone = costs[1]
    width = min(costs, key=lambda width: costs[width])
    tried = {w: cost for w, cost in costs.items() if w > 1}
    if width > 1 and costs[width] < 0.9 * alone:
        sentence = (
            f"{count} trials packed by {width}: a step of one takes {_time(costs[width])}, by itself {_time(alone)} "
            f"({alone / costs[width]:.1f} times as long)"
        )
        return Verdict(width, sentence, costs)
    best = min(tried, key=lambda width: tried[width]) if tried else 1
    sentence = f"{count} trials one after another in one process: a step of one takes {_time(alone)}"
    sentence += f", packed by {best} it would take {_time(tried[best])}" if tried else ""
    return Verdict(1, sentence, costs)


def _cost(shared: TrialGroup, width: int, seconds: float) -> float:
    """Seconds that a step of one trial takes among `width`."""
    import jax
    import numpy as np
    from jax.errors import JaxRuntimeError

    from bigctl.training.packed.side_by_side import side_by_side

    steps, programs = shared.steps(width), shared.experiment.programs
    config = shared.experiment.config
    lane = programs.with_config(config)
    hparams = side_by_side([lane.hparams], width)
    states = [lane.initialise() for _ in range(width)]

    def draw(count: int) -> np.ndarray:
        return np.zeros((width, count, config.train.batch_size), np.int32)

    taken: list[float] = []
    until = time.perf_counter() + 1e9
    while len(taken) < 4 or time.perf_counter() < until:
        start = time.perf_counter()
        try:
            states, count = steps(states, draw, steps.largest, hparams)
            jax.block_until_ready(states)
        except (JaxRuntimeError, ConfigError) as error:  # there is no memory for so many
            log.info("packed by %d: %s", width, str(error)[:200])
            return math.inf
        taken.append((time.perf_counter() - start) / count / width)
        if len(taken) == 2:  # compiled, and the length of a dispatch is known
            until = time.perf_counter() + seconds
    return min(taken[2:])


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:,.1f} ms"
