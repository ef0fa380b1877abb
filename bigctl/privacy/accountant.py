"""What a training of noisy steps has spent of its privacy, and the noise or the steps that a budget buys."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bigctl.privacy import pld, rdp

METHODS = ("pld", "rdp")
EXCESS = 1e-24
"""Probability that a step draws more examples than its batch has room for; those beyond are left out."""
_SHARE = 1e-6
"""Of delta, what is kept back for that."""
LEAST_NOISE, MOST_NOISE = 0.2, 1000.0


@dataclass(frozen=True)
class Accountant:
    """The accountant of steps that are all alike, of data sets that differ by one example added or removed.

    Attributes:
        noise: standard deviation of the noise, in units of the clipping norm.
        rate: probability that an example takes part in a step.
        delta: what the promise may fail by.
        method: "pld" (numerically tight) or "rdp" (an upper bound in closed form).
        interval: of the grid of "pld" [nats].
    """

    noise: float
    rate: float
    delta: float
    method: str = METHODS[0]
    interval: float = pld.INTERVAL

    def epsilon(self, steps: int) -> float:
        """Spent after so many steps. It grows with them and depends on nothing else, so no resume can reset it."""
        delta = self.delta * (1 - _SHARE)
        if self.method == "pld":
            found = pld.epsilon(self.noise, self.rate, steps, delta, self.interval)
        else:
            found, _ = rdp.epsilon(self.noise, self.rate, steps, delta)
        dropped = steps * EXCESS * (1 + math.exp(min(found, 700)))
        return found if dropped <= self.delta * _SHARE or not steps else math.inf

    def most_steps(self, epsilon: float, limit: int = 2**31) -> int:
        """The largest number of steps, below `limit`, that spend no more than this."""
        low, high = 0, 1
        while high < limit and self.epsilon(high) <= epsilon:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.epsilon(middle) <= epsilon else (low, middle)
        return low

    def to_json(self, steps: int) -> dict[str, Any]:
        """What a promise is made of."""
        told = {"noise": self.noise, "sampling_rate": self.rate, "delta": self.delta, "accountant": self.method}
        return {"epsilon": self.epsilon(steps), "steps": steps, **told}


def noise_for(epsilon: float, rate: float, steps: int, delta: float, method: str = METHODS[0]) -> float | None:
    """The least noise, to four digits, with which so many steps spend at most epsilon; None where it is above
    `MOST_NOISE`. By bisection: first of the bound in closed form, which is near, then on a coarser grid, which is quick
    and tells no less, and of what is left on the fine one."""

    def spent(noise: float, interval: float = 10 * pld.INTERVAL) -> float:
        return Accountant(noise, rate, delta, method, interval).epsilon(steps)

    if spent(MOST_NOISE) > epsilon:
        return None
    low, high = LEAST_NOISE, MOST_NOISE
    if method == "pld":
        high = noise_for(epsilon, rate, steps, delta, "rdp") or high
        low = max(low, high / 1.5)
        while low > LEAST_NOISE and spent(low) <= epsilon:
            low, high = max(LEAST_NOISE, low / 1.5), low
    low, high = _bisected(lambda noise: spent(noise) <= epsilon, low, high, 1.001)
    low = max(LEAST_NOISE, low / 1.005)
    if method == "pld" and spent(low, pld.INTERVAL) <= epsilon:
        low, high = max(LEAST_NOISE, low / 1.05), low
    _, high = _bisected(lambda noise: spent(noise, pld.INTERVAL) <= epsilon, low, high, 1.00005)
    digits = 3 - math.floor(math.log10(high))
    return math.ceil(high * 10**digits) / 10**digits


def _bisected(fits: Callable[[float], bool], low: float, high: float, ratio: float) -> tuple[float, float]:
    """Both ends closer than a ratio; `high` fits, and `low` need not."""
    while high / low > ratio:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    return low, high
