"""What two models share. Dimension names: batch, height, width, channels, features.

A model is called as `model(inputs, key=None, mask=None)`. A key means training: dropout is drawn from it and batch
normalisation uses the batch, of which `mask` (0 where an example only pads) says what counts. No key means inference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt

from bigctl.config import schema
from bigctl.models.conv import conv2d
from bigctl.models.ops import cut_over_devices, matmul
from bigctl.models.pooling import max_pool
from bigctl.models.rounded import rounded_inputs

T = TypeVar("T")

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "elu": jax.nn.elu,
    "leaky_relu": jax.nn.leaky_relu,
    "sigmoid": jax.nn.sigmoid,
}
"""The names in `schema.ACTIVATIONS`; gelu is the tanh approximation (Hendrycks & Gimpel 2016)."""


class Dense(nnx.Module):
    """x @ kernel, + bias where there is one; the kernel is drawn from a normal distribution."""

    rounds_inputs = False  # see `rounded.rounding`

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True, std: float = 0.02, rngs: nnx.Rngs):
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None

    def __call__(self, x: Float[Array, "*dims inputs"]) -> Float[Array, "*dims outputs"]:
        y = matmul(rounded_inputs(x) if self.rounds_inputs else x, self.kernel[...])
        return y if self.bias is None else y + self.bias[...]


class Embedding(nnx.Module):
    """Rows of an embedding."""

    def __init__(self, rows: int, width: int, *, std: float = 0.02, rngs: nnx.Rngs):
        self.embedding = nnx.Param(std * jax.random.normal(rngs.params(), (rows, width)))


class Hyperparameter(nnx.Variable):
    """A number that the compiled step takes as an argument; `key` names its place in the configuration."""


class Dropout(nnx.Module):
    """Zero each activation with probability `rate`, scale the others by 1 / (1 - rate) (Srivastava et al. 2014).

    A rate of exactly 0 at construction leaves the layer out, so that no random numbers are drawn for nothing.
    """

    def __init__(self, rate: float, *, key: str = "model.dropout"):
        self.rate = Hyperparameter(jnp.float32(rate), key=key) if rate else None

    def __call__(self, x: Array, key: Array | None) -> Array:
        if self.rate is None or key is None:
            return x
        keep = 1.0 - self.rate[...]
        return jnp.where(self._draw(key, keep, x.shape), x / keep.astype(x.dtype), jnp.zeros_like(x))

    def _draw(self, key: Array, keep: Array, shape: tuple[int, ...]) -> Array:
        return jax.random.bernoulli(key, keep, shape)


class QuickDropout(Dropout):
    """Dropout for large activations: on CPU its masks take a quarter to a half of the time.

    Four activations share a block of Threefry, each with 16 bits of it, so `rate` is exact to 1 / 65536. As with
    `jax.random`, a mask is the same on every mesh.
    """

    def _draw(self, key: Array, keep: Array, shape: tuple[int, ...]) -> Array:
        rows, columns = shape[0], math.prod(shape[1:])  # rows stay apart, as they may lie on several devices
        blocks = rows, -(-columns // 4)
        if cut_over_devices(shape):
            return _kept(_bits_in_place(key, shape, blocks[1]), keep)
        counts = jnp.arange(math.prod(blocks), dtype=jnp.uint32).reshape(blocks)
        # Passed through memory once: XLA would compute the blocks anew in each of the four parts.
        words = jnp.stack(threefry(jax.random.key_data(key), jnp.zeros_like(counts), counts))
        a, b = jax.lax.optimization_barrier(words)
        # Compared before they are joined: what is joined is what the backward pass keeps, a byte each instead of four.
        kept = [_kept(bits, keep) for bits in (a & 0xFFFF, a >> 16, b & 0xFFFF, b >> 16)]
        return jnp.concatenate(kept, axis=1)[:, :columns].reshape(shape)


def _kept(bits: Array, keep: Array) -> Array:
    return bits < jnp.round(keep * 65536).astype(jnp.uint32)


def _bits_in_place(key: Array, shape: tuple[int, ...], blocks: int) -> UInt[Array, "batch length features"]:
    """The bits of `QuickDropout` where texts are cut over devices: each activation computes its own block, four times
    the arithmetic, and none has to come from where another part of the text is."""
    row, place, feature = (jax.lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in range(3))
    column = place * jnp.uint32(shape[2]) + feature
    count = row * jnp.uint32(blocks) + column % jnp.uint32(blocks)
    a, b = threefry(jax.random.key_data(key), jnp.zeros_like(count), count)
    which = column // jnp.uint32(blocks)
    return jnp.where(which < 2, a, b) >> (which % 2 * 16) & 0xFFFF


def threefry(key: UInt[Array, " 2"], a: UInt[Array, "*dims"], b: UInt[Array, "*dims"]) -> tuple[Array, Array]:
    """Threefry-2x32 with 20 rounds (Salmon et al. 2011) of the words a and b, as one piece of arithmetic.

    `jax.random` runs it as a loop on CPU, which passes the whole array through memory in each round.
    """
    keys = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA))
    a, b = a + keys[0], b + keys[1]
    for i in range(5):
        for distance in ((13, 15, 26, 6), (17, 29, 16, 24))[i % 2]:
            a = a + b
            b = a ^ ((b << distance) | (b >> (32 - distance)))
        a, b = a + keys[(i + 1) % 3], b + keys[(i + 2) % 3] + jnp.uint32(i + 1)
    return a, b


class Norm(nnx.Module):
    """Normalisation by name: "none", "batch" (Ioffe & Szegedy 2015) or "layer" (Ba et al. 2016)."""

    def __init__(self, kind: str, features: int, *, rngs: nnx.Rngs):
        self.norm: nnx.BatchNorm | nnx.LayerNorm | None
        if kind == "batch":  # assigned once: what begins as None could hold no module later
            self.norm = nnx.BatchNorm(features, momentum=0.9, epsilon=1e-5, rngs=rngs)
        else:
            self.norm = nnx.LayerNorm(features, rngs=rngs) if kind == "layer" else None

    def __call__(self, x: Float[Array, "batch *dims features"], *, training: bool, mask: Array | None) -> Array:
        if isinstance(self.norm, nnx.BatchNorm):
            if mask is not None:
                mask = jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (x.ndim - 1)), x.shape) > 0
            return self.norm(x, use_running_average=not training, mask=mask).astype(x.dtype)  # statistics are float32
        return x if self.norm is None else self.norm(x)


class Conv(nnx.Module):
    """Convolution (without its bias), max-pool, norm, bias, activation; He initialisation (He et al. 2015).

    Pooling first gives the same values as pooling last wherever the activation never falls, on a quarter of the
    elements or fewer; for the others it comes last.
    """

    def __init__(self, inputs: int, config: schema.Cnn, outputs: int, *, padding: str, rngs: nnx.Rngs):
        init = nnx.initializers.he_normal()
        size = config.kernel_size
        self.kernel = nnx.Param(init(rngs.params(), (size, size, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros((outputs,)))
        self.norm = Norm(config.norm, outputs, rngs=rngs)
        self.padding, self.pool, self.activation = padding, config.pool, config.activation
        self.pool_first = config.norm == "none" and config.activation in _MONOTONE

    def __call__(
        self, x: Float[Array, "batch height width inputs"], *, training: bool, mask: Array | None
    ) -> Float[Array, "batch height2 width2 outputs"]:
        x = conv2d(x, self.kernel[...], self.padding)
        if self.pool_first:
            return ACTIVATIONS[self.activation](self._pool(x) + self.bias[...])
        return self._pool(ACTIVATIONS[self.activation](self.norm(x + self.bias[...], training=training, mask=mask)))

    def _pool(self, x: Array) -> Array:
        return max_pool(x, self.pool) if self.pool > 1 else x


_MONOTONE = ("relu", "tanh", "elu", "leaky_relu", "sigmoid")


def fold(key: Array | None, number: int | Array) -> Array | None:
    """The key of the number-th use of randomness in a model, None in inference."""
    return None if key is None else jax.random.fold_in(key, number)


def by_row(function: Callable[..., T], used: Int[Array, ""], *given: object) -> T:
    """A function of arrays [1, ...], or of trees of them, on each of the first `used` rows; zeros in the others.

    One row after the other: each has the bits that it has alone.
    """

    def row_of(row: Array | int) -> list[Any]:
        return jax.tree.map(lambda each: jax.lax.dynamic_slice_in_dim(each, row, 1), list(given))

    count = len(jax.tree.leaves(given)[0])
    function = jax.jit(function, inline=True)  # traced once for its shapes and for the loop
    shapes = jax.eval_shape(lambda: function(*row_of(0)))
    out = jax.tree.map(lambda shape: jnp.zeros((count, *shape.shape[1:]), shape.dtype), shapes)

    def body(row: Array, out: T) -> T:
        new = function(*row_of(row))
        return jax.tree.map(lambda all, one: jax.lax.dynamic_update_slice_in_dim(all, one, row, 0), out, new)

    return jax.lax.fori_loop(0, used, body, out)


class Unchanged(nnx.Module):
    """Stands where a head was, and gives on the vectors that it would read."""

    def __call__(self, x: Array, *others: Array | None) -> Array:
        return x


class DropPath(nnx.Module):
    """Stochastic depth (Huang et al. 2016): in training a residual branch is left out of an example with probability
    `rate` times `share`, and scaled up where it is kept.

    Args:
        rate: that of the topmost branch.
        share: what part of it this branch has, from 0 at the bottom of the network to 1 at its top.
    """

    def __init__(self, rate: float, share: float, *, key: str = "model.drop_path"):
        self.share = share
        self.rate = Hyperparameter(jnp.float32(rate), key=key) if rate and share else None

    def __call__(
        self, branch: Float[Array, batch * dims], key: Array | None, share: Float[Array, ""] | None = None
    ) -> Float[Array, batch * dims]:
        """`share` stands in place of its own where several branches are one program."""
        if self.rate is None or key is None:
            return branch
        keep = 1.0 - self.rate[...] * (self.share if share is None else share)
        kept = jax.random.bernoulli(key, keep, (len(branch), *(1,) * (branch.ndim - 1)))
        return jnp.where(kept, branch / keep.astype(branch.dtype), jnp.zeros_like(branch))
