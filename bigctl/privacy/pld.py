"""Privacy loss distributions of the Gaussian mechanism on a Poisson sample, and their composition by FFT.

The loss of a pair of neighbours is put onto a grid so that the divergence at each of its points is the true one and
never smaller in between (Doroshenko, Ghazi, Kamath, Kumar & Manurangsi 2022, "connect the dots"); steps add up, so the
distribution of all is a power of its Fourier transform (Koskela, Jälkö & Honkela 2020). Neighbours differ by one
example that is added or removed; both directions are accounted and the worse one counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import scipy  # whose parts are loaded when they are first used
from jaxtyping import Float

INTERVAL = 1e-4
"""Distance of the points of the grid [nats], where these are not too many."""
_MOST_POINTS = 2**20
_TAIL = 1e-20
"""Probability that a step's grid leaves out on either side; above it the loss counts as infinite."""
_COMPOSED_TAIL = 1e-15
"""The same of all steps together."""
_EXPONENTS = np.geomspace(1e-2, 1e3, 24)
Masses = Float[np.ndarray, " points"]


@dataclass(frozen=True, eq=False)
class Losses:
    """A distribution of the privacy loss on a grid.

    Attributes:
        first: the smallest loss, in intervals.
        masses: the probability of each, from the smallest up.
        infinite: that of an infinite one.
        interval: between the points of the grid [nats].
    """

    first: int
    masses: Masses
    infinite: float
    interval: float

    @property
    def values(self) -> Masses:
        return (self.first + np.arange(len(self.masses))) * self.interval

    def composed(self, steps: int) -> Losses:
        """The loss of so many steps, each of which has this one."""
        low, high = self._range(steps)
        size = 1 << max(high - low, len(self.masses) - 1).bit_length()
        if size > 4 * _MOST_POINTS:
            raise OverflowError
        powers = scipy.fft.irfft(_power(self._transformed(size), steps), size)
        # The transform is periodic: the place of the smallest loss of interest comes first.
        masses = np.maximum(np.roll(powers, -((low - steps * self.first) % size)), 0.0)
        infinite = -math.expm1(steps * math.log1p(-self.infinite)) + _COMPOSED_TAIL
        return Losses(low, masses[: high - low + 1], infinite, self.interval)

    def _range(self, steps: int) -> tuple[int, int]:
        """Where the loss of so many steps is but for `_COMPOSED_TAIL` on each side, by Chernoff's bound."""
        lowest, highest = steps * self.first, steps * (self.first + len(self.masses) - 1)
        most, least = ((steps * moments - math.log(_COMPOSED_TAIL)) / _EXPONENTS for moments in self._moments)
        low, high = -least.min() / self.interval, most.min() / self.interval
        return max(lowest, math.floor(low)), min(highest, math.ceil(high))

    @cached_property
    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Logarithms of E exp(t loss) and E exp(-t loss) for t of `_EXPONENTS`."""
        some = self.masses > 0
        values, logs = self.values[some], np.log(self.masses[some])
        both = [[scipy.special.logsumexp(logs + sign * t * values) for t in _EXPONENTS] for sign in (1, -1)]
        return np.array(both[0]), np.array(both[1])

    def _transformed(self, size: int) -> np.ndarray:
        held = self.__dict__.setdefault("_held", {})  # of the sizes asked for: a log line each asks for the same
        if size not in held:
            held.clear()
            held[size] = scipy.fft.rfft(self.masses, size)
        return held[size]

    def epsilon(self, delta: float) -> float:
        """The least epsilon, 0 or more, at which the divergence is at most `delta`; infinite where there is none."""
        if self.infinite > delta:
            return math.inf
        start = max(0, -self.first)
        values, masses = self.values[start:], self.masses[start:]
        if not len(values):
            return 0.0
        above = np.cumsum(masses[::-1])[::-1]
        weighted = np.cumsum((masses * np.exp(-values))[::-1])[::-1]
        at = self.infinite + above - np.exp(values) * weighted  # the divergence at each point
        inside = np.flatnonzero(at <= delta)
        place = int(inside[0]) if len(inside) else len(values) - 1
        # Below this point and above the one before, these losses count.
        surplus = above[place] + self.infinite - delta
        if surplus <= 0 or weighted[place] <= 0:
            return float(values[place - 1]) if place else 0.0
        return max(0.0, math.log(surplus / weighted[place]))


def _power(values: np.ndarray, exponent: int) -> np.ndarray:
    """values ** exponent by squaring: numpy's own goes through logarithms, and loses digits where many steps are."""
    result, base = np.ones_like(values), values
    while exponent:
        if exponent & 1:
            result = result * base
        exponent >>= 1
        if exponent:
            base = base * base
    return result


