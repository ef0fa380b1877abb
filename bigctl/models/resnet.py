"""Residual networks of convolutions (He et al. 2015), for photographs and for small images.

Where bottlenecks shrink the image, their 3x3 convolution does (version 1.5, as in torchvision). Dimension names: batch,
height, width, channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from bigctl.config import schema
from bigctl.errors import ConfigError
from bigctl.models.batch_norm import BatchNorm
from bigctl.models.conv import conv1x1, conv2d, strided_conv2d
from bigctl.models.layers import DropPath, fold
from bigctl.models.pooling import overlapping_max_pool

_EXPANSION = 4  # of a bottleneck's output over its inside


class ConvNorm(nnx.Module):
    """A convolution without bias, then batch normalisation; zeros around the image keep size / stride of it."""

    def __init__(
        self, inputs: int, outputs: int, *, size: int, stride: int = 1, zero: bool = False, frozen: bool, rngs: nnx.Rngs
    ):
        init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
        self.kernel = nnx.Param(init(rngs.params(), (size, size, inputs, outputs)))
        self.norm = BatchNorm(outputs, zero=zero)
        self.size, self.stride, self.frozen = size, stride, frozen

    def __call__(
        self, x: Float[Array, "batch height width inputs"], *, training: bool, mask: Array | None
    ) -> Float[Array, "batch height2 width2 outputs"]:
        kernel = self.kernel[...]
        if self.size == 1:
            y = conv1x1(x, kernel[0, 0], self.stride)
        elif self.stride == 1:
            y = conv2d(x, kernel, "same")
        else:
            y = strided_conv2d(x, kernel, self.stride, (self.size - 1) // 2)
        return self.norm(y, training=training and not self.frozen, mask=mask)


class Block(nnx.Module):
    """Two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1, added to the input or to its projection."""

    def __init__(
        self,
        config: schema.Resnet,
        inputs: int,
        inside: int,
        outputs: int,
        *,
        stride: int,
        share: float,
        rngs: nnx.Rngs,
    ):
        zero = config.zero_init
        frozen = config.norm == "frozen"
        if config.bottleneck:
            sizes = [(inputs, inside, 1, 1), (inside, inside, 3, stride), (inside, outputs, 1, 1)]
        else:
            sizes = [(inputs, inside, 3, stride), (inside, outputs, 3, 1)]
        self.convs = nnx.List(
            ConvNorm(a, b, size=size, stride=step, zero=zero and i == len(sizes) - 1, frozen=frozen, rngs=rngs)
            for i, (a, b, size, step) in enumerate(sizes)
        )
        changes = stride != 1 or inputs != outputs
        shortcut = ConvNorm(inputs, outputs, size=1, stride=stride, frozen=frozen, rngs=rngs) if changes else None
        self.shortcut = shortcut
        self.drop_path = DropPath(config.drop_path, share)

    def __call__(
        self, x: Float[Array, "batch height width channels"], *, key: Array | None, mask: Array | None
    ) -> Float[Array, "batch height2 width2 channels2"]:
        training, branch = key is not None, x
        for i, conv in enumerate(self.convs):
            branch = conv(jax.nn.relu(branch) if i else branch, training=training, mask=mask)
        kept = x if self.shortcut is None else self.shortcut(x, training=training, mask=mask)
        return jax.nn.relu(kept + self.drop_path(branch, key))


class Resnet(nnx.Module):
    """A stem, stages of residual blocks, each at half the size and twice the width of the one before, the mean over all
    places, a linear output.

    Args:
        config: blocks of each stage, width, kind of block, stem, stochastic depth.
        shape: [height, width, channels] of one image.
        outputs: number of logits.

    Raises:
        ConfigError: if nothing is left of the images before the last stage.
    """

    def __init__(self, config: schema.Resnet, shape: Sequence[int], outputs: int, *, rngs: nnx.Rngs):
        self.small = config.stem == "cifar" or (config.stem == "auto" and min(shape[:2]) < schema.LEAST_PHOTOGRAPH)
        _check_size(config, shape, small=self.small)
        self.remat = config.remat
        size, stride = (3, 1) if self.small else (7, 2)
        frozen = config.norm == "frozen"
        self.stem = ConvNorm(shape[2], config.width, size=size, stride=stride, frozen=frozen, rngs=rngs)
        blocks: list[Block] = []
        channels, last = config.width, max(sum(config.blocks) - 1, 1)
        for stage, count in enumerate(config.blocks):
            inside = config.width * 2**stage if config.inner is None else config.inner[stage]
            wide = config.width * 2**stage * (_EXPANSION if config.bottleneck else 1)
            for number in range(count):
                stride = 2 if stage and not number else 1
                share = len(blocks) / last
                sizes = (channels, inside, wide)
                blocks.append(Block(config, *sizes, stride=stride, share=share, rngs=rngs))
                channels = wide
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(channels, outputs, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch height width channels"], *, key: Array | None = None, mask: Array | None = None
    ) -> Float[Array, "batch outputs"]:
        return self._judged(self._maps(x, key, mask))

    def inspect(self, x: Float[Array, "batch height width channels"], added: Array) -> tuple[Array, Array]:
        """Logits, and what comes out of the last block plus `added`, from which they are computed."""
        maps = self._maps(x, None, None) + added
        return self._judged(maps), maps

    def filters(self) -> Float[Array, "rows columns channels filters"]:
        """Kernels of the first convolution."""
        return self.stem.kernel[...]

    def _maps(self, x: Array, key: Array | None, mask: Array | None) -> Array:
        x = jax.nn.relu(self.stem(x, training=key is not None, mask=mask))
        if not self.small:
            x = overlapping_max_pool(x, 3, 2, 1)
        for i, block in enumerate(self.blocks):
            x = self._run(block, x, fold(key, i), mask)
        return x

    def _judged(self, x: Array) -> Array:
        return self.head(x.mean((1, 2), dtype=jnp.float32).astype(x.dtype))

    def _run(self, block: Block, x: Array, key: Array | None, mask: Array | None) -> Array:
        """A block; with `remat` what is inside of it is computed anew in the backward pass."""
        if self.remat == "none" or key is None:
            return block(x, key=key, mask=mask)
        structure, state = nnx.split(block)

        def pure(state: nnx.State, x: Array) -> tuple[Array, nnx.State]:
            merged = nnx.merge(structure, state)
            y = merged(x, key=key, mask=mask)
            return y, nnx.state(merged, nnx.BatchStat)

        checkpointed: Callable[..., tuple[Array, nnx.State]] = jax.checkpoint(pure)
        y, statistics = checkpointed(state, x)
        nnx.update(block, statistics)
        return y


def _check_size(config: schema.Resnet, shape: Sequence[int], *, small: bool) -> None:
    """Raises ConfigError where a stage is given a single pixel to halve."""
    needed = 2 ** (len(config.blocks) - 1) * (1 if small else 4)
    if min(shape[:2]) < needed:
        raise ConfigError(
            f"images of {shape[0]}x{shape[1]} are used up before the last of {len(config.blocks)} stages",
            where="model.blocks",
            hint=f"use fewer stages, model.stem=cifar, or images of {needed}x{needed} or more (data.image_size)",
        )
