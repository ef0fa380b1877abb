"""EfficientNet-Lite (Tan & Le 2019, in the form for devices without squeeze and excitation): inverted bottlenecks of a
1x1 convolution that widens, a depthwise one, and a 1x1 one that narrows.

Padding, and the constants of batch normalisation, are those of the TensorFlow original. Dimension names: batch, height,
width, channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from bigctl.config import schema
from bigctl.errors import ConfigError
from bigctl.models.batch_norm import BatchNorm
from bigctl.models.conv import conv1x1, strided_conv2d
from bigctl.models.depthwise import depthwise_conv2d, same_pads
from bigctl.models.layers import Dropout, DropPath, fold

_STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
           (1, 3, 1, 6, 320))  # fmt: skip
"""Of each stage: blocks, side of the kernel, stride of the first block, how much wider the inside is, channels."""
_STEM, _TOP = 32, 1280
"""Channels of the first and the last convolution, which no multiplier changes in the Lite models."""
_MOMENTUM, _EPS = 0.99, 1e-3
_LEAST = 17
"""Shorter side of an image of which something is left for the last stage to halve [pixels]."""


class ConvNorm(nnx.Module):
    """A convolution without bias, then batch normalisation; `depthwise` for one kernel a channel."""

    def __init__(
        self, inputs: int, outputs: int, *, size: int = 1, stride: int = 1, depthwise: bool = False, norm: str,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
        if depthwise:  # whose outputs are of one channel each
            init = nnx.initializers.normal(math.sqrt(2.0) / size)
        self.kernel = nnx.Param(init(rngs.params(), (size, size, 1 if depthwise else inputs, outputs)))
        self.norm = BatchNorm(outputs, momentum=_MOMENTUM, eps=_EPS)
        self.size, self.stride, self.depthwise, self.frozen = size, stride, depthwise, norm == "frozen"

    def __call__(
        self, x: Float[Array, "batch height width inputs"], *, training: bool, mask: Array | None
    ) -> Float[Array, "batch height2 width2 outputs"]:
        kernel = self.kernel[...]
        pads = same_pads(x.shape[1:3], self.size, self.stride)
        if self.depthwise:
            x = depthwise_conv2d(x, kernel, self.stride, pads)
        elif self.size == 1:
            x = conv1x1(x, kernel[0, 0], 1)
        else:
            x = strided_conv2d(jnp.pad(x, ((0, 0), *pads, (0, 0))), kernel, self.stride, 0)
        return self.norm(x, training=training and not self.frozen, mask=mask)


class Block(nnx.Module):
    """An inverted bottleneck, added to its input where it keeps the shape."""

    def __init__(
        self, inputs: int, outputs: int, *, size: int, stride: int, expand: int, norm: str, drop_path: float,
        share: float, rngs: nnx.Rngs,
    ):  # fmt: skip
        inside = inputs * expand
        self.expand = ConvNorm(inputs, inside, norm=norm, rngs=rngs) if expand > 1 else None
        self.depthwise = ConvNorm(inside, inside, size=size, stride=stride, depthwise=True, norm=norm, rngs=rngs)
        self.project = ConvNorm(inside, outputs, norm=norm, rngs=rngs)
        self.adds = stride == 1 and inputs == outputs
        self.drop_path = DropPath(drop_path, share if self.adds else 0.0)

    def __call__(
        self, x: Float[Array, "batch height width channels"], *, key: Array | None, mask: Array | None
    ) -> Float[Array, "batch height2 width2 channels2"]:
        training, branch = key is not None, x
        if self.expand is not None:
            branch = jax.nn.relu6(self.expand(branch, training=training, mask=mask))
        branch = jax.nn.relu6(self.depthwise(branch, training=training, mask=mask))
        branch = self.project(branch, training=training, mask=mask)
        return x + self.drop_path(branch, key) if self.adds else branch


class EfficientNet(nnx.Module):
    """A stem at stride 2, stages of inverted bottlenecks, a 1x1 convolution, the mean over all places, a linear output.

    Args:
        config: width and depth as multiples of Lite0's, normalisation, dropout, stochastic depth.
        shape: [height, width, channels] of one image; 17 pixels or more.
        outputs: number of logits.

    Raises:
        ConfigError: if nothing is left of the images before the last stage.
    """

    def __init__(self, config: schema.EfficientNet, shape: Sequence[int], outputs: int, *, rngs: nnx.Rngs):
        if min(shape[:2]) < _LEAST:
            files = "(recipe.size or data.image_size, of pictures in files)"
            other = ", or choose model=resnet20" if config.init_from is None else ""
            raise ConfigError(
                f"images of {shape[0]}x{shape[1]} are used up before the last of {len(_STAGES)} stages",
                where="model",
                hint=f"images of {_LEAST}x{_LEAST} or more {files}{other}",
            )
        config = config.with_defaults()
        norm = config.norm or "batch"
        self.stem = ConvNorm(shape[2], _STEM, size=3, stride=2, norm=norm, rngs=rngs)
        plan = stages(config)
        blocks: list[Block] = []
        count, channels = sum(stage[0] for stage in plan), _STEM
        for repeats, size, first, expand, width in plan:
            for number in range(repeats):
                stride, share = (1 if number else first), len(blocks) / count
                blocks.append(
                    Block(channels, width, size=size, stride=stride, expand=expand, norm=norm,
                          drop_path=config.drop_path, share=share, rngs=rngs)
                )  # fmt: skip
                channels = width
        self.blocks = nnx.List(blocks)
        self.top = ConvNorm(channels, _TOP, norm=norm, rngs=rngs)
        self.dropout = Dropout(config.dropout)
        self.head = nnx.Linear(_TOP, outputs, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch height width channels"], *, key: Array | None = None, mask: Array | None = None
    ) -> Float[Array, "batch outputs"]:
        return self._judged(self._maps(x, key, mask), key)

    def inspect(self, x: Float[Array, "batch height width channels"], added: Array) -> tuple[Array, Array]:
        """Logits, and what comes out of the last convolution plus `added`, from which they are computed."""
        maps = self._maps(x, None, None) + added
        return self._judged(maps, None), maps

    def filters(self) -> Float[Array, "rows columns channels filters"]:
        """Kernels of the first convolution."""
        return self.stem.kernel[...]

    def _maps(self, x: Array, key: Array | None, mask: Array | None) -> Array:
        training = key is not None
        x = jax.nn.relu6(self.stem(x, training=training, mask=mask))
        for i, block in enumerate(self.blocks):
            x = block(x, key=fold(key, i), mask=mask)
        return jax.nn.relu6(self.top(x, training=training, mask=mask))

    def _judged(self, x: Array, key: Array | None) -> Array:
        pooled = x.mean((1, 2), dtype=jnp.float32).astype(x.dtype)
        return self.head(self.dropout(pooled, fold(key, len(self.blocks))))


def stages(config: schema.EfficientNet) -> list[tuple[int, int, int, int, int]]:
    """`_STAGES` by the multipliers; the first and the last keep their number of blocks."""
    found = []
    for number, (repeats, size, stride, expand, channels) in enumerate(_STAGES):
        if 0 < number < len(_STAGES) - 1:
            repeats = math.ceil(repeats * config.depth)
        found.append((repeats, size, stride, expand, _rounded(channels * config.width)))
    return found


def _rounded(channels: float) -> int:
    """To a multiple of 8, by no more than a tenth downwards."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest
