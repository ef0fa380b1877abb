"""Promises of `bigctl.data.sampler`: the order of examples is a function of (seed, position) and of nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from bigctl.data.sampler import BatchPlan, RowEvaluationPlan, permutation


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 17, 1000])
def test_any_cut_into_batches_gives_the_same_stream(n):
    plan = BatchPlan(n, seed=3)
    whole = plan.indices(0, 300)
    rng = np.random.default_rng(0)
    for _ in range(10):
        cuts = [0, *np.sort(rng.integers(0, 301, 9)).tolist(), 300]
        parts = [plan.indices(low, high - low) for low, high in zip(cuts, cuts[1:], strict=False)]
        assert np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(BatchPlan(n, seed=3).indices(299, 1), whole[299:])
    assert whole.dtype == np.int32


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 63, 64, 65, 1000])
def test_every_epoch_is_a_permutation(n):
    epochs = BatchPlan(n, seed=11).indices(0, 5 * n).reshape(5, n)
    assert np.array_equal(np.sort(epochs, axis=1), np.tile(np.arange(n), (5, 1)))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [tuple(BatchPlan(50, seed).indices(epoch * 50, 50)) for seed in (0, 1, 2**32 - 1) for epoch in range(20)]
    assert len(set(orders)) == 60


def test_the_stream_is_the_one_that_earlier_versions_drew():
    # A resumed run would silently go on with other batches if these changed.
    assert BatchPlan(10, 0).indices(0, 20).tolist() == [6, 4, 0, 3, 7, 8, 2, 1, 9, 5, 6, 8, 2, 9, 1, 4, 7, 0, 5, 3]
    assert BatchPlan(1000, 7).indices(995, 10).tolist() == [284, 547, 707, 14, 236, 554, 841, 143, 309, 609]
    assert BatchPlan(60_000, 2**32 - 1).indices(10**9, 5).tolist() == [36425, 34961, 36619, 35119, 54933]
    assert permutation(6, 1, 2, 3).tolist() == [0, 1, 3, 4, 5, 2]


@pytest.mark.parametrize("n", [3, 5, 7, 16, 17, 64])
def test_every_example_is_as_likely_at_every_place(n):
    epochs = 4000
    drawn = BatchPlan(n, seed=5).indices(0, n * epochs).reshape(epochs, n)
    counts = np.stack([np.bincount(column, minlength=n) for column in drawn.T])
    assert chi_square(counts) < limit((n - 1) ** 2)


@pytest.mark.parametrize("n", [5, 7, 16, 17, 64])
def test_neighbours_are_independent(n):
    drawn = BatchPlan(n, seed=5).indices(0, n * 4000).reshape(4000, n).astype(np.int64)
    distances = np.bincount(((drawn[:, 1:] - drawn[:, :-1]) % n).ravel(), minlength=n)
    assert distances[0] == 0
    assert chi_square(distances[1:]) < limit(n - 2)


def chi_square(counts: np.ndarray) -> float:
    return float(np.sum((counts - counts.mean()) ** 2) / counts.mean())


def limit(degrees: int) -> float:
    """What chi-square exceeds about once in 30,000 times by chance (Wilson-Hilferty)."""
    a = 2 / (9 * degrees)
    return degrees * (1 - a + 4 * a**0.5) ** 3


def test_frozen_repeats_the_first_batch():
    plan = BatchPlan(100, seed=2, frozen=8)
    first = BatchPlan(100, seed=2).indices(0, 8)
    assert np.array_equal(plan.indices(0, 40), np.tile(first, 5))
    assert np.array_equal(plan.indices(8 * 10**6, 8), first)


@pytest.mark.parametrize(("n", "batch_size"), [(1, 1), (7, 3), (9, 3), (2, 8), (1000, 256)])
def test_evaluation_sees_every_example_exactly_once(n, batch_size):
    batches = list(RowEvaluationPlan(n, batch_size).batches())
    assert all(len(indices) == len(mask) == batch_size for indices, mask, _ in batches)
    indices, mask = (np.concatenate(parts) for parts in list(zip(*batches, strict=True))[:2])
    assert indices[mask == 1].tolist() == list(range(n))
    assert mask.sum() == n and set(mask.tolist()) <= {0.0, 1.0}
    assert indices.dtype == np.int32 and mask.dtype == np.float32 and indices.max() < n


def test_permutations_by_key_are_permutations_and_differ():
    found = [permutation(40, *keys).tolist() for keys in ((0,), (1,), (0, 0), (0, 1), (1, 0))]
    assert all(sorted(order) == list(range(40)) for order in found)
    assert len({tuple(order) for order in found}) == 5
    assert permutation(0, 1).tolist() == []


def test_a_plan_without_examples_is_refused():
    with pytest.raises(ValueError, match="at least one example"):
        BatchPlan(0, seed=0)
