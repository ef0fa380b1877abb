"""Pictures that are nearly copies of others: the same photograph, scaled, compressed or brightened anew.

Each is known by a thumbnail, grey, of zero mean and unit length; of two pictures its product is their correlation,
which another size, another compression, more light and more contrast hardly change.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, UInt8

ALIKE = 0.99
"""Correlation from which on two pictures are taken for one."""
_SIDE = 16
"""Of a thumbnail [pixels]."""
_LEAST = 32
"""Shorter side of pictures that are compared; smaller ones, such as digits, are often alike by chance [pixels]."""
_FLAT = 4.0
"""Standard deviation below which a thumbnail tells nothing [levels of 255]."""
_PAIRS = 2 * 10**9
"""Pairs of pictures that are compared at most."""
_AT_ONCE = 256
_PIXELS = 2**21
"""Of pictures that are made smaller at once."""


def near_copies(
    pictures: UInt8[np.ndarray, "n height width channels"], train: UInt8[np.ndarray, "m height width channels"]
) -> Bool[np.ndarray, " n"]:
    """Which pictures have a near copy in training. None have where they are smaller than 32 pixels, or too many."""
    found = np.zeros(len(pictures), bool)
    if min(train.shape[1:3]) < _LEAST or len(pictures) * len(train) > _PAIRS:
        return found
    own, known = _thumbnails(pictures), _thumbnails(train).T
    for start in range(0, len(pictures), _AT_ONCE):
        part = own[start : start + _AT_ONCE]
        found[start : start + len(part)] = (part @ known).max(1, initial=0) >= ALIKE
    return found


def _thumbnails(pictures: UInt8[np.ndarray, "n height width channels"]) -> Float[np.ndarray, "n places"]:
    """Zero mean and unit length; zeros for a picture of one colour."""
    rows, columns = (np.linspace(0, side, _SIDE + 1).astype(int) for side in pictures.shape[1:3])
    found = np.zeros((len(pictures), _SIDE * _SIDE), np.float32)
    step = max(1, min(_AT_ONCE, _PIXELS // (pictures.shape[1] * pictures.shape[2])))
    for start in range(0, len(pictures), step):
        grey = np.asarray(pictures[start : start + step]).mean(-1, dtype=np.float32)
        sums = np.add.reduceat(np.add.reduceat(grey, rows[:-1], 1), columns[:-1], 2)
        means = sums / (np.diff(rows)[:, None] * np.diff(columns)[None, :])
        flat = means.reshape(len(means), -1)
        flat = flat - flat.mean(1, keepdims=True)
        spread = np.linalg.norm(flat, axis=1, keepdims=True)
        found[start : start + len(flat)] = np.where(spread < _FLAT * _SIDE, 0, flat / np.maximum(spread, 1e-9))
    return found
