"""Inception-v3 (Szegedy et al. 2016), as torchvision has it, without the auxiliary head.

Dimension names: batch, height, width, channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from bigctl.config import schema
from bigctl.errors import ConfigError
from bigctl.models.batch_norm import BatchNorm
from bigctl.models.conv import conv1x1, conv2d, strided_conv2d
from bigctl.models.layers import Dropout, fold
from bigctl.models.pooling import overlapping_max_pool

LEAST = 75
"""Shorter side of an image of which something is left for the last blocks [pixels]."""
_EPS = 1e-3


class Unit(NamedTuple):
    """A convolution with its norm: channels, size of the kernel, stride; whether zeros around keep the size."""

    channels: int
    rows: int = 1
    columns: int = 1
    stride: int = 1
    same: bool = True


def _square(channels: int, size: int) -> Unit:
    return Unit(channels, size, size)


def _halving(channels: int) -> Unit:
    return Unit(channels, 3, 3, stride=2, same=False)


Branch = tuple[Unit | tuple[Unit, Unit], ...]
"""Units one after the other; a pair at the end reads the same, and both of its outputs count."""


class Mixed(NamedTuple):
    """A block: branches side by side, the last one behind a pool of 3x3 (avg keeps the size, max halves it)."""

    branches: tuple[Branch, ...]
    pool: str


def _a(pooled: int) -> Mixed:
    wide = (Unit(64), _square(96, 3), _square(96, 3))
    return Mixed(((Unit(64),), (Unit(48), _square(64, 5)), wide, (Unit(pooled),)), "avg")


def _c(c: int) -> Mixed:
    short = (Unit(c), Unit(c, 1, 7), Unit(192, 7, 1))
    long = (Unit(c), Unit(c, 7, 1), Unit(c, 1, 7), Unit(c, 7, 1), Unit(192, 1, 7))
    return Mixed(((Unit(192),), short, long, (Unit(192),)), "avg")


_B = Mixed(((_halving(384),), (Unit(64), _square(96, 3), _halving(96)), ()), "max")
_D = Mixed(
    ((Unit(192), _halving(320)), (Unit(192), Unit(192, 1, 7), Unit(192, 7, 1), _halving(192)), ()), "max"
)  # fmt: skip
_FORK = (Unit(384, 1, 3), Unit(384, 3, 1))
_E = Mixed(((Unit(320),), (Unit(384), _FORK), (Unit(448), _square(384, 3), _FORK), (Unit(192),)), "avg")
_STEM = (_halving(32), Unit(32, 3, 3, same=False), _square(64, 3), Unit(80), Unit(192, 3, 3, same=False))
_POOLED_AFTER = (2, 4)  # of the stem's units
_MIXED = (_a(32), _a(64), _a(64), _B, _c(128), _c(160), _c(160), _c(192), _D, _E, _E)


class ConvNorm(nnx.Module):
    """A convolution without bias, batch normalisation, ReLU."""

    def __init__(self, inputs: int, unit: Unit, *, rngs: nnx.Rngs):
        init = nnx.initializers.he_normal()
        self.kernel = nnx.Param(init(rngs.params(), (unit.rows, unit.columns, inputs, unit.channels)))
        self.norm = BatchNorm(unit.channels, eps=_EPS)
        self.unit = unit

    def __call__(
        self, x: Float[Array, "batch height width inputs"], *, training: bool, mask: Array | None
    ) -> Float[Array, "batch height2 width2 outputs"]:
        kernel, unit = self.kernel[...], self.unit
        if unit.stride > 1:
            y = strided_conv2d(x, kernel, unit.stride, 0)
        elif unit.rows == unit.columns == 1:
            y = conv1x1(x, kernel[0, 0], 1)
        else:
            y = conv2d(x, kernel, "same" if unit.same else "valid")
        return jax.nn.relu(self.norm(y, training=training, mask=mask))


class Block(nnx.Module):
    """The branches of a `Mixed`, their outputs side by side as channels."""

    def __init__(self, inputs: int, mixed: Mixed, *, rngs: nnx.Rngs):
        branches, forks, outputs = [], [], 0
        for branch in mixed.branches:
            channels, units = inputs, [unit for part in branch for unit in ([part] if isinstance(part, Unit) else part)]
            fork = bool(branch) and not isinstance(branch[-1], Unit)
            convs = []
            for number, unit in enumerate(units):
                convs.append(ConvNorm(channels, unit, rngs=rngs))
                channels = channels if fork and number == len(units) - 2 else unit.channels
            outputs += channels * (2 if fork else 1)
            branches.append(nnx.List(convs))
            forks.append(fork)
        self.branches = nnx.List(branches)
        self.forks, self.pool, self.outputs = tuple(forks), mixed.pool, outputs

    def __call__(
        self, x: Float[Array, "batch height width channels"], *, training: bool, mask: Array | None
    ) -> Float[Array, "batch height2 width2 channels2"]:
        found = []
        for number, (convs, fork) in enumerate(zip(self.branches, self.forks, strict=True)):
            y = x
            if number == len(self.branches) - 1:
                y = average(x) if self.pool == "avg" else overlapping_max_pool(x, 3, 2)
            for conv in convs[:-2] if fork else convs:
                y = conv(y, training=training, mask=mask)
            found += [conv(y, training=training, mask=mask) for conv in convs[-2:]] if fork else [y]
        return jnp.concatenate(found, -1)


class Inception(nnx.Module):
    """Convolutions, 11 blocks of branches, the mean over all places, dropout, a linear output.

    Args:
        config: width and dropout.
        shape: [height, width, channels] of one image.
        outputs: number of logits.

    Raises:
        ConfigError: if nothing is left of the images before the last blocks.
    """

    def __init__(self, config: schema.Inception, shape: Sequence[int], outputs: int, *, rngs: nnx.Rngs):
        if min(shape[:2]) < LEAST:
            raise ConfigError(
                f"images of {shape[0]}x{shape[1]} are used up before the last blocks",
                where="model",
                hint=f"images of {LEAST}x{LEAST} or more (data.image_size; 299 in the paper), or choose model=resnet18",
            )
        stem, channels = [], shape[2]
        for unit in _STEM:
            stem.append(ConvNorm(channels, _scaled(unit, config.width), rngs=rngs))
            channels = stem[-1].unit.channels
        self.stem = nnx.List(stem)
        blocks = []
        for mixed in _MIXED:
            branches = tuple(tuple(_parts(branch, config.width)) for branch in mixed.branches)
            blocks.append(Block(channels, Mixed(branches, mixed.pool), rngs=rngs))
            channels = blocks[-1].outputs
        self.blocks = nnx.List(blocks)
        self.dropout = Dropout(config.dropout)
        self.head = nnx.Linear(channels, outputs, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch height width channels"], *, key: Array | None = None, mask: Array | None = None
    ) -> Float[Array, "batch outputs"]:
        return self._judged(self._maps(x, training=key is not None, mask=mask), key)

    def inspect(self, x: Float[Array, "batch height width channels"], added: Array) -> tuple[Array, Array]:
        """Logits, and what comes out of the last block plus `added`, from which they are computed."""
        maps = self._maps(x, training=False, mask=None) + added
        return self._judged(maps, None), maps

    def filters(self) -> Float[Array, "rows columns channels filters"]:
        """Kernels of the first convolution."""
        return self.stem[0].kernel[...]

    def _maps(self, x: Array, *, training: bool, mask: Array | None) -> Array:
        for number, conv in enumerate(self.stem):
            x = conv(x, training=training, mask=mask)
            if number in _POOLED_AFTER:
                x = overlapping_max_pool(x, 3, 2)
        for block in self.blocks:
            x = block(x, training=training, mask=mask)
        return x

    def _judged(self, x: Array, key: Array | None) -> Array:
        x = x.mean((1, 2), dtype=jnp.float32).astype(x.dtype)
        return self.head(self.dropout(x, fold(key, 0)))


def _scaled(unit: Unit, width: float) -> Unit:
    return unit._replace(channels=max(1, round(unit.channels * width)))


def _parts(branch: Branch, width: float) -> Iterator[Unit | tuple[Unit, Unit]]:
    for part in branch:
        yield _scaled(part, width) if isinstance(part, Unit) else (_scaled(part[0], width), _scaled(part[1], width))


def average(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
    """The mean of the 3x3 pixels around each, those outside being zeros."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    return (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]) / 9
