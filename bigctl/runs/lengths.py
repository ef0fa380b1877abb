"""How many steps a training takes: arithmetic on the configuration alone."""

from __future__ import annotations

from bigctl.config.schema import Config


def total_steps(config: Config, examples: int) -> int:
    """Length of training [steps] on a training split of so many examples."""
    if config.train.steps:
        return config.train.steps
    return max(1, round((config.train.epochs or 1) * examples / config.train.batch_size))
