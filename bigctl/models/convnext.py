"""ConvNeXt (Liu et al. 2022): residual blocks of a wide depthwise convolution and a feed-forward part at each place.

Dimension names: batch, height, width, channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from bigctl.config import schema
from bigctl.errors import ConfigError
from bigctl.models.bert import LayerNorm
from bigctl.models.depthwise import depthwise_conv2d
from bigctl.models.layers import Dense, DropPath, fold
from bigctl.models.ops import gelu

_EPS = 1e-6
_EXPANSION = 4  # of the feed-forward part


class Cells(nnx.Module):
    """A linear layer over cells of side x side pixels that do not overlap; what fills no cell is left out."""

    def __init__(self, inputs: int, outputs: int, *, side: int, rngs: nnx.Rngs):
        self.dense = Dense(side * side * inputs, outputs, rngs=rngs)
        self.side = side

    def __call__(self, x: Float[Array, "batch height width inputs"]) -> Float[Array, "batch height2 width2 outputs"]:
        batch, height, width, channels = x.shape
        rows, columns, side = height // self.side, width // self.side, self.side
        x = x[:, : rows * side, : columns * side].reshape(batch, rows, side, columns, side, channels).swapaxes(2, 3)
        return self.dense(x.reshape(batch, rows, columns, -1))


class Block(nnx.Module):
    """A depthwise convolution and a feed-forward part, scaled and added; the first of a stage shrinks the image before.

    Args:
        config: size of the convolution, first factor of the layer scale, stochastic depth.
        inputs: channels of what comes in.
        channels: of this block.
        shrinks: whether it is the first block of a further stage.
        share: what part of the rate of stochastic depth it has.
    """

    def __init__(
        self, config: schema.Convnext, inputs: int, channels: int, *, shrinks: bool, share: float, rngs: nnx.Rngs
    ):
        size = config.kernel_size
        self.shrink_norm = LayerNorm(inputs, _EPS) if shrinks else None
        self.shrink = Cells(inputs, channels, side=2, rngs=rngs) if shrinks else None
        self.kernel = nnx.Param(0.02 * jax.random.normal(rngs.params(), (size, size, 1, channels)))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.norm = LayerNorm(channels, _EPS)
        self.up = Dense(channels, _EXPANSION * channels, rngs=rngs)
        self.down = Dense(_EXPANSION * channels, channels, rngs=rngs)
        self.scale = nnx.Param(jnp.full(channels, config.layer_scale)) if config.layer_scale else None
        self.drop_path = DropPath(config.drop_path, share)

    def __call__(
        self, x: Float[Array, "batch height width inputs"], key: Array | None
    ) -> Float[Array, "batch height2 width2 channels"]:
        if self.shrink is not None and self.shrink_norm is not None:
            x = self.shrink(self.shrink_norm(x))
        y = depthwise_conv2d(x, self.kernel[...]) + self.bias[...]
        y = self.down(gelu(self.up(self.norm(y))))
        return x + self.drop_path(y if self.scale is None else y * self.scale[...], key)


class Convnext(nnx.Module):
    """Cells of pixels, stages of blocks, each at half the size of the one before, the mean over all places, a norm, a
    linear output.

    Args:
        config: blocks and width of each stage, side of the first cells.
        shape: [height, width, channels] of one image.
        outputs: number of logits.

    Raises:
        ConfigError: if nothing is left of the images before the last stage.
    """

    def __init__(self, config: schema.Convnext, shape: Sequence[int], outputs: int, *, rngs: nnx.Rngs):
        needed = config.patch * 2 ** (len(config.blocks) - 1)
        if min(shape[:2]) < needed:
            raise ConfigError(
                f"images of {shape[0]}x{shape[1]} are used up before the last of {len(config.blocks)} stages",
                where="model.blocks",
                hint="use a smaller model.patch, fewer stages, or images of "
                f"{needed}x{needed} or more (data.image_size)",
            )
        self.remat = config.remat
        self.stem = Cells(shape[2], config.widths[0], side=config.patch, rngs=rngs)
        self.stem_norm = LayerNorm(config.widths[0], _EPS)
        blocks: list[Block] = []
        channels, last = config.widths[0], max(sum(config.blocks) - 1, 1)
        for stage, (count, wide) in enumerate(zip(config.blocks, config.widths, strict=True)):
            for number in range(count):
                shrinks, share = bool(stage) and not number, len(blocks) / last
                blocks.append(Block(config, channels, wide, shrinks=shrinks, share=share, rngs=rngs))
                channels = wide
        self.blocks = nnx.List(blocks)
        self.final_norm = LayerNorm(channels, config.eps)
        self.head = Dense(channels, outputs, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch height width channels"], *, key: Array | None = None, mask: Array | None = None
    ) -> Float[Array, "batch outputs"]:
        return self._judged(self._maps(x, key))

    def inspect(self, x: Float[Array, "batch height width channels"], added: Array) -> tuple[Array, Array]:
        """Logits, and what comes out of the last block plus `added`, from which they are computed."""
        maps = self._maps(x, None) + added
        return self._judged(maps), maps

    def filters(self) -> Float[Array, "rows columns channels filters"]:
        """Weights of the first layer over a cell of pixels."""
        kernel, side = self.stem.dense.kernel[...], self.stem.side
        return kernel.reshape(side, side, -1, kernel.shape[1])

    def _maps(self, x: Array, key: Array | None) -> Array:
        x = self.stem_norm(self.stem(x))
        for i, block in enumerate(self.blocks):
            structure, state = nnx.split(block)
            x = self._rematerialised(structure)(state, x, fold(key, i))
        return x

    def _judged(self, x: Array) -> Array:
        return self.head(self.final_norm(x.mean((1, 2), dtype=jnp.float32).astype(x.dtype)))

    def _rematerialised(self, structure: nnx.GraphDef[Block]) -> Callable[..., Array]:
        def block(state: nnx.State, x: Array, key: Array | None) -> Array:
            return nnx.merge(structure, state)(x, key)

        return block if self.remat == "none" else jax.checkpoint(block)
