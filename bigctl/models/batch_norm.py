"""Batch normalisation for deep stacks of convolutions, and the random leaving out of whole branches."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class BatchNorm(nnx.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) over batch and places; its statistics in float32.

    Under a mesh the statistics are those of the global batch, as the sums are over all of it. They are sums for each
    example first, so that one that only pads is left out without a look at its pixels. As in torch, the running
    variance is the unbiased one.

    Args:
        features: channels.
        momentum: what is kept of the running statistics at each step.
        eps: added to the variance.
        scaled: learn a factor for each channel; without it there is a bias alone.
        zero: start with a factor of 0 (Goyal et al. 2017), so that a residual branch begins as nothing.
    """

    def __init__(
        self, features: int, *, momentum: float = 0.9, eps: float = 1e-5, scaled: bool = True, zero: bool = False
    ):
        self.momentum, self.eps = momentum, eps
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))
        self.scale = nnx.Param(jnp.zeros(features) if zero else jnp.ones(features)) if scaled else None
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(
        self, x: Float[Array, "batch *dims features"], *, training: bool, mask: Array | None
    ) -> Float[Array, "batch *dims features"]:
        mean, var = self._of_batch(x, mask) if training else (self.mean[...], self.var[...])
        factor = jax.lax.rsqrt(var + self.eps)
        if self.scale is not None:
            factor = factor * self.scale[...]
        shift = self.bias[...] - mean * factor
        return x * factor.astype(x.dtype) + shift.astype(x.dtype)

    def _of_batch(self, x: Array, mask: Array | None) -> tuple[Array, Array]:
        """Mean and variance of this batch, which the running ones take note of."""
        places, axes = math.prod(x.shape[1:-1]), tuple(range(1, x.ndim - 1))
        wide = x.astype(jnp.float32)
        centre = jax.lax.stop_gradient(self.mean[...])  # near the mean, so that the difference of squares is exact
        offset = wide - centre
        sums, squares = offset.sum(axes), jnp.square(offset).sum(axes)
        if mask is not None:
            real = mask[:, None] > 0
            sums, squares = jnp.where(real, sums, 0), jnp.where(real, squares, 0)
        count = places * (jnp.float32(len(x)) if mask is None else (mask > 0).sum().astype(jnp.float32))
        off = sums.sum(0) / jnp.maximum(count, 1)
        mean, var = centre + off, jnp.maximum(squares.sum(0) / jnp.maximum(count, 1) - jnp.square(off), 0)
        unbiased = var * count / jnp.maximum(count - 1, 1)
        for held, new in ((self.mean, mean), (self.var, unbiased)):
            held[...] = self.momentum * held[...] + (1 - self.momentum) * jax.lax.stop_gradient(new)
        return mean, var
