"""What a client sends of its update, made smaller: the largest numbers alone, or all of them in 8 bits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bigctl.config import schema

Leaves = list[Array]

_INFINITY = 0x7F800000
"""Its bits: those of all finite floats above 0 are less."""
_LEVELS = 127
"""On either side of 0, in 8 bits."""


def compressed(update: Leaves, config: schema.Federated, key: Array) -> Leaves:
    """The update as the server reads it.

    Args:
        update: leaves [...], float32.
        config: `train.federated`; `compress` says how, `keep` how much of `topk`.
        key: of random rounding.
    """
    if config.compress == "topk":
        return _largest(update, _kept(update, config))
    if config.compress == "int8":
        return [_rounded(x, jax.random.fold_in(key, place)) for place, x in enumerate(update)]
    return update


def sent_bytes(update: Leaves, config: schema.Federated) -> int:
    """Of an update: 4 a number, or 8 a number that is kept and its place, or 1 a number and 4 a leaf."""
    count = sum(x.size for x in update)
    if config.compress == "topk":
        return 8 * _kept(update, config)
    return count + 4 * len(update) if config.compress == "int8" else 4 * count


def _kept(update: Leaves, config: schema.Federated) -> int:
    return max(1, round(config.keep * sum(x.size for x in update)))


def _largest(update: Leaves, count: int) -> Leaves:
    """Those at least as far from 0 as the `count`-th of all leaves together; others are 0.

    The bits of positive floats are in the order of the floats: the bound is found by 31 halvings of these, which take a
    hundredth of a sort.
    """
    sizes = [jax.lax.bitcast_convert_type(jnp.abs(x), jnp.int32) for x in update]

    def narrower(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = low + (high - low + 1) // 2
        enough = sum(jnp.sum(bits >= middle) for bits in sizes) >= count
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle - 1)

    bound, _ = jax.lax.fori_loop(0, 31, narrower, (jnp.int32(0), jnp.int32(_INFINITY)))
    return [jnp.where(bits >= bound, x, 0) for x, bits in zip(update, sizes, strict=True)]


def _rounded(x: Array, key: Array) -> Array:
    """In steps of the largest / 127, up or down by chance, so that the mean is what it was (Alistarh et al. 2017)."""
    step = jnp.max(jnp.abs(x)) / _LEVELS
    levels = jnp.floor(x / jnp.maximum(step, 1e-30) + jax.random.uniform(key, x.shape))
    return jnp.clip(levels, -_LEVELS, _LEVELS) * step
