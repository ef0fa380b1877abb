"""What steps spend is what their definitions say, found in other ways: by quadrature, in closed form, by drawing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, special, stats

from bigctl.privacy import pld, rdp
from bigctl.privacy.accountant import MOST_NOISE, Accountant, noise_for


def by_quadrature(noise: float, rate: float, order: float) -> float:
    """Renyi divergence of the mixture from the Gaussian."""
    x = np.linspace(-40 * noise, 40 * noise + order + 5, 200_001)
    exponent = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * x - 1) / (2 * noise**2))
    terms = stats.norm.logpdf(x, 0, noise) + order * exponent
    return float(special.logsumexp(terms) + math.log(x[1] - x[0])) / (order - 1)


@pytest.mark.parametrize(("noise", "rate"), [(0.7, 0.01), (1.1, 0.05), (0.4, 0.02), (4.0, 0.3), (10.0, 0.5)])
def test_renyi_divergences_are_those_of_the_integral(noise: float, rate: float) -> None:
    orders = (1.5, 2.5, 3, 4.3, 7.3, 20)
    found = rdp.divergences(noise, rate, orders)
    known = np.isfinite(found)
    assert known.sum() >= 5  # where a series does not settle, an order counts as useless
    expected = [by_quadrature(noise, rate, order) for order in orders]
    assert found[known] == pytest.approx(np.asarray(expected)[known], rel=1e-8)


def gaussian_epsilon(noise: float, steps: int, delta: float) -> float:
    """Of steps that take all examples, exactly: Balle & Wang 2018, theorem 8; steps are one of noise / sqrt(steps)."""
    mu = math.sqrt(steps) / noise

    def failing(epsilon: float) -> float:
        first, second = stats.norm.cdf(mu / 2 - epsilon / mu), stats.norm.logcdf(-mu / 2 - epsilon / mu)
        return float(first - math.exp(epsilon + second) - delta)

    return float(optimize.brentq(failing, 0, 500))


@pytest.mark.parametrize(("noise", "steps", "delta"), [(1.0, 1, 1e-5), (2.0, 20, 1e-5), (8.0, 300, 1e-7)])
def test_without_sampling_the_loss_is_the_gaussian_mechanisms(noise: float, steps: int, delta: float) -> None:
    exact = gaussian_epsilon(noise, steps, delta)
    assert pld.epsilon(noise, 1.0, steps, delta) == pytest.approx(exact, abs=1e-5)
    assert exact < rdp.epsilon(noise, 1.0, steps, delta)[0] < 1.15 * exact


@pytest.mark.parametrize(("noise", "rate", "epsilon"), [(1.0, 0.1, 0.5), (0.8, 0.5, 1.0), (3.0, 0.02, 0.01)])
def test_one_step_diverges_as_its_densities_do(noise: float, rate: float, epsilon: float) -> None:
    """In both directions, by quadrature of the densities."""
    x = np.linspace(-12 * noise, 12 * noise + 1, 400_001)
    without = stats.norm.pdf(x, 0, noise)
    with_it = (1 - rate) * without + rate * stats.norm.pdf(x, 1, noise)
    pairs = (with_it, without), (without, with_it)
    deltas = [np.maximum(p - math.exp(epsilon) * q, 0).sum() * (x[1] - x[0]) for p, q in pairs]
    delta = float(max(deltas))
    assert pld.epsilon(noise, rate, 1, delta) == pytest.approx(epsilon, abs=2e-4)


def test_known_values_hold() -> None:
    """Those that dp-accounting 0.6 gives: the parity test computes them anew where it is installed."""
    for noise, rate, steps, delta, tight, bound in (
        (1.1, 0.01, 1000, 1e-5, 1.51537, 1.71177),
        (4.0, 0.1, 2000, 1e-6, 5.70569, 6.10070),
        (1.3, 0.004, 10000, 1e-5, 1.41017, 1.54230),
        (0.8, 0.0005, 100000, 1e-7, 1.53337, 2.11906),
    ):
        assert pld.epsilon(noise, rate, steps, delta) == pytest.approx(tight, abs=1e-4)
        assert rdp.epsilon(noise, rate, steps, delta)[0] == pytest.approx(bound, abs=1e-4)


def test_epsilon_grows_with_steps_and_falls_with_noise() -> None:
    spent = [Accountant(1.0, 0.02, 1e-5).epsilon(steps) for steps in (0, 1, 10, 100, 1000)]
    assert spent[0] == 0 and sorted(spent) == spent and spent[1] < spent[-1]
    assert Accountant(2.0, 0.02, 1e-5).epsilon(100) < spent[3] < Accountant(1.0, 0.02, 1e-7).epsilon(100)


@pytest.mark.parametrize("method", ["pld", "rdp"])
def test_noise_is_the_least_that_keeps_the_budget(method: str) -> None:
    noise = noise_for(1.2, 0.01, 500, 1e-5, method)
    assert noise is not None
    assert Accountant(noise, 0.01, 1e-5, method).epsilon(500) <= 1.2
    assert Accountant(0.999 * noise, 0.01, 1e-5, method).epsilon(500) > 1.2
    assert noise_for(1e-4, 1.0, 10_000, 1e-9, method) is None and MOST_NOISE < 1e4


def test_the_largest_number_of_steps_fits_and_one_more_does_not() -> None:
    accountant = Accountant(1.1, 0.02, 1e-5, "rdp")
    most = accountant.most_steps(2.0)
    assert accountant.epsilon(most) <= 2.0 < accountant.epsilon(most + 1)
    assert Accountant(0.5, 0.5, 1e-5).most_steps(0.1) == 0
