"""Where the pixels of a training image come from: one affine map, mirrors, and crops of the padded image."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bigctl.config.schema import Augment

NODES = 7
"""Points along each side of an image from which the moves of a warp are interpolated."""


def draw_affine(key: jax.Array, config: Augment, shape: tuple[int, ...]) -> Float[Array, "2 3"]:
    """The inverse map, from output to input pixels relative to the centre: rows (row, column), columns (y, x, 1)."""
    _, height, width, _ = shape
    angle, zoom, down, right = jax.random.uniform(key, (4,), minval=-1.0, maxval=1.0)
    angle = angle * math.radians(config.rotate)
    zoom = 1.0 / (1.0 + zoom * config.scale)
    cos, sin = jnp.cos(angle) * zoom, jnp.sin(angle) * zoom
    return jnp.array([[cos, sin, down * config.shift * height], [-sin, cos, right * config.shift * width]])


def warp(drawn: Float[Array, "batch 2 nodes nodes"], height: int, width: int) -> Float[Array, "batch 2 height width"]:
    """A smooth field of moves, down and right, from normal draws at the nodes of a grid over the image, after Simard et
    al. 2003: each pixel's is the nodes' sum, weighted by a bell as wide as their distance, with variance 1.
    """

    def weights(side: int) -> Float[Array, "side nodes"]:
        places = jnp.arange(side) / max(side - 1, 1) * (NODES - 1)
        bell = jnp.exp(-0.5 * (places[:, None] - jnp.arange(NODES)) ** 2)
        return bell / jnp.linalg.norm(bell, axis=1, keepdims=True)

    return jnp.einsum("bdij,hi,wj->bdhw", drawn, weights(height), weights(width))


def affine(
    images: Array, matrices: Float[Array, "batch 2 3"], moves: Float[Array, "batch 2 height width"] | None = None
) -> Float[Array, "batch height width channels"]:
    """Resample with bilinear interpolation: output pixel p shows the input at `matrix @ (p - centre, 1) + centre`, and
    at `moves` from there, rows and columns [pixels], where they are given.

    Outside is 0, also for the interpolation at the border, as `scipy.ndimage.affine_transform(order=1,
    mode="grid-constant")` and `torch.nn.functional.grid_sample(align_corners=True)` have it.
    """
    batch, height, width, channels = images.shape
    stride, rows = width + 3, height + 3
    padded = jnp.pad(images.astype(jnp.float32), ((0, 0), (1, 2), (1, 2), (0, 0)))
    flat = padded.reshape(batch * rows * stride, channels)
    # Clipped into the border of zeros, so every index below is inside.
    row, column = _places(matrices, height, width)
    if moves is not None:
        row, column = row + moves[:, 0], column + moves[:, 1]
    row, column = jnp.clip(row, -1, height), jnp.clip(column, -1, width)
    row0, column0 = jnp.floor(row), jnp.floor(column)
    down, right = (row - row0)[..., None], (column - column0)[..., None]
    image = jnp.arange(batch, dtype=jnp.int32)[:, None, None] * (rows * stride)
    corner = ((row0 + 1) * stride + (column0 + 1)).astype(jnp.int32) + image

    def at(offset: int) -> Array:
        return flat.at[corner + offset].get(mode="promise_in_bounds")

    upper = at(0) + (at(1) - at(0)) * right
    lower = at(stride) + (at(stride + 1) - at(stride)) * right
    return upper + (lower - upper) * down


def nearest(images: Array, matrices: Float[Array, "batch 2 3"]) -> Float[Array, "batch height width channels"]:
    """Like `affine`, each pixel being the nearest one of the input, black outside: `grid_sample(mode="nearest")`."""
    batch, height, width, channels = images.shape
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    flat = padded.reshape(batch * (height + 2) * (width + 2), channels)
    row, column = _places(matrices, height, width)
    row = jnp.clip(jnp.round(row), -1, height).astype(jnp.int32) + 1
    column = jnp.clip(jnp.round(column), -1, width).astype(jnp.int32) + 1
    image = jnp.arange(batch, dtype=jnp.int32)[:, None, None] * (height + 2)
    return flat.at[(image + row) * (width + 2) + column].get(mode="promise_in_bounds")


def _places(
    matrices: Float[Array, "batch 2 3"], height: int, width: int
) -> tuple[Float[Array, "batch height width"], Float[Array, "batch height width"]]:
    """Row and column of the input that each pixel of the output shows."""
    cy, cx = (height - 1) / 2, (width - 1) / 2
    y, x = (jnp.arange(height) - cy)[None, :, None], (jnp.arange(width) - cx)[None, None, :]
    m = matrices[:, :, :, None, None]
    row = m[:, 0, 0] * y + m[:, 0, 1] * x + m[:, 0, 2] + cy
    return row, m[:, 1, 0] * y + m[:, 1, 1] * x + m[:, 1, 2] + cx


def flip(image: Array, key: jax.Array, direction: str) -> Array:
    """An image [height, width, channels], mirrored or not, each with the probability 1/2."""
    across, over = jax.random.bernoulli(key, 0.5, (2,))
    if direction in ("horizontal", "both"):
        image = jnp.where(across, image[:, ::-1], image)
    if direction in ("vertical", "both"):
        image = jnp.where(over, image[::-1], image)
    return image


def crop(image: Array, key: jax.Array, pad: int, border: str) -> Array:
    """A random window of an image [height, width, channels] padded on each side with black or its reflection."""
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)), "reflect" if border == "reflect" else "constant")
    row, column = jax.random.randint(key, (2,), 0, 2 * pad + 1)
    return jax.lax.dynamic_slice(padded, (row, column, 0), image.shape)
