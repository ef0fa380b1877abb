"""Arrays of pictures made smaller, by numpy and jax alike, to the bit as PIL does it.

The filter is PIL's bilinear one, a triangle that takes in every pixel of what is made smaller, in its integers: one
axis after the other, each rounded to 8 bits. So a batch is the same whether the host or a device makes it.
"""

from __future__ import annotations

import math
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np

Pixels = Any
"""uint8 [..., height, width, channels], an array of numpy or of jax."""

_BITS = 22  # PIL's: 32, less 8 of a pixel and 2 of headroom


def scaled_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Height and width [pixels] of a picture whose shorter side is made `side` long."""
    shorter = min(size)
    height, width = (max(1, round(each * side / shorter)) for each in size)
    return height, width


def scaled(pictures: Pixels, side: int, xp: ModuleType = np) -> Pixels:
    """uint8 [..., height, width, channels] made smaller, so that the shorter side has `side` pixels.

    Args:
        pictures: an array of numpy or, with `xp=jax.numpy`, of jax.
        side: at most the shorter side [pixels].
    """
    before = pictures.shape[-3:-1]
    height, width = scaled_size(before, side)
    ways = [(-2, width), (-3, height)]
    for axis, size in reversed(ways) if before[0] > 2 * before[1] else ways:
        pictures = _along(pictures, axis, size, xp)
    return pictures


def _along(pictures: Pixels, axis: int, size: int, xp: ModuleType) -> Pixels:
    if pictures.shape[axis] == size:
        return pictures
    places, weights = _taps(pictures.shape[axis], size)
    around = (1,) * (-axis - 1)
    total: Pixels = 1 << (_BITS - 1)
    for place, weight in zip(places, weights, strict=True):
        total = total + xp.take(pictures, place, axis=axis).astype(np.int32) * weight.reshape(-1, *around)
    return xp.clip(total >> _BITS, 0, 255).astype(np.uint8)


@lru_cache(maxsize=64)
def _taps(before: int, after: int) -> tuple[np.ndarray, np.ndarray]:
    """For each pixel of the smaller side the ones that it is made of, int32 [taps, after], and their weights."""
    step = before / after
    reach = max(step, 1.0)
    most = math.ceil(reach) * 2 + 1
    places, weights = np.zeros((most, after), np.int32), np.zeros((most, after), np.int32)
    for pixel in range(after):
        centre = (pixel + 0.5) * step
        first, last = max(0, int(centre - reach + 0.5)), min(before, int(centre + reach + 0.5))
        found = np.maximum(0.0, 1.0 - np.abs((np.arange(first, last) - centre + 0.5) * (1 / reach)))
        total = np.cumsum(found)[-1]  # one after the other, as PIL adds them
        found = np.floor(found / total * (1 << _BITS) + 0.5)
        places[: last - first, pixel] = np.arange(first, last)
        weights[: last - first, pixel] = found
    return places, weights
