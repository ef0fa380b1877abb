"""Which part of a picture is seen: all of it, the largest middle part of the wanted shape, or one drawn at random.

What is drawn is a function of (seed, position), by the hash that orders the examples: before a picture is opened, and
the same for any number of threads and processes.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float64, Int64, UInt64

from bigctl.data.sampler import mix

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of a picture [pixels]."""

_CROPS = np.uint64(0x63726F7073)  # keys crops apart from the order of examples
_ATTEMPTS = 10
RATIO = 4 / 3
"""Largest width over height of what is drawn, for a square; the smallest is its inverse."""


def keys(seed: int, positions: Int64[np.ndarray, " batch"]) -> UInt64[np.ndarray, " batch"]:
    """What the crop at each position is drawn with."""
    return mix(mix(np.uint64(seed), _CROPS), positions.astype(np.uint64))


def draws(key: UInt64[np.ndarray, " batch"]) -> Float64[np.ndarray, "batch 10 4"]:
    """Uniform numbers in [0, 1), four for each attempt."""
    numbers = mix(key[:, None], np.arange(4 * _ATTEMPTS, dtype=np.uint64)[None, :]) >> np.uint64(11)
    return (numbers * 2.0**-53).reshape(len(key), _ATTEMPTS, 4)


def whole(width: int, height: int, wanted: tuple[int, int]) -> Box:
    """All of a picture, whatever its shape."""
    return 0.0, 0.0, float(width), float(height)


def middle(width: int, height: int, wanted: tuple[int, int]) -> Box:
    """The largest part in the middle with the shape of `wanted` (height, width).

    To resize it is to resize the shorter side to what is wanted and to cut the longer one.
    """
    rows, columns = wanted
    if width * rows > height * columns:
        part = height * columns / rows
        return (width - part) / 2, 0.0, (width + part) / 2, float(height)
    part = width * rows / columns
    return 0.0, (height - part) / 2, float(width), (height + part) / 2


def drawn(width: int, height: int, wanted: tuple[int, int], least: float, numbers: Float64[np.ndarray, "10 4"]) -> Box:
    """A random part: of the area a share between `least` and 1, of the shape `wanted` times 3/4 to 4/3.

    It is what `RandomResizedCrop` of torchvision draws, after Szegedy et al. 2014: of ten attempts the first that fits
    counts, else the largest part in the middle whose shape is allowed.
    """
    shape, spread = wanted[1] / wanted[0], math.log(RATIO)
    for share, ratio, down, right in numbers.tolist():
        area = width * height * (least + (1 - least) * share)
        aspect = shape * math.exp(spread * (2 * ratio - 1))
        columns, rows = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < columns <= width and 0 < rows <= height:
            left, top = int(right * (width - columns + 1)), int(down * (height - rows + 1))
            return float(left), float(top), float(left + columns), float(top + rows)
    aspect = min(max(width / height, shape / RATIO), shape * RATIO)
    columns, rows = min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))
    left, top = (width - columns) // 2, (height - rows) // 2
    return float(left), float(top), float(left + columns), float(top + rows)
