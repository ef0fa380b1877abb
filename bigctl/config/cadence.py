"""How long training is and when things happen in it: arithmetic on the configuration, free of jax."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from bigctl.config.schema import Config, steps_of
from bigctl.errors import ConfigError


@dataclass(frozen=True)
class Cadence:
    """When things happen, in steps; each at the multiples of its number, and at the end."""

    total: int
    log: int
    evaluate: int
    save: int
    sample: int | None = None

    def next_event(self, step: int) -> int:
        """The first step after `step` at which something is due."""
        events = (self.log, self.evaluate, self.save, self.sample or self.evaluate)
        return min(self.total, *((step // every + 1) * every for every in events))

    def due(self, every: int, step: int) -> bool:
        return step % every == 0 or step == self.total


@dataclass(frozen=True)
class Done:
    """What a run that is resumed has done: updates, and the training examples that they were made of."""

    steps: int
    examples: int


def resolve_cadence(config: Config, examples: int, done: Done | None = None) -> Cadence:
    """The cadence of a training split of so many examples, and of what is left of it.

    Raises:
        ConfigError: where the schedule does not fit the length of training.
    """
    per_epoch = examples / config.train.batch_size
    total = total_steps(config, examples, done)
    if total >= 2**31:  # steps are counted in int32
        raise ConfigError(f"training cannot be {total:,} steps long", where="train", hint="fewer than 2^31")
    horizon = config.schedule.horizon or total
    if config.schedule.warmup > horizon:
        message, hint = config.schedule.warmup_problem(horizon)
        raise ConfigError(message, where="schedule.warmup", hint=hint)
    samples = config.recipe.sample_cadence(config.eval.every)
    return Cadence(
        total=total,
        log=config.train.log_every,
        evaluate=steps_of(config.eval.every, steps_per_epoch=per_epoch),
        save=steps_of(config.checkpoint.every, steps_per_epoch=per_epoch),
        sample=None if samples is None else steps_of(samples, steps_per_epoch=per_epoch),
    )


def total_steps(config: Config, examples: int, done: Done | None = None) -> int:
    """Length of training [steps]; what is done counts by the examples that it took, whatever the batches were."""
    if config.train.steps:
        return config.train.steps
    epochs, batch_size = config.train.epochs or 1, config.train.batch_size
    if done is None or done.examples == done.steps * batch_size:
        return max(1, round(epochs * examples / batch_size))
    left = (Fraction(epochs) * examples - done.examples) / batch_size
    return max(1, done.steps + max(0, math.floor(left + Fraction(1, 2))))
