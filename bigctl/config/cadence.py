"""How long training is and when things happen in it: arithmetic on the configuration, free of jax."""

from __future__ import annotations

from dataclasses import dataclass

from bigctl.config import checks
from bigctl.config.schema import Config, GptLm
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


def make(config: Config, examples: int) -> Cadence:
    """The cadence of a training split of so many examples.

    Raises:
        ConfigError: where the schedule does not fit the length of training.
    """
    per_epoch = examples / config.train.batch_size
    total = total_steps(config, examples)
    if total >= 2**31:  # steps are counted in int32
        raise ConfigError(f"training cannot be {total:,} steps long", where="train", hint="fewer than 2^31")
    horizon = config.schedule.horizon or total
    if config.schedule.warmup > horizon:
        raise ConfigError(
            f"schedule.warmup={config.schedule.warmup:g} is longer than training ({horizon} steps)",
            where="schedule.warmup",
            hint="shorten the warmup; below 1 it is a fraction of the training",
        )
    return Cadence(
        total=total,
        log=config.train.log_every,
        evaluate=checks.cadence(config.eval.every, steps_per_epoch=per_epoch),
        save=checks.cadence(config.checkpoint.every, steps_per_epoch=per_epoch),
        sample=_sample(config, per_epoch),
    )


def _sample(config: Config, steps_per_epoch: float) -> int | None:
    """Steps between samples of text; None for a recipe that writes none."""
    if not isinstance(config.recipe, GptLm) or not config.recipe.sample_tokens:
        return None
    return checks.cadence(config.recipe.sample_every or config.eval.every, steps_per_epoch=steps_per_epoch)


def total_steps(config: Config, examples: int) -> int:
    """Length of training [steps]."""
    if config.train.steps:
        return config.train.steps
    return max(1, round((config.train.epochs or 1) * examples / config.train.batch_size))