@lru_cache(maxsize=16)
def step_losses(noise: float, rate: float, interval: float) -> tuple[Losses, Losses]:
    """Those of one step: of the data with the example against that without it, and the other way round."""
    return _removed(noise, rate, interval), _added(noise, rate, interval)


@lru_cache(maxsize=4096)
def epsilon(noise: float, rate: float, steps: int, delta: float, interval: float = INTERVAL) -> float:
    """The least epsilon for `delta` after these steps, as `rdp.epsilon`; a coarser grid never tells less."""
    if steps == 0:
        return 0.0
    while True:
        try:
            return max(losses.composed(steps).epsilon(delta) for losses in step_losses(noise, rate, interval))
        except OverflowError:
            interval *= 2


def _removed(noise: float, rate: float, interval: float) -> Losses:
    """The loss is log(1 - q + q exp((2 x - 1) / (2 noise^2))), x drawn from the mixture."""
    far = -scipy.special.ndtri(_TAIL) * noise
    lowest, highest = _loss(-far, noise, rate), _loss(1 + far, noise, rate)
    edges, first = _grid(lowest, highest, interval)
    x = _inverse(edges, noise, rate)
    # Probabilities of each cell under both, without and with the example.
    without, alone = _cells(x / noise), _cells((x - 1) / noise)
    with_it = (1 - rate) * without + rate * alone
    infinite = (1 - rate) * scipy.special.ndtr(-x[-1] / noise) + rate * scipy.special.ndtr((1 - x[-1]) / noise)
    below = (1 - rate) * scipy.special.ndtr(x[0] / noise) + rate * scipy.special.ndtr((x[0] - 1) / noise)
    return _connected(first, with_it, without, edges, interval, float(infinite), float(below))


def _added(noise: float, rate: float, interval: float) -> Losses:
    """The loss is minus that of `_removed`, x drawn from the Gaussian alone."""
    far = -scipy.special.ndtri(_TAIL) * noise
    lowest, highest = -_loss(far, noise, rate), -_loss(-far, noise, rate)
    edges, first = _grid(lowest, highest, interval)
    x = _inverse(-edges, noise, rate)  # falls where the loss grows
    without, alone = -_cells(x / noise), -_cells((x - 1) / noise)
    with_it = (1 - rate) * without + rate * alone
    below, infinite = float(scipy.special.ndtr(-x[0] / noise)), float(scipy.special.ndtr(x[-1] / noise))
    return _connected(first, without, with_it, edges, interval, infinite, below)


def _loss(x: float, noise: float, rate: float) -> float:
    """log(1 - q + q exp((2 x - 1) / (2 noise^2)))."""
    exponent = (2 * x - 1) / (2 * noise**2)
    return float(np.logaddexp(math.log1p(-rate) if rate < 1 else -math.inf, math.log(rate) + exponent))


def _inverse(loss: Masses, noise: float, rate: float) -> Masses:
    """x of each loss; minus infinity below the least that there is, log(1 - q)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if rate == 1:
            inner = np.asarray(loss, np.float64)
        else:
            inner = np.log(np.maximum(np.expm1(loss) + rate, 0.0)) - math.log(rate)
    return np.asarray(noise**2 * inner + 0.5)


def _grid(lowest: float, highest: float, interval: float) -> tuple[Masses, int]:
    first, last = math.floor(lowest / interval), math.ceil(highest / interval)
    if last - first > _MOST_POINTS:
        raise OverflowError
    return np.arange(first, last + 1) * interval, first


def _cells(z: Masses) -> Masses:
    """Probabilities of a standard normal between neighbouring points, from the tail that keeps their digits."""
    lower, upper = scipy.special.ndtr(z), scipy.special.ndtr(-z)
    return np.where((z[1:] + z[:-1]) > 0, upper[:-1] - upper[1:], lower[1:] - lower[:-1])


def _connected(
    first: int, ours: Masses, theirs: Masses, edges: Masses, interval: float, infinite: float, below: float
) -> Losses:
    """Masses at the edges of cells, so that both probabilities of each cell stay as they are: `ours` is what the loss
    is drawn from. What is below the grid goes to its first point."""
    upper = (ours - theirs * np.exp(edges[:-1])) / -math.expm1(-interval)
    upper = np.clip(upper, 0.0, np.maximum(ours, 0.0))
    masses = np.zeros(len(edges))
    masses[1:] += upper
    masses[:-1] += np.maximum(ours, 0.0) - upper
    masses[0] += below
    return Losses(first, masses, infinite, interval)
