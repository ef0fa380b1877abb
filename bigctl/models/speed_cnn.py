"""The network of airbench94 (Jordan 2024, arXiv 2404.00498), which learns small photographs in few passes over them.

A fixed convolution makes the patches of 2x2 pixels uncorrelated; three groups of two convolutions follow, each at half
the size of the one before, that begin as copies of their input. Dimension names: batch, height, width, channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from bigctl.config import schema
from bigctl.errors import ConfigError
from bigctl.models.batch_norm import BatchNorm
from bigctl.models.conv import conv2d
from bigctl.models.layers import ACTIVATIONS
from bigctl.models.pooling import max_pool

PATCH = schema.SpeedCnn.whitens


class Whiten(nnx.Module):
    """A convolution whose kernel is never trained: each whitened direction and its negative; its bias is trained.

    The kernel is no parameter but part of what belongs to the state besides. It is zero until `put` gives it.
    """

    def __init__(self, channels: int):
        self.outputs = 2 * PATCH * PATCH * channels
        self.kernel = nnx.BatchStat(jnp.zeros((PATCH, PATCH, channels, self.outputs)))
        self.bias = nnx.Param(jnp.zeros(self.outputs))

    def put(self, directions: Float[np.ndarray, "directions rows columns channels"]) -> None:
        """Use these directions, as `bigctl.data.whitening.directions` gives them."""
        kernel = np.moveaxis(np.concatenate([directions, -directions]), 0, -1)
        self.kernel[...] = jnp.asarray(kernel, jnp.float32)

    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height2 width2 outputs"]:
        """All patches times the kernel: a product is quicker than a convolution of so few channels."""
        rows, columns = x.shape[1] - PATCH + 1, x.shape[2] - PATCH + 1
        shifts = [x[:, i : i + rows, j : j + columns] for i in range(PATCH) for j in range(PATCH)]
        kernel = self.kernel[...].astype(x.dtype).reshape(-1, self.outputs)
        return biased(jnp.concatenate(shifts, -1) @ kernel, self.bias[...])


class Group(nnx.Module):
    """Convolution, max-pool, norm, activation; convolution, norm, activation."""

    def __init__(self, config: schema.SpeedCnn, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.first = nnx.Param(dirac(rngs.params(), inputs, outputs))
        self.first_norm = BatchNorm(outputs, scaled=False, momentum=config.norm_momentum)
        self.second = nnx.Param(dirac(rngs.params(), outputs, outputs))
        self.second_norm = BatchNorm(outputs, scaled=False, momentum=config.norm_momentum)
        self.activation = config.activation

    def __call__(
        self, x: Float[Array, "batch height width inputs"], *, training: bool, mask: Array | None
    ) -> Float[Array, "batch height2 width2 outputs"]:
        activation = ACTIVATIONS[self.activation]
        x = conv2d(x, self.first[...], "same")
        if min(x.shape[1:3]) > 1:  # nothing is left to halve of a small image
            x = max_pool(x, 2)
        x = activation(self.first_norm(x, training=training, mask=mask))
        x = conv2d(x, self.second[...], "same")
        return activation(self.second_norm(x, training=training, mask=mask))


class SpeedCnn(nnx.Module):
    """Whitened patches, groups of convolutions, the maximum over all places, a linear output times a factor.

    Args:
        config: channels of each group, momentum of the norms, activation, factor of the output.
        shape: [height, width, channels] of one image.
        outputs: number of logits.

    Raises:
        ConfigError: if nothing is left of the images before the last group.
    """

    def __init__(self, config: schema.SpeedCnn, shape: Sequence[int], outputs: int, *, rngs: nnx.Rngs):
        needed = PATCH - 1 + 2 ** (len(config.widths) - 1)
        if min(shape[:2]) < needed:
            raise ConfigError(
                f"images of {shape[0]}x{shape[1]} are used up before the last of {len(config.widths)} groups",
                where="model.widths",
                hint=f"use fewer groups, or images of {needed}x{needed} or more (data.image_size)",
            )
        self.activation, self.factor = config.activation, config.output_factor
        self.whiten = Whiten(shape[2])
        widths = [self.whiten.outputs, *config.widths]
        self.groups = nnx.List(Group(config, a, b, rngs=rngs) for a, b in zip(widths, widths[1:], strict=False))
        limit = 1 / math.sqrt(widths[-1])
        init = jax.random.uniform(rngs.params(), (widths[-1], outputs), minval=-limit, maxval=limit)
        self.head = nnx.Linear(widths[-1], outputs, use_bias=False, kernel_init=lambda *_: init, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch height width channels"], *, key: Array | None = None, mask: Array | None = None
    ) -> Float[Array, "batch outputs"]:
        return self._judged(self._maps(x, key, mask))

    def inspect(self, x: Float[Array, "batch height width channels"], added: Array) -> tuple[Array, Array]:
        """Logits, and what comes out of the last group plus `added`, from which they are computed."""
        maps = self._maps(x, None, None) + added
        return self._judged(maps), maps

    def _maps(self, x: Array, key: Array | None, mask: Array | None) -> Array:
        activation = ACTIVATIONS[self.activation]
        if key is not None:  # of all layers' values most are these: what derivatives need is computed anew in less time
            activation = jax.checkpoint(activation)
        x = activation(self.whiten(x))
        for group in self.groups:
            x = group(x, training=key is not None, mask=mask)
        return x

    def _judged(self, x: Array) -> Array:
        return self.head(x.max((1, 2))) * self.factor


@jax.custom_vjp
def biased(x: Float[Array, "batch height width channels"], bias: Float[Array, " channels"]) -> Array:
    """Their sum; the gradient of the bias is a product with ones, as XLA on CPU adds up in one thread."""
    return x + bias.astype(x.dtype)


def _biased_forward(x: Array, bias: Array) -> tuple[Array, Array]:
    return biased(x, bias), bias


def _biased_backward(bias: Array, dy: Array) -> tuple[Array, Array]:
    rows = dy.reshape(-1, dy.shape[-1])
    return dy, jnp.matmul(jnp.ones(len(rows), dy.dtype), rows, preferred_element_type=bias.dtype)


biased.defvjp(_biased_forward, _biased_backward)


def dirac(key: Array, inputs: int, outputs: int) -> Float[Array, "3 3 inputs outputs"]:
    """A kernel whose first outputs are the inputs as they are; further ones are drawn as torch does it."""
    limit = 1 / math.sqrt(9 * inputs)
    drawn = jax.random.uniform(key, (3, 3, inputs, outputs), minval=-limit, maxval=limit)
    copies = jnp.zeros((3, 3, inputs, outputs)).at[1, 1].set(jnp.eye(inputs, outputs))
    return jnp.where(jnp.arange(outputs) < inputs, copies, drawn)
