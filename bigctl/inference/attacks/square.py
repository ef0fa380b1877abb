"""Square: random search by the margin alone, without gradients (Andriushchenko et al. 2020)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bigctl.inference.attacks.gradient import Logits, margin
from bigctl.inference.attacks.threat import Threat

_HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Of 10,000 queries, those from which on squares have half the share of a picture."""


def square(
    logits: Logits, threat: Threat, x: Array, labels: Array, eps: Array | float, key: Array,
    *, queries: int = 500, share: float = 0.8,
) -> Array:  # fmt: skip
    """Inputs that the model has wrong, where a search has come by such.

    It begins with vertical stripes of eps and -eps and goes on with squares of them at random places, which stay where
    the margin grows. In l2 the same moves are drawn back to the ball: simpler than the paper's search for that norm.

    Args:
        logits, threat, x, labels, eps, key: as in `gradient`; x [n, height, width, channels], or [n, features], whose
            squares are runs of features.
        queries: how often the model is asked about each.
        share: of a picture that the first squares have.
    """
    shape = x.shape
    grid = x if x.ndim == 4 else x.reshape(len(x), -1, 1, 1)
    _, height, width, channels = grid.shape
    sides = jnp.asarray(_sides(queries, share, height, width), jnp.int32)
    size = eps if threat.norm == "linf" else eps / jnp.sqrt(jnp.maximum(0.1 * height * width * channels, 1.0))

    def asked(moved: Array) -> tuple[Array, Array]:
        inside = threat.inside(moved.reshape(shape), x, eps)
        return inside.reshape(grid.shape), margin(logits(inside), labels)

    stripes = jax.random.rademacher(jax.random.fold_in(key, 0), (len(x), 1, width, channels), grid.dtype)
    if x.ndim != 4:
        stripes = jax.random.rademacher(jax.random.fold_in(key, 0), grid.shape, grid.dtype)
    begun = asked(grid + size * stripes)

    def query(number: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        best, worst = carry
        at, across, sign = jax.random.split(jax.random.fold_in(key, number + 1), 3)
        tall, wide = sides[number, 0], sides[number, 1]
        window = _within(at, len(x), tall, height)[:, :, None] & _within(across, len(x), wide, width)[:, None, :]
        signs = jax.random.rademacher(sign, (len(x), 1, 1, channels), grid.dtype)
        moved, value = asked(best + 2 * size * signs * window[..., None])
        better = value > worst
        return jnp.where(better[:, None, None, None], moved, best), jnp.where(better, value, worst)

    found: tuple[Array, Array] = jax.lax.fori_loop(0, queries, query, begun)
    return found[0].reshape(shape)


def _within(key: Array, n: int, side: Array, whole: int) -> Array:
    """Of a span at a random place of each, which places it covers, bool [n, whole]."""
    start = jnp.floor(jax.random.uniform(key, (n, 1)) * (whole - side + 1)).astype(jnp.int32)
    places = jnp.arange(whole)[None]
    return (places >= start) & (places < start + side)


def _sides(queries: int, share: float, height: int, width: int) -> np.ndarray:
    """Height and width of the square of each query, int [queries, 2]."""
    place = np.arange(queries) * 10_000 // queries
    shares = share / 2.0 ** np.searchsorted(_HALVED, place, side="left")
    if width == 1:
        return np.stack([np.clip(np.round(shares * height), 1, height), np.ones(queries)], axis=1)
    side = np.round(np.sqrt(shares * height * width))
    return np.stack([np.clip(side, 1, height), np.clip(side, 1, width)], axis=1)
