"""Boxes within an image: parts that are resized to the whole, erased, or replaced by another image's."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bigctl.data.pictures import crops

Boxes = Int[Array, "*batch 4"]
"""First row, first column, rows and columns [pixels]; a box of no pixels is nowhere."""

_ATTEMPTS = 10


def uniform(key: jax.Array) -> Float[Array, "10 4"]:
    """The numbers in [0, 1) that a box is drawn with: share, shape and place of each attempt."""
    return jax.random.uniform(key, (_ATTEMPTS, 4))


def resized_crop_box(numbers: Float[Array, "10 4"], height: int, width: int, least: float) -> Int[Array, " 4"]:
    """A part of the area's share of `least` to 1 and 3/4 to 4/3 of the image's shape, as `crops.drawn` has it, which is
    torchvision's `RandomResizedCrop` (Szegedy et al. 2014): the first attempt that fits, else the whole image."""
    spread = math.log(crops.RATIO)
    area = height * width * (least + (1 - least) * numbers[:, 0])
    aspect = width / height * jnp.exp(spread * (2 * numbers[:, 1] - 1))
    columns, rows = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
    fits = (columns > 0) & (columns <= width) & (rows > 0) & (rows <= height)
    return _first(numbers, rows, columns, fits, (height, width), jnp.array([0, 0, height, width]))


def erasing_box(numbers: Float[Array, "10 4"], height: int, width: int, most: float) -> Int[Array, " 4"]:
    """A box of the area's share of 0.02 to `most` and of a height of 0.3 to 3.3 times its width, as torchvision's
    `RandomErasing` draws it (Zhong et al. 2017): the first of ten attempts that fits, else none."""
    low, high = math.log(0.3), math.log(3.3)
    area = height * width * (0.02 + (most - 0.02) * numbers[:, 0])
    aspect = jnp.exp(low + (high - low) * numbers[:, 1])
    rows, columns = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
    return _first(numbers, rows, columns, (rows < height) & (columns < width), (height, width), jnp.zeros(4))


def _first(
    numbers: Float[Array, "10 4"],
    rows: Float[Array, " 10"],
    columns: Float[Array, " 10"],
    fits: Bool[Array, " 10"],
    size: tuple[int, int],
    otherwise: Array,
) -> Int[Array, " 4"]:
    """The first box that fits, at its place; `otherwise` where none does."""
    top, left = (jnp.floor(numbers[:, 2] * (size[0] - rows + 1)), jnp.floor(numbers[:, 3] * (size[1] - columns + 1)))
    drawn = jnp.stack([top, left, rows, columns], axis=-1)[jnp.argmax(fits)]
    return jnp.where(fits.any(), drawn, otherwise).astype(jnp.int32)


def cut_box(share: Float[Array, ""], place: Float[Array, " 2"], height: int, width: int) -> Int[Array, " 4"]:
    """A box of the image's shape and of `share` of its area around a place in it, cut off at the border, as CutMix
    draws it (Yun et al. 2019).

    Args:
        share: what the box would have of the area.
        place: of its centre, in [0, 1).
    """
    size = jnp.array([height, width])
    extent = jnp.floor(size * jnp.sqrt(share)).astype(jnp.int32)
    centre = jnp.floor(place * size).astype(jnp.int32)
    first = jnp.clip(centre - extent // 2, 0, size)
    last = jnp.clip(centre + (extent + 1) // 2, 0, size)
    return jnp.concatenate([first, last - first])


def inside(boxes: Boxes, height: int, width: int) -> Bool[Array, "*batch height width"]:
    """Which pixels are in each box."""
    top, left, rows, columns = (boxes[..., i, None] for i in range(4))
    y, x = jnp.arange(height), jnp.arange(width)
    across, down = (x >= left) & (x < left + columns), (y >= top) & (y < top + rows)
    return down[..., :, None] & across[..., None, :]


def resized(images: Array, boxes: Int[Array, "batch 4"]) -> Float[Array, "batch height width channels"]:
    """The part of each image in its box at the size of the whole, by a triangular filter that takes in every pixel of
    what is made smaller, as PIL's and torchvision's antialiased bilinear interpolation have it.

    The filter is separable: two products with one matrix an image, of rows and of columns.
    """
    _, height, width, _ = images.shape
    down = _filter(boxes[:, 0], boxes[:, 2], height)
    across = _filter(boxes[:, 1], boxes[:, 3], width)
    images = jnp.einsum("boh,bhwc->bowc", down, images.astype(jnp.float32))
    return jnp.einsum("bpw,bowc->bopc", across, images)


def _filter(first: Int[Array, " batch"], count: Int[Array, " batch"], size: int) -> Float[Array, "batch size size"]:
    """What each pixel of a side weighs in each of the resized one."""
    first, count = first[:, None, None].astype(jnp.float32), count[:, None, None].astype(jnp.float32)
    step = count / size
    pixel = jnp.arange(size, dtype=jnp.float32)
    centre = first + (pixel[None, :, None] + 0.5) * step
    reach = jnp.maximum(step, 1.0)
    weight = jnp.maximum(0.0, 1.0 - jnp.abs(pixel[None, None, :] + 0.5 - centre) / reach)
    weight *= (pixel >= first) & (pixel < first + count)
    return weight / jnp.sum(weight, axis=-1, keepdims=True)


def center_cropped(images: Array, share: float) -> Float[Array, "batch height width channels"] | Array:
    """The middle of each image, `share` of its sides, at the size of the whole; the images themselves where all is."""
    batch, height, width, _ = images.shape
    rows, columns = max(1, round(height * share)), max(1, round(width * share))
    if (rows, columns) == (height, width):
        return images
    box = jnp.array([(height - rows) // 2, (width - columns) // 2, rows, columns])
    return resized(images, jnp.broadcast_to(box, (batch, 4)))
