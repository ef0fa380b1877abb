"""Rényi differential privacy of the Gaussian mechanism on a Poisson sample (Mironov, Talwar & Zhang 2019)."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import scipy  # whose parts are loaded when they are first used
from jaxtyping import Float

ORDERS = (*(1 + each / 10 for each in range(1, 100)), *range(11, 64), 128, 256, 512, 1024)
"""The orders that a conversion takes the best of."""
_MOST_TERMS = 10_000


@lru_cache(maxsize=64)
def divergences(noise: float, rate: float, orders: tuple[float, ...] = ORDERS) -> Float[np.ndarray, " orders"]:
    """Rényi divergence of each order [nats] for one step; that of several is their sum.

    Args:
        noise: standard deviation of the noise, in units of the most that one example can change the sum.
        rate: probability that an example takes part in the step, above 0 and at most 1.
        orders: above 1.

    Kept, as each line of a log asks for them again; so they cannot be written to.
    """
    found = np.array([_divergence(noise, rate, order) for order in orders])
    found.flags.writeable = False
    return found


def epsilon(
    noise: float, rate: float, steps: int, delta: float, orders: tuple[float, ...] = ORDERS
) -> tuple[float, float]:
    """The least epsilon for `delta` after these steps, and its order.

    The conversion is that of Canonne, Kamath & Steinke (2020), proposition 12, with Balle et al. (2020), theorem 21.
    """
    if steps == 0:
        return 0.0, orders[0]
    return converted(steps * divergences(noise, rate, orders), delta, orders)


def converted(
    spent: Float[np.ndarray, " orders"], delta: float, orders: tuple[float, ...] = ORDERS
) -> tuple[float, float]:
    """The least epsilon for `delta` of divergences of all steps, and its order."""
    order = np.asarray(orders, np.float64)
    found = spent + np.log1p(-1 / order) - (math.log(delta) + np.log(order)) / (order - 1)
    found = np.where(np.isfinite(found), found, np.inf)
    best = int(np.argmin(found))
    return max(0.0, float(found[best])), float(order[best])


def _divergence(noise: float, rate: float, order: float) -> float:
    if rate == 1:
        return order / (2 * noise**2)
    log_moment = _whole(noise, rate, int(order)) if float(order).is_integer() else _between(noise, rate, order)
    return max(0.0, log_moment) / (order - 1)


def _whole(noise: float, rate: float, order: int) -> float:
    """log A of a whole order: the binomial sum of section 3.3."""
    k = np.arange(order + 1, dtype=np.float64)
    terms = _log_binomial(order, k) + k * math.log(rate) + (order - k) * math.log1p(-rate)
    return float(scipy.special.logsumexp(terms + k * (k - 1) / (2 * noise**2)))


def _between(noise: float, rate: float, order: float) -> float:
    """log A of any order: both halves of the integral as series, section 3.3; the terms alternate in the end."""
    edge = noise**2 * math.log(1 / rate - 1) + 0.5
    count = 256
    while True:
        k = np.arange(count, dtype=np.float64)
        rest = order - k
        signs, logs = scipy.special.gammasgn(rest + 1), scipy.special.gammaln(order + 1) - scipy.special.gammaln(k + 1)
        logs = logs - scipy.special.gammaln(rest + 1)
        # The left half has (1 - q)^(order - k) q^k, the right one the powers exchanged.
        left = logs + rest * math.log1p(-rate) + k * math.log(rate)
        left += k * (k - 1) / (2 * noise**2) + scipy.special.log_ndtr((edge - k) / noise)
        right = logs + k * math.log1p(-rate) + rest * math.log(rate)
        right += rest * (rest - 1) / (2 * noise**2) + scipy.special.log_ndtr((rest - edge) / noise)
        largest = float(max(left.max(), right.max()))
        if max(left[-1], right[-1]) < largest - 35 or count >= _MOST_TERMS:
            break
        count *= 4
    total = float((signs * (np.exp(left - largest) + np.exp(right - largest))).sum())
    if count >= _MOST_TERMS and max(left[-1], right[-1]) >= largest - 35 or total <= 0:
        return math.inf
    return largest + math.log(total)


def _log_binomial(n: float, k: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    return np.asarray(scipy.special.gammaln(n + 1) - scipy.special.gammaln(k + 1) - scipy.special.gammaln(n - k + 1))
