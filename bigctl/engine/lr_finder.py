"""The learning rate range test (Smith 2017): a short training whose learning rate grows from step to step.

The rate grows exponentially from `LOW` to `HIGH`, without any schedule, from a new state or the weights that a training
would start from, until the loss diverges. The rate to use is the one at which the loss falls fastest. Rates enter the
compiled step as an argument, so all of them are one program. Nothing is saved.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from bigctl.config import schema
from bigctl.config.schema import Config
from bigctl.engine import compile_cache, device_memory, distil, restore, step_memory
from bigctl.engine import experiment as experiments
from bigctl.errors import ConfigError, TrainingFailed
from bigctl.parallel import cluster

if TYPE_CHECKING:
    from bigctl.engine.experiment import Experiment
    from bigctl.training.programs import Programs
    from bigctl.training.state import TrainState

LOW, HIGH, STEPS = 1e-7, 10.0, 100
WINDOW = 6
"""Points to either side that the loss is smoothed over: half a power of ten."""
DIVERGED = 4.0
"""A mean loss this many times its lowest, and above its first, has diverged."""
_MEMORY = 0.9
_KEY = "optimizer.lr"


@dataclass(frozen=True)
class Found:
    """What a range test saw.

    Attributes:
        rates, losses: of each step.
        smoothed: the loss on the line through its neighbours.
        suggestion: where the loss falls fastest, to two digits; None where no rate lowers it.
        lowest: the rate of the lowest smoothed loss.
        diverged: the rate at which the test ended; None if it went through.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float | None
    lowest: float
    diverged: float | None

    def to_json(self) -> dict[str, Any]:
        return {"schema": 1, "key": _KEY, **dataclasses.asdict(self)}


def find(config: Config) -> Found:
    """Try learning rates on an experiment.

    Raises:
        TrainingFailed: if the loss is not finite, or diverges, before anything can be told.
        BigctlError: for whatever would keep the training from starting.
    """
    if config.train.overfit_one_batch:
        hint = "leave one of them out"
        raise ConfigError("--find-lr needs other batches than one", where="train.overfit_one_batch", hint=hint)
    if config.train.privacy.on:
        what = "--find-lr looks at the training examples, which no budget counts"
        raise ConfigError(what, where="train.privacy", hint="find a rate on public data of the same kind")
    if config.train.federated.on:
        what = "--find-lr tries rates in steps, and those of clients are within a round"
        raise ConfigError(what, where="train.federated", hint="try a few rates in a sweep: optimizer.lr=0.01,0.1,1")
    if cluster.read_cluster_info() is not None:
        hint = "run it outside of the cluster's job"
        raise ConfigError("--find-lr runs in one process", where="--find-lr", hint=hint)
    if config.train.compile_cache:
        compile_cache.use_compile_cache()
    steady = dataclasses.replace(config.train.divergence, policy="stop", deviations=None)
    train = dataclasses.replace(config.train, divergence=steady)
    experiment = experiments.build(dataclasses.replace(config, schedule=schema.Constant(), train=train))
    device_memory.require_state(experiment.programs)
    experiment = distil.of_experiment(experiment)
    hparams = dict(experiment.programs.hparams)
    experiment = dataclasses.replace(experiment, programs=dataclasses.replace(experiment.programs, hparams=hparams))
    return judge(*_tried(experiment, hparams))


def _tried(experiment: Experiment, hparams: dict[str, Any]) -> tuple[list[float], list[float], bool]:
    """Rates, losses, and whether the last one has diverged."""
    programs, state = experiment.programs, _first_state(experiment)
    feed = experiment.feed(check=partial(step_memory.require_step, experiment))
    batch = experiment.config.train.batch_size
    rates = np.geomspace(LOW, HIGH, STEPS).tolist()
    losses: list[float] = []
    try:
        for number, rate in enumerate(rates):
            hparams[_KEY] = jnp.float32(rate)  # which the feed hands over with the next step
            state, _ = feed.advance(state, number * batch, 1)
            state, loss = _loss(programs, state)
            losses.append(loss)
            if diverges(losses):
                return rates[: number + 1], losses, True
    finally:
        feed.close()
    return rates, losses, False


def _first_state(experiment: Experiment) -> TrainState:
    taken = restore.taken_over(experiment)
    if taken is None:
        return experiment.programs.initialise()
    return experiment.programs.initialise(taken.params, taken.variables)


def _loss(programs: Programs, state: TrainState) -> tuple[TrainState, float]:
    state, sums, _ = programs.take_sums(state)
    total, weight = np.asarray(sums["loss"]).tolist()
    return state, total / weight if weight else math.nan


# ---------------------------------------------------------------------------------------------------------- judgement


def diverges(losses: Sequence[float]) -> bool:
    """Whether the loss has left for good: it is not finite, or its running mean is far above what it was."""
    if not math.isfinite(losses[-1]):
        return True
    mean, means = 0.0, list[float]()
    for number, loss in enumerate(losses, 1):
        mean = _MEMORY * mean + (1 - _MEMORY) * loss
        means.append(mean / (1 - _MEMORY**number))
    return means[-1] > DIVERGED * min(means) > 0 and means[-1] > means[0]


def judge(rates: Sequence[float], losses: Sequence[float], diverged: bool) -> Found:
    """What losses by learning rate say.

    At each point a line is laid through the losses of its neighbours over the logarithm of the rate: its value is the
    smoothed loss, its slope how fast the loss falls. The steepest point before the lowest smoothed loss is suggested,
    if the loss has fallen by more than it scatters.

    Raises:
        TrainingFailed: if there are too few finite losses.
    """
    known = len(losses) - (not math.isfinite(losses[-1]))
    if known < 2 * WINDOW + 2:
        if not known:
            message = "the loss is not finite at the first step, whatever the learning rate"
        else:
            message = f"the loss diverges at a learning rate of {rates[len(losses) - 1]:.1e} already"
        hint = "see the data with `bigctl data`; check model.init_from, if it is given"
        raise TrainingFailed(message, where="--find-lr", hint=hint)
    seen = np.asarray(losses[:known])
    usual = seen[: known // 2].max()
    seen = np.minimum(seen, 2 * usual - seen.min())  # a single loss that has exploded would bend all lines near it
    heights, slopes = _lines(np.log10(rates[:known]), seen)
    lowest = int(heights.argmin())
    before = slice(WINDOW, max(lowest, WINDOW) + 1)  # where there are neighbours on both sides
    scatter = float(np.std(seen[: lowest + 1] - heights[: lowest + 1]))
    falls = heights[WINDOW] - heights[lowest] > scatter and lowest > WINDOW
    best = rates[WINDOW + int(slopes[before].argmin())] if falls else None
    return Found(
        rates=list(rates[:known]),
        losses=list(losses[:known]),
        smoothed=heights.tolist(),
        suggestion=None if best is None else float(f"{best:.1e}"),
        lowest=float(f"{rates[lowest]:.1e}"),
        diverged=float(f"{rates[len(losses) - 1]:.1e}") if diverged else None,
    )


def _lines(places: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Value and slope at each point of the least-squares line through its neighbours: float64 [n] each."""
    found = []
    for number, place in enumerate(places):
        near = slice(max(0, number - WINDOW), number + WINDOW + 1)
        slope, height = np.polyfit(places[near] - place, losses[near], 1)
        found.append((height, slope))
    heights, slopes = np.array(found).T
    return heights, slopes
