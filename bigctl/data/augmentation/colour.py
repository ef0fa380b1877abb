"""Colours of images, as PIL's `ImageEnhance` and torchvision's `ColorJitter` change them.

All take images as float32 [batch, height, width, channels] in [0, 255] and a number an image; grey images have no
saturation and no hue. They give float32 in [0, 255]; nothing is rounded but where the definition is one of integers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Images = Float[Array, "batch height width channels"]
Each = Float[Array, " batch"]

_GREY = (0.299, 0.587, 0.114)
"""Of ITU-R 601-2, which PIL's conversion to "L" uses."""


def blend(images: Images, towards: Array, factors: Each) -> Images:
    """`images` at the factor 1, `towards` at 0, and beyond them in between, cut off at black and white."""
    f = factors[:, None, None, None]
    return jnp.clip(f * images + (1.0 - f) * towards, 0.0, 255.0)


def grey(images: Images) -> Float[Array, "batch height width 1"]:
    """The luma of each pixel."""
    if images.shape[-1] != 3:
        return images[..., :1]
    return jnp.sum(images * jnp.array(_GREY, jnp.float32), axis=-1, keepdims=True)


def mean_grey(images: Images) -> Float[Array, "batch 1 1 1"]:
    return jnp.mean(grey(images), axis=(1, 2, 3), keepdims=True)


def brightened(images: Images, factors: Each) -> Images:
    return blend(images, jnp.zeros((), jnp.float32), factors)


def contrasted(images: Images, factors: Each) -> Images:
    return blend(images, mean_grey(images), factors)


def saturated(images: Images, factors: Each) -> Images:
    return blend(images, grey(images), factors) if images.shape[-1] == 3 else images


def turned(images: Images, turns: Each) -> Images:
    """With the hue of each pixel turned by a fraction of the circle, saturation and value as they were (HSV)."""
    if images.shape[-1] != 3:
        return images
    red, green, blue = images[..., 0], images[..., 1], images[..., 2]
    value = jnp.max(images, axis=-1)
    chroma = value - jnp.min(images, axis=-1)
    safe = jnp.where(chroma > 0, chroma, 1.0)
    hue = jnp.where(
        value == red,
        (green - blue) / safe,
        jnp.where(value == green, 2.0 + (blue - red) / safe, 4.0 + (red - green) / safe),
    )
    hue = hue + 6.0 * turns[:, None, None]

    def channel(offset: float) -> Array:
        k = jnp.mod(offset + hue, 6.0)
        return value - chroma * jnp.clip(jnp.minimum(k, 4.0 - k), 0.0, 1.0)

    return jnp.stack([channel(5.0), channel(3.0), channel(1.0)], axis=-1)


def sharpened(images: Images, factors: Each) -> Images:
    return blend(images, smoothed(images), factors)


def smoothed(images: Images) -> Images:
    """By PIL's `ImageFilter.SMOOTH`, whose weights are 5 for a pixel and 1 for its eight neighbours; the border stays
    as it is."""
    if min(images.shape[1:3]) < 3:
        return images
    rows = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
    around = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    inner = jnp.round((around + 4.0 * images[:, 1:-1, 1:-1]) / 13.0)
    return images.at[:, 1:-1, 1:-1].set(inner)


def posterized(images: Images, bits: Each) -> Images:
    """Only the highest `bits` of the eight of each number are left."""
    step = jnp.exp2(8.0 - bits)[:, None, None, None]
    return jnp.floor(images / step) * step


def solarized(images: Images, thresholds: Each) -> Images:
    """Numbers from a threshold on are inverted."""
    return jnp.where(images >= thresholds[:, None, None, None], 255.0 - images, images)


def stretched(images: Images) -> Images:
    """Each channel so that it reaches from 0 to 255, as `ImageOps.autocontrast` does; a constant one stays."""
    low, high = jnp.min(images, axis=(1, 2), keepdims=True), jnp.max(images, axis=(1, 2), keepdims=True)
    flat = high == low
    return jnp.where(flat, images, jnp.floor((images - low) * (255.0 / jnp.where(flat, 1.0, high - low))))


def equalized(images: Images) -> Images:
    """Each channel so that its numbers, which must be integers, are spread evenly, as `ImageOps.equalize` does."""
    return jax.vmap(jax.vmap(_equalized, in_axes=-1, out_axes=-1))(images)


def _equalized(channel: Float[Array, "height width"]) -> Float[Array, "height width"]:
    numbers = channel.astype(jnp.int32)
    counts = jnp.zeros((256,), jnp.int32).at[numbers.reshape(-1)].add(1, mode="promise_in_bounds")
    step = (numbers.size - counts[jnp.max(numbers)]) // 255
    below = jnp.cumsum(counts) - counts
    table = jnp.clip((below + step // 2) // jnp.maximum(step, 1), 0, 255)
    table = jnp.where(step > 0, table, jnp.arange(256))
    return table.at[numbers].get(mode="promise_in_bounds").astype(jnp.float32)
