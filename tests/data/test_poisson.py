"""Poisson samples: a function of (seed, step), each example by itself, at the rate that is accounted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from bigctl.data.layouts.masked import PADDING
from bigctl.data.layouts.poisson import Draw, PoissonLengthPlan, sampled
from bigctl.data.layouts.ragged import Ragged
from bigctl.data.layouts.rows import Rows


def test_each_example_is_drawn_at_the_rate_and_independently_of_others() -> None:
    draw, steps, n = Draw(300, 60, seed=3), 1500, 300
    drawn = np.zeros((steps, n), bool)
    for step in range(steps):
        indices = draw.indices(step)
        real = indices[indices >= 0]
        assert len(set(real.tolist())) == len(real)
        drawn[step, real] = True
    assert stats.chisquare(drawn.sum(0), np.full(n, drawn.sum() / n)).pvalue > 1e-3  # nobody more often than others
    sizes = drawn.sum(1)
    assert sizes.mean() == pytest.approx(60, abs=4 * np.sqrt(48 / steps))
    assert sizes.var() == pytest.approx(48, rel=0.15)  # n q (1 - q): of batches of one size it would be 0
    together = (drawn[:, :100].astype(float).T @ drawn[:, 100:200] / steps).mean()
    assert together == pytest.approx(0.04, abs=0.0015)  # q^2
    after = (drawn[:-1] & drawn[1:]).mean()
    assert after == pytest.approx(0.04, abs=0.0015)


def test_batches_are_functions_of_seed_and_position() -> None:
    columns = {"inputs": np.arange(200)[:, None], "label": np.arange(200)}
    plan = sampled(Rows(), 16).training_plan(columns, batch_size=40, seed=5)
    again = sampled(Rows(), 16).training_plan(columns, batch_size=40, seed=5)
    many = plan.batches(80, 3)
    assert many.shape == (3, plan.rows) and plan.rows % 16 == 0
    for number in range(3):
        assert (again.batch(80 + 40 * number)[0] == many[number]).all()
    other = sampled(Rows(), 16).training_plan(columns, batch_size=40, seed=6)
    assert (other.batch(80)[0] != many[0]).any()


def test_padding_is_masked_and_holds_no_example() -> None:
    columns = {"inputs": np.arange(200)[:, None] + 1, "label": np.arange(200)}
    layout = sampled(Rows(), 8)
    indices, length = layout.training_plan(columns, batch_size=20, seed=0).batch(0)
    batch = layout.gather(columns, indices, length)
    real = indices != PADDING
    assert 0 < real.sum() < len(indices) and (batch["mask"] == real).all()
    assert (batch["label"][real] == indices[real]).all()


def test_room_is_enough_and_no_more_than_that() -> None:
    draw = Draw(60_000, 512, seed=0)
    assert (
        stats.binom.sf(draw.rows, 60_000, 512 / 60_000) <= 1e-24 < stats.binom.sf(draw.rows - 20, 60_000, 512 / 60_000)
    )
    assert draw.rows < 800
    whole = Draw(50, 50, seed=0)
    assert sorted(whole.indices(7).tolist()) == list(range(50))
    with pytest.raises(ValueError, match="on average"):
        Draw(50, 51, seed=0)


def test_texts_are_padded_to_hold_the_longest_that_is_drawn() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 33, 100)
    columns = {"inputs": np.ones(sizes.sum(), np.int32), "offsets": np.concatenate([[0], np.cumsum(sizes)])}
    layout = sampled(Ragged((8, 16, 33)), 4)
    plan = layout.training_plan(columns, batch_size=5, seed=1)
    assert isinstance(plan, PoissonLengthPlan)
    for step in range(20):
        indices, length = plan.batch(5 * step)
        batch = layout.gather(columns, indices, length)
        real = indices >= 0
        assert batch["inputs"].shape == (len(indices), length) and (batch["mask"] == real).all()
        assert (batch["lengths"][real] == sizes[indices[real]]).all()
