"""Randomness is a function of (seed, step, purpose); nothing is threaded through or saved."""

from __future__ import annotations

from typing import Any

import jax

PARAMETERS, DROPOUT, AUGMENTATION, SAMPLING, PRIVACY, CLIENTS = range(6)
"""Purposes. Append only: a number's meaning is part of every run made with it."""


def key(seed: Any, purpose: int, step: Any = 0) -> jax.Array:
    """The key for one purpose at one step; seed and step may be traced. Threefry, because its numbers are the same on
    every mesh."""
    root = jax.random.key(seed, impl="threefry2x32")
    return jax.random.fold_in(jax.random.fold_in(root, purpose), step)


def per_example(key: jax.Array, numbers: jax.Array) -> jax.Array:
    """One key an example, by its global number in the step's batch: keys [batch]."""
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)
