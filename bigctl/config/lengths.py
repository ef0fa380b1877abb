"""The length of training is given once: what is typed wins over what a preset, or the run that is resumed, has."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from bigctl.config.schema import Config
from bigctl.errors import ConfigError

STEPS, EPOCHS = "train.steps", "train.epochs"
TYPED = "command line"


def settle(config: Config, origins: Mapping[str, str]) -> Config:
    """The configuration with one length of training, where both are set: `train.epochs` wins if it is typed, or set in
    a preset that is more to the point than the recipe's. Steps win over epochs else, whatever the latter are.

    Args:
        config: as composed.
        origins: where each value comes from, see `compose.Composed`.

    Raises:
        ConfigError: if two lengths are typed.
    """
    if config.train.steps is None or config.train.epochs is None:
        return config
    steps, epochs = (_weight(origins.get(name, "schema")) for name in (STEPS, EPOCHS))
    if steps == epochs == _weight(TYPED):
        raise ConfigError(
            f"{STEPS}={config.train.steps} and {EPOCHS}={config.train.epochs:g} are two lengths of training",
            where=TYPED,
            hint="give one of them",
        )
    if epochs <= steps:
        return config
    return dataclasses.replace(config, train=dataclasses.replace(config.train, steps=None))


def _weight(origin: str) -> int:
    """Which of two places wins: the command line, then an experiment's preset, then the recipe's, then the schema."""
    if origin in ("schema", TYPED):
        return 0 if origin == "schema" else 3
    return 1 if "recipe/" in origin else 2
