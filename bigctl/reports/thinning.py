"""Curves with fewer points that look the same: the extremes of every stretch are kept, and so are the gaps."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int


def thin(values: Float[np.ndarray, " n"], most: int) -> Int[np.ndarray, " kept"]:
    """Which points of a curve to draw.

    The curve is cut into stretches of equal length; of each its lowest and highest point are kept, and one that is not
    finite, so that a gap stays one. The first and the last point are always kept.

    Args:
        values: in order; NaN where there is none.
        most: how many to keep, at least 8; a curve with no more points than that is kept whole.

    Returns:
        Indices in ascending order, at most `most`.
    """
    count = len(values)
    if count <= most:
        return np.arange(count)
    finite = np.isfinite(values)
    stretches = max(1, (most - 2) // (2 if finite.all() else 3))
    edges = np.linspace(0, count, stretches + 1).astype(np.int64)
    starts = edges[:-1]
    stretch = np.repeat(np.arange(stretches), np.diff(edges))
    kept = [np.array([0, count - 1])]
    for filler, pick in ((np.inf, np.minimum), (-np.inf, np.maximum)):
        filled = np.where(finite, values, filler)
        extreme = pick.reduceat(filled, starts)
        kept.append(_first(finite & (filled == extreme[stretch]), stretch))
    kept.append(_first(~finite, stretch))
    return np.unique(np.concatenate(kept))


def _first(wanted: np.ndarray, stretch: np.ndarray) -> np.ndarray:
    """The first wanted point of each stretch that has one."""
    indices = np.flatnonzero(wanted)
    _, first = np.unique(stretch[indices], return_index=True)
    return indices[first]
