"""The learning rate over the course of training: a linear warmup, then what the schedule's component says."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

import jax.numpy as jnp

from bigctl.config import schema

if TYPE_CHECKING:
    from bigctl.config.schema.optimizers import Scalar


def factor(config: schema.Schedule, step: Scalar, total_steps: int, xp: ModuleType = jnp) -> Scalar:
    """The multiple of the peak learning rate for the update number `step`, which counts from 0.

    Warmup is linear from 1/warmup to 1. What follows spans the rest of the horizon, and stays at its last value after
    it. With `xp=numpy` it is plain arithmetic, for logs.
    """
    horizon = config.horizon or total_steps
    warmup = warmup_steps(config, total_steps)
    progress = xp.clip((step - warmup) / max(1, horizon - warmup), 0.0, 1.0)
    after = config.multiple(progress, step, horizon, xp)
    value: Scalar = xp.where(step < warmup, (step + 1) / max(1, warmup), after)
    return value


def warmup_steps(config: schema.Schedule, total_steps: int) -> int:
    horizon = config.horizon or total_steps
    return round(config.warmup * horizon if config.warmup < 1 else config.warmup)
