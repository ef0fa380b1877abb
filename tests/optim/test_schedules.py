"""Promises of `bigctl.optim.schedules`: the curves of optax, one formula for what is logged and what is computed."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigctl.config import schema
from bigctl.optim import schedules

TOTAL = 100
SCHEDULES: dict[str, schema.Schedule] = {
    "constant": schema.Constant(),
    "constant with warmup": schema.Constant(warmup=10),
    "cosine": schema.Cosine(),
    "cosine with warmup": schema.Cosine(warmup=10, final=0.1),
    "linear": schema.Linear(final=0.2),
    "linear with warmup": schema.Linear(warmup=0.1),
    "step": schema.Step(),
    "step with warmup": schema.Step(warmup=20, at=[0.3, 0.31, 0.9], factor=0.5),
    "short": schema.Cosine(warmup=5, horizon=50, final=0.3),
}


def curve(config: schema.Schedule, total: int = TOTAL) -> np.ndarray:
    return np.array([float(schedules.factor(config, step, total, xp=np)) for step in range(total + 20)])


def test_cosine_with_warmup_is_that_of_optax_one_warmup_step_ahead():
    ours = curve(schema.Cosine(warmup=10, final=0.1))
    theirs = optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup_steps=10, decay_steps=TOTAL, end_value=0.1)
    # optax begins at 0, which wastes the first step; ours begins at 1/warmup.
    np.testing.assert_allclose(ours[:10], [theirs(step + 1) for step in range(10)], rtol=1e-6)
    np.testing.assert_allclose(ours[10:], [theirs(step) for step in range(10, TOTAL + 20)], rtol=1e-5, atol=1e-7)


def test_cosine_without_warmup_is_half_a_cosine():
    expected = [0.5 * (1 + math.cos(math.pi * min(step, TOTAL) / TOTAL)) for step in range(TOTAL + 20)]
    np.testing.assert_allclose(curve(schema.Cosine()), expected, atol=1e-12)


def test_linear_is_that_of_optax():
    expected = optax.linear_schedule(1.0, 0.2, transition_steps=TOTAL - 10, transition_begin=10)
    np.testing.assert_allclose(
        curve(schema.Linear(warmup=10, final=0.2))[10:], [expected(s) for s in range(10, 120)], rtol=1e-6
    )


def test_step_drops_at_its_fractions_of_the_horizon():
    drops = optax.piecewise_constant_schedule(1.0, {50: 0.1, 75: 0.1})
    np.testing.assert_allclose(curve(schema.Step()), [drops(step) for step in range(120)], rtol=1e-6)


def test_constant_stays_at_the_peak():
    assert curve(schema.Constant()).tolist() == [1.0] * 120


@pytest.mark.parametrize("name", [name for name in SCHEDULES if "warmup" in name])
def test_warmup_is_linear_and_ends_at_the_peak(name):
    config = SCHEDULES[name]
    warmup = schedules.warmup_steps(config, TOTAL)
    values = curve(config)
    np.testing.assert_allclose(values[:warmup], np.arange(1, warmup + 1) / warmup, rtol=1e-12)
    assert values[warmup] == pytest.approx(1.0)


def test_warmup_below_one_is_a_fraction_of_the_horizon():
    assert schedules.warmup_steps(schema.Cosine(warmup=0.1), 2000) == 200
    assert schedules.warmup_steps(schema.Cosine(warmup=0.1, horizon=500), 2000) == 50
    assert schedules.warmup_steps(schema.Cosine(warmup=1), 2000) == 1
    assert schedules.warmup_steps(schema.Cosine(), 2000) == 0


def test_a_horizon_of_its_own_ends_the_schedule_there():
    values = curve(schema.Cosine(horizon=50, final=0.3))
    np.testing.assert_allclose(values[50:], 0.3)
    np.testing.assert_allclose(values[:50], curve(schema.Cosine(final=0.3), total=50)[:50])


@pytest.mark.parametrize("name", SCHEDULES)
def test_what_is_logged_is_what_is_computed(name):
    config = SCHEDULES[name]
    compiled = jax.jit(jax.vmap(lambda step: schedules.factor(config, step, TOTAL)))
    np.testing.assert_allclose(compiled(jnp.arange(TOTAL + 20)), curve(config), rtol=1e-5, atol=1e-6)


class Square(schema.Schedule):
    def multiple(self, progress: Any, step: Any, horizon: int, xp: Any) -> Any:
        return (1 - progress) ** 2


class OldSquare(schema.Schedule):
    """As plugins for version 0.1 have it."""

    def factor(self, progress: Any, xp: Any) -> Any:
        return (1 - progress) ** 2


@pytest.mark.parametrize("own", [Square, OldSquare])
def test_a_plugin_brings_its_own_schedule(own):
    values = curve(own(kind="own", warmup=10))
    np.testing.assert_allclose(values[10:100], (1 - np.arange(90) / 90) ** 2)
    assert values[0] == 0.1
