"""Promises of `bigctl.data.layouts.windows`: tokens seen depend on (seed, position), and none is missed."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from bigctl.data.layouts.windows import NO_TARGET, WindowEvaluationPlan, WindowPlan, Windows


@pytest.mark.parametrize(("tokens", "block"), [(1000, 8), (1001, 8), (1007, 8), (65, 64), (127, 64), (128, 64), (9, 8)])
def test_windows_of_an_epoch_are_disjoint_inside_the_text_and_leave_out_little(tokens, block):
    plan = WindowPlan(tokens, block, seed=3)
    for epoch in range(20):
        starts = np.sort(plan.indices(epoch * plan.num_examples, plan.num_examples))
        assert starts[0] >= 0 and starts[-1] + block + 1 <= tokens
        assert np.all(np.diff(starts) == block)
        assert starts[0] < block and tokens - 1 - len(starts) * block < 2 * block


def test_every_epoch_cuts_elsewhere_and_in_another_order():
    plan = WindowPlan(1000, 8, seed=0)
    n = plan.num_examples
    epochs = [plan.indices(e * n, n) for e in range(200)]
    assert {int(e.min()) for e in epochs} == set(range(8))  # all offsets
    assert len({tuple(e - e.min()) for e in epochs}) == 200  # all orders
    assert not np.array_equal(plan.indices(0, n), WindowPlan(1000, 8, seed=1).indices(0, n))


def test_positions_alone_decide_however_they_are_asked_for():
    plan = WindowPlan(1000, 8, seed=0)
    whole = plan.indices(0, 700)
    parts = np.concatenate([plan.indices(start, 70) for start in range(0, 700, 70)])
    assert np.array_equal(whole, parts) and whole.dtype == np.int32


def test_one_batch_can_be_repeated_for_ever():
    plan = WindowPlan(1000, 8, seed=0, frozen=4)
    assert np.array_equal(plan.indices(0, 12).reshape(3, 4), np.tile(WindowPlan(1000, 8, seed=0).indices(0, 4), (3, 1)))


@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
def test_targets_are_the_tokens_one_further_on(xp):
    tokens = np.random.default_rng(0).integers(0, 65000, 200).astype(np.uint16)
    batch = Windows(8).gather({"inputs": xp.asarray(tokens)}, xp.asarray(np.array([0, 17, 190], np.int32)), 8, xp)
    for row, start in enumerate([0, 17, 190]):
        assert np.array_equal(batch["inputs"][row], tokens[start : start + 8])
        assert np.array_equal(batch["targets"][row], tokens[start + 1 : start + 9])
    assert batch["inputs"].dtype == batch["targets"].dtype == np.int32


@pytest.mark.parametrize("tokens", [2, 8, 9, 10, 33, 100])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_an_evaluation_predicts_every_token_but_the_first_once(tokens, batch_size):
    text = np.arange(tokens, dtype=np.uint16)
    plan = WindowEvaluationPlan(tokens, 8, batch_size)
    seen, rows = [], 0
    for starts, mask, block in plan.batches():
        assert starts.shape == mask.shape == (batch_size,)
        batch = Windows(8).gather({"inputs": text}, starts, block)
        real = (batch["targets"] != NO_TARGET) & (mask[:, None] > 0)
        assert np.array_equal(batch["inputs"][real] + 1, batch["targets"][real])
        seen += batch["targets"][real].tolist()
        rows += int(mask.sum())
    assert seen == list(range(1, tokens)) and rows == plan.num_examples


def test_a_text_shorter_than_a_window_is_refused():
    with pytest.raises(ValueError, match="no window"):
        WindowPlan(64, 64, seed=0)
