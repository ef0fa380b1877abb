"""What an attacker may do: how far inputs may move, in which norm, and within which bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bigctl.errors import ConfigError

NORMS = ("linf", "l2")
WHERE = "--robust"


@dataclass(frozen=True)
class Threat:
    """A ball around each input.

    Attributes:
        norm: one of `NORMS`.
        low, high: bounds of every number; infinite where there are none.
        free: which numbers may change, 0 or 1, of the shape of an input; None for all.
    """

    norm: str
    low: float = 0.0
    high: float = 1.0
    free: np.ndarray | None = None

    def inside(self, x: Float[Array, "n ..."], near: Float[Array, "n ..."], eps: Array | float) -> Array:
        """The point of the ball around `near`, and within the bounds, that belongs to x."""
        moved = x - near if self.free is None else (x - near) * self.free
        if self.norm == "linf":
            moved = jnp.clip(moved, -eps, eps)
        else:
            moved = moved * jnp.minimum(1.0, eps / jnp.maximum(length(moved), 1e-12))
        return jnp.clip(near + moved, self.low, self.high)

    def uphill(self, gradient: Float[Array, "n ..."]) -> Array:
        """The step of length 1 that increases a linear function the most."""
        gradient = gradient if self.free is None else gradient * self.free
        return jnp.sign(gradient) if self.norm == "linf" else gradient / jnp.maximum(length(gradient), 1e-12)

    def start(self, key: Array, near: Float[Array, "n ..."], eps: Array | float) -> Array:
        """A random point of the ball: uniform in each number, or in direction and distance from the centre."""
        if self.norm == "linf":
            return self.inside(near + jax.random.uniform(key, near.shape, minval=-eps, maxval=eps), near, eps)
        direction = self.uphill(jax.random.normal(key, near.shape))
        far = jax.random.uniform(jax.random.fold_in(key, 1), (len(near), *[1] * (near.ndim - 1)))
        return self.inside(near + eps * far * direction, near, eps)

    def widest(self, shape: tuple[int, ...]) -> float:
        """An eps that lets inputs of this shape be anything; of numbers without bounds, a hundred."""
        if not math.isfinite(self.high - self.low):
            return 100.0
        side = self.high - self.low
        return side if self.norm == "linf" else side * math.sqrt(math.prod(shape))


def length(x: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    """Euclidean length of each, kept as [n, 1, ...]."""
    return jnp.sqrt(jnp.square(x).sum(tuple(range(1, x.ndim)), keepdims=True))


def parse(text: str) -> tuple[str, list[float]]:
    """`linf=0.1,0.2` as a norm and its eps, smallest first. Raises ConfigError for what is none."""
    norm, sign, values = text.partition("=")
    try:
        found = sorted({float(value) for value in values.split(",")})
    except ValueError:
        found = []
    if norm not in NORMS or not sign or not found or not all(0 < eps < 1e6 for eps in found):
        hint = "an eps above 0 after the norm, as linf=0.1,0.2 or l2=1; or text, or corruptions"
        raise ConfigError(f"{text!r} is no attack", where=WHERE, hint=hint)
    return norm, found


def require_scale(norm: str, values: list[float], shape: tuple[int, ...]) -> None:
    """Raises ConfigError for eps that can only be meant of pixels from 0 to 255."""
    largest, most = max(values), 1.0 if norm == "linf" else math.sqrt(math.prod(shape))
    if largest > most:
        meant = ",".join(f"{eps / 255:.4g}" for eps in values)
        what = f"pixels go from 0 to 1, {norm}={largest:g} lets a picture be any other"
        raise ConfigError(what, where=WHERE, hint=f"of pixels from 0 to 255 it is {norm}={meant}")
