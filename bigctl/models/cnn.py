"""A small convolutional network in the manner of LeNet-5 (LeCun et al. 1998)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from bigctl.config import schema
from bigctl.errors import ConfigError
from bigctl.models.layers import ACTIVATIONS, Conv, Dropout, Norm, fold


class CNN(nnx.Module):
    """Conv - norm - activation - max-pool for each of `channels`, then dense layers, then a linear output.

    Args:
        config: channels, kernel size, pool size, padding, dense widths, activation, norm, dropout.
        shape: [height, width, channels] of one image.
        outputs: number of logits.

    Raises:
        ConfigError: if the images are too small for that many pools.
    """

    def __init__(self, config: schema.Cnn, shape: Sequence[int], outputs: int, *, rngs: nnx.Rngs):
        padding = config.padding if config.padding != "auto" else "valid" if _fits(config, shape) else "same"
        self.activation = config.activation
        convs, channels = [], shape[2]
        for out in config.channels:
            convs.append(Conv(channels, config, out, padding=padding, rngs=rngs))
            channels = out
        height, width = _remaining(config, shape, padding)
        self.convs = nnx.List(convs)
        widths = [math.prod((height, width, channels)), *config.hidden]
        init = nnx.initializers.he_normal()
        self.layers = nnx.List(
            nnx.Linear(a, b, kernel_init=init, rngs=rngs) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.norms = nnx.List(Norm(config.norm, width, rngs=rngs) for width in config.hidden)
        self.dropout = Dropout(config.dropout)
        self.head = nnx.Linear(widths[-1], outputs, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch height width channels"], *, key: Array | None = None, mask: Array | None = None
    ) -> Float[Array, "batch outputs"]:
        return self._judged(self._maps(x, training=key is not None, mask=mask), key, mask)

    def inspect(self, x: Float[Array, "batch height width channels"], added: Array) -> tuple[Array, Array]:
        """Logits, and what comes out of the convolutions plus `added`, from which they are computed."""
        maps = self._maps(x, training=False, mask=None) + added
        return self._judged(maps, None, None), maps

    def filters(self) -> Float[Array, "rows columns channels filters"]:
        """Kernels of the first convolution."""
        return self.convs[0].kernel[...] if self.convs else jnp.zeros((0, 0, 1, 0))

    def _maps(self, x: Array, *, training: bool, mask: Array | None) -> Array:
        for conv in self.convs:
            x = conv(x, training=training, mask=mask)
        return x

    def _judged(self, x: Array, key: Array | None, mask: Array | None) -> Array:
        training, activation = key is not None, ACTIVATIONS[self.activation]
        x = x.reshape(x.shape[0], -1)
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            x = self.dropout(activation(norm(layer(x), training=training, mask=mask)), fold(key, i))
        return self.head(x)


def _remaining(config: schema.Cnn, shape: Sequence[int], padding: str) -> tuple[int, int]:
    """Height and width after all convolutions and pools. Raises ConfigError where nothing is left."""
    height, width, _ = shape
    lost = 0 if padding == "same" else config.kernel_size - 1
    for number in range(len(config.channels)):
        height, width = (height - lost) // config.pool, (width - lost) // config.pool
        if min(height, width) < 1:
            raise ConfigError(
                f"images of {shape[0]}x{shape[1]} are used up by convolution {number + 1}",
                where="model.channels",
                hint="use fewer convolutions, model.padding=same, a smaller model.pool, or a larger data.image_size",
            )
    return height, width


def _fits(config: schema.Cnn, shape: Sequence[int]) -> bool:
    try:
        _remaining(config, shape, "valid")
    except ConfigError:
        return False
    return True
