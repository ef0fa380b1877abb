"""Attributions by gradients: integrated along a straight line, or at the example alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

POINTS = 16
"""Points on the line at first, and examples that are computed at once."""
MOST = 1024
"""Points at most."""
ENOUGH = 1e-3
"""The largest error of completeness that is accepted, in the unit of the score."""

Along = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(places on the line from 0 to 1 [n], weights [n]) -> the weighted sum of gradients there; n is `POINTS` or 1."""


@dataclass(frozen=True)
class Integrated:
    """Attributions that add up to the difference of two scores, but for an error.

    Attributes:
        values: of each number of the example.
        error: |their sum - (score of the example - score of the baseline)|.
        points: how many gradients the last estimate took.
    """

    values: Float[np.ndarray, "*dims"]
    error: float
    points: int

    @property
    def complete(self) -> bool:
        return self.error <= ENOUGH


def integrated(along: Along, start: np.ndarray, end: np.ndarray, difference: float, most: int = MOST) -> Integrated:
    """Integrated gradients (Sundararajan et al. 2017), by Gauss-Legendre quadrature.

    The points are doubled until the attributions add up to `difference` but for `ENOUGH`, or there are `most` of them;
    of all estimates the one with the least error is given.

    Args:
        along: gradients of the score on the line from `start` to `end`.
        start: the baseline.
        end: the example.
        difference: score of the example less that of the baseline.
        most: points at most.
    """
    way, points, best = end.astype(np.float64) - start, POINTS, None
    while True:
        values = way * _mean(along, points)
        found = Integrated(values, abs(float(values.sum()) - difference), points)
        if best is None or found.error < best.error:
            best = found
        if best.complete or points * 2 > most:
            return best
        points *= 2


def _mean(along: Along, points: int) -> np.ndarray:
    """The mean gradient on the line; float64."""
    places, weights = np.polynomial.legendre.leggauss(points)
    places, weights = (places + 1) / 2, weights / 2
    parts = [along(places[i : i + POINTS], weights[i : i + POINTS]) for i in range(0, points, POINTS)]
    return np.asarray(np.sum([np.asarray(part, np.float64) for part in parts], axis=0))


def at_the_end(along: Along) -> np.ndarray:
    """The gradient at the example itself; float64."""
    return np.asarray(along(np.ones(1), np.ones(1)), np.float64)


def in_blocks(rows: int, run: Callable[[np.ndarray], np.ndarray], size: int = POINTS) -> np.ndarray:
    """What `run` gives for each of the numbers 0 to rows - 1, which it is asked for by blocks of one size; of two rows
    at most by one of two."""
    found, size = [], size if rows > 2 else 2
    for start in range(0, rows, size):
        numbers = np.minimum(np.arange(start, start + size), rows - 1)
        found.append(np.asarray(run(numbers))[: rows - start])
    return np.concatenate(found) if found else np.empty(0, np.float32)
