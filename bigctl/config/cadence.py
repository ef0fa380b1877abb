"""How long training is and when things happen in it: arithmetic on the configuration, free of jax."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from fractions import Fraction

from bigctl.config.schema import Config, steps_of
from bigctl.errors import ConfigError

LOG_LINES = 200
"""About so many metrics of training are logged where `train.log_every` leaves it open."""
REWINDING = {"checkpoint.every": "1 epoch", "train.log_every": "50"}
"""Free keys that decide, where the policy is to rewind, what is gone back to and which batches are left out; and what
they are there while they are null."""


@dataclass(frozen=True)
class Cadence:
    """When things happen, in steps; each at the multiples of its number, and at the end.

    Without `save` a checkpoint is saved when the time has come, at a step at which something else happens.
    """

    total: int
    log: int
    evaluate: int
    save: int | None
    sample: int | None = None

    def next_event(self, step: int) -> int:
        """The first step after `step` at which something is due."""
        events = {self.log, self.evaluate, self.save or self.evaluate, self.sample or self.evaluate}
        return min(self.total, *((step // every + 1) * every for every in events))

    def due(self, every: int | None, step: int) -> bool:
        return step == self.total or (every is not None and step % every == 0)


@dataclass(frozen=True)
class Done:
    """What a run that is resumed has done: updates, and the training examples that they were made of."""

    steps: int
    examples: int


def resolve_cadence(config: Config, examples: int, done: Done | None = None) -> Cadence:
    """The cadence of a training split of so many examples, and of what is left of it.

    Raises:
        ConfigError: where the schedule, or the growth of an attack, does not fit the length of training.
    """
    per_epoch = examples / config.train.batch_size
    total = total_steps(config, examples, done)
    if total >= 2**31:  # steps are counted in int32
        raise ConfigError(f"training cannot be {total:,} steps long", where="train", hint="fewer than 2^31")
    horizon = config.schedule.horizon or total
    if config.schedule.warmup > horizon:
        message, hint = config.schedule.warmup_problem(horizon)
        raise ConfigError(message, where="schedule.warmup", hint=hint)
    if (adversarial := config.train.adversarial).eps and adversarial.warmup > total:
        message, hint = adversarial.warmup_problem(total)
        raise ConfigError(message, where="train.adversarial.warmup", hint=hint)
    samples = config.recipe.sample_cadence(config.eval.every)
    log, save = config.train.log_every, config.checkpoint.every
    if config.train.divergence.policy == "rewind":  # what is gone back to, and what is left out, hangs on no clock
        log, save = log or int(REWINDING["train.log_every"]), save or REWINDING["checkpoint.every"]
    return Cadence(
        total=total,
        log=log or about(total / LOG_LINES),
        evaluate=steps_of(config.eval.every, steps_per_epoch=per_epoch),
        save=None if save is None else steps_of(save, steps_per_epoch=per_epoch),
        sample=None if samples is None else steps_of(samples, steps_per_epoch=per_epoch),
    )


def in_pack(config: Config, cadence: Cadence) -> Cadence:
    """That of trials side by side: each log line of one holds all of them up, so without a cadence there is one at each
    evaluation."""
    if config.train.log_every is not None or config.train.divergence.policy == "rewind":
        return cadence
    return dataclasses.replace(cadence, log=cadence.evaluate)


def about(steps: float) -> int:
    """The nearest of 1, 2, 5, 10, 20, 50, ..."""
    power = 10 ** max(0, math.floor(math.log10(max(steps, 1.0))))
    return int(min((power, 2 * power, 5 * power, 10 * power), key=lambda each: abs(math.log(each / max(steps, 1.0)))))


def total_steps(config: Config, examples: int, done: Done | None = None) -> int:
    """Length of training [steps]; what is done counts by the examples that it took, whatever the batches were."""
    if config.train.steps:
        return config.train.steps
    epochs, batch_size = config.train.epochs or 1, config.train.batch_size
    if done is None or done.examples == done.steps * batch_size:
        return max(1, round(epochs * examples / batch_size))
    left = (Fraction(epochs) * examples - done.examples) / batch_size
    return max(1, done.steps + max(0, math.floor(left + Fraction(1, 2))))
