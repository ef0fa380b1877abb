"""Promises of `bigctl.data.layouts.ragged`: every example as often as without buckets, in batches that waste little."""

from __future__ import annotations

import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigctl.data.dataset import Features
from bigctl.data.layouts import ragged
from bigctl.data.layouts.choose import BatchOptions, choose_layout
from bigctl.data.layouts.ragged import NO_LABEL, LengthEvaluationPlan, LengthPlan, Ragged
from bigctl.data.sampler import BatchPlan

LENGTHS = {
    "many": lambda rng, n: np.clip(rng.lognormal(3, 0.7, n).astype(int), 3, 128),
    "equal": lambda rng, n: np.full(n, 17),
    "two": lambda rng, n: rng.choice([3, 200], n),
    "outlier": lambda rng, n: np.where(np.arange(n) == n // 2, 500, 5),
}


def sizes(kind: str = "many", n: int = 300, seed: int = 0) -> np.ndarray:
    return LENGTHS[kind](np.random.default_rng(seed), n).astype(np.int64)


def plan(lengths: np.ndarray, batch: int = 16, *, shapes: int = 4, window: int = 8, seed: int = 3, frozen: int = 0):
    edges = ragged.choose_edges(lengths, batch, shapes)
    return LengthPlan(BatchPlan(len(lengths), seed, frozen), lengths, batch, edges, window)


def columns(lengths: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "inputs": rng.integers(1, 1000, lengths.sum()).astype(np.uint16),
        "offsets": np.concatenate([[0], np.cumsum(lengths)]),
        "segment_start": rng.integers(1, lengths + 1).astype(np.int32),
        "label": rng.integers(0, 3, len(lengths)).astype(np.int32),
    }


# --- Batches of training ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LENGTHS)
@pytest.mark.parametrize(("n", "batch", "window"), [(300, 16, 8), (37, 8, 64), (300, 16, 1), (64, 16, 4), (5, 16, 8)])
def test_a_window_holds_the_examples_of_the_stream_that_it_replaces(kind, n, batch, window):
    made = plan(sizes(kind, n), batch, window=window)
    width = made.window * batch
    for number in range(5):  # several epochs of the smaller sets: windows straddle them
        drawn = [made.batch(number * width + i * batch)[0] for i in range(made.window)]
        assert all(len(indices) == batch and indices.dtype == np.int32 for indices in drawn)
        stream = BatchPlan(n, 3).indices(number * width, width)
        assert Counter(np.concatenate(drawn).tolist()) == Counter(stream.tolist())


def test_an_epoch_in_whole_windows_has_every_example_once():
    made = plan(sizes(n=128), 16, window=4)
    for epoch in range(3):
        drawn = [made.batch(epoch * 128 + i * 16)[0] for i in range(8)]
        assert sorted(np.concatenate(drawn).tolist()) == list(range(128))


def test_a_batch_is_a_function_of_seed_and_position():
    lengths = sizes()
    walked = plan(lengths)
    order = [walked.batch(i * 16) for i in range(80)]
    for i in np.random.default_rng(0).permutation(80):  # a plan that never saw what was before, and one that jumps
        for other in (plan(lengths), walked):
            indices, length = other.batch(int(i) * 16)
            assert np.array_equal(indices, order[i][0]) and length == order[i][1]
    different = plan(lengths, seed=4)
    assert not all(np.array_equal(different.batch(i * 16)[0], order[i][0]) for i in range(80))


@pytest.mark.parametrize("kind", LENGTHS)
@pytest.mark.parametrize("shapes", [1, 2, 4, 100])
def test_every_batch_is_padded_to_the_smallest_length_that_holds_it(kind, shapes):
    lengths = sizes(kind)
    made = plan(lengths, shapes=shapes)
    assert len(made.edges) <= shapes
    for i in range(120):
        indices, length = made.batch(i * 16)
        longest = lengths[indices].max()
        assert length == min(edge for edge in made.edges if edge >= longest)


def test_windows_waste_hardly_more_than_sorting_the_whole_set():
    lengths = sizes(n=4000)

    def tokens(window: int, shapes: int) -> int:
        made = plan(lengths, 16, window=window, shapes=shapes)
        return sum(16 * made.batch(i * 16)[1] for i in range(250))

    for shapes in (1, 2, 4, 8):
        edges = ragged.choose_edges(lengths, 16, shapes)
        sorted_whole = 16 * cost(lengths, 16, edges)
        assert tokens(64, shapes) <= 1.05 * sorted_whole
    assert tokens(64, 8) < tokens(64, 4) < tokens(64, 2) < 0.5 * tokens(64, 1)
    assert 2 * tokens(64, 4) < tokens(1, 4)


def test_batches_come_neither_by_length_nor_in_the_same_order_again():
    lengths = sizes(n=2000)
    made = plan(lengths, window=32, shapes=8)
    means = [[lengths[made.batch((w * 32 + i) * 16)[0]].mean() for i in range(32)] for w in range(3)]
    for window in means:
        assert abs(np.corrcoef(np.arange(32), window)[0, 1]) < 0.6
    assert not np.allclose(np.argsort(means[0]), np.argsort(means[1]))


@pytest.mark.parametrize("n", [60, 200, 1000])
def test_copies_of_an_example_do_not_fill_a_batch(n):
    """A window longer than the epoch would hold each example many times, and sorting would put them side by side."""
    lengths = np.arange(n) % 50 + 3
    made = plan(lengths, 16, window=64)
    assert made.window * 16 <= max(n, 16)
    for i in range(200):
        assert max(Counter(made.batch(i * 16)[0].tolist()).values()) <= 2  # 2 where two epochs meet


@pytest.mark.parametrize("n", [1, 3, 15])
def test_a_batch_larger_than_the_set_repeats_it_evenly(n):
    made = plan(sizes(n=n), 16)
    assert made.edges == (int(sizes(n=n).max()),)
    counts = Counter(np.concatenate([made.batch(i * 16)[0] for i in range(n)]).tolist())
    assert set(counts.values()) == {16} and len(counts) == n


def test_one_batch_for_ever_is_the_first_of_the_stream():
    lengths = sizes()
    made = plan(lengths, frozen=16)
    first = BatchPlan(300, 3).indices(0, 16)
    assert len(set(first.tolist())) == 16
    for i in range(20):
        indices, length = made.batch(i * 16)
        assert sorted(indices.tolist()) == sorted(first.tolist())
        assert np.array_equal(indices, made.batch(0)[0]) and length == made.batch(0)[1]


# --- Lengths to pad to ------------------------------------------------------------------------------------------------


def cost(lengths: np.ndarray, batch: int, edges: tuple[int, ...]) -> int:
    """Tokens of all batches of the sorted split."""
    ordered = np.sort(lengths)
    longest = [ordered[min(i + batch, len(ordered)) - 1] for i in range(0, len(ordered), batch)]
    return sum(min(edge for edge in edges if edge >= size) for size in longest)


@pytest.mark.parametrize("shapes", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("seed", range(6))
def test_no_other_lengths_leave_less_padding(seed, shapes):
    rng = np.random.default_rng(seed)
    lengths = rng.choice(rng.integers(3, 90, 8), 57)
    found = ragged.choose_edges(lengths, 4, shapes)
    assert list(found) == sorted(set(found)) and len(found) <= shapes and found[-1] == lengths.max()
    last = int(lengths.max())
    choices = sorted({min(-(-int(size) // 8) * 8, last) for size in lengths})
    best = min(
        cost(lengths, 4, (*picked, last))
        for k in range(min(shapes, len(choices)))
        for picked in itertools.combinations(choices[:-1], k)
    )
    assert cost(lengths, 4, found) == best


def test_lengths_to_pad_to_are_multiples_of_eight_and_the_longest():
    lengths = np.array([3, 4, 9, 10, 17, 30, 41, 42, 43, 43])
    found = ragged.choose_edges(lengths, 1, 100)
    assert found == (8, 16, 24, 32, 43)  # 43 and not 48: a model may have 43 positions


@pytest.mark.parametrize(("n", "batch"), [(1, 1), (1, 64), (7, 64), (100_000, 8)])
def test_sets_of_any_size_have_lengths_to_pad_to(n, batch):
    lengths = sizes(n=n)
    assert ragged.choose_edges(lengths, batch, 4)[-1] == lengths.max()
    assert ragged.choose_edges(np.full(n, 17), batch, 4) == (17,)


# --- Batches as arrays ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
@pytest.mark.parametrize("length", [1, 7, 40, 200])
def test_a_batch_is_what_a_plain_loop_makes_of_the_texts(xp, length):
    given = columns(sizes(n=30))
    indices = np.array([29, 0, 0, 7, 12], np.int32)
    expected = np.zeros((5, length), np.int32)
    for row, i in enumerate(indices):
        text = given["inputs"][given["offsets"][i] : given["offsets"][i + 1]][:length]
        expected[row, : len(text)] = text
    kept = np.minimum(np.diff(given["offsets"])[indices], length)
    arrays = given if xp is np else jax.tree.map(lambda a: jnp.asarray(a.astype(np.int32)), given)
    batch = Ragged((length,)).gather(arrays, indices, length, xp)
    assert {name: str(value.dtype) for name, value in batch.items()} == dict.fromkeys(
        ("inputs", "lengths", "segment_start", "label"), "int32"
    )
    np.testing.assert_array_equal(batch["inputs"], expected)
    np.testing.assert_array_equal(batch["lengths"], kept)
    np.testing.assert_array_equal(batch["segment_start"], np.minimum(given["segment_start"][indices], length))
    np.testing.assert_array_equal(batch["label"], given["label"][indices])


# --- Batches of evaluation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LENGTHS)
@pytest.mark.parametrize("n", [1, 15, 16, 17, 100])
def test_evaluation_sees_each_example_once(kind, n):
    lengths = sizes(kind, n)
    seen: list[int] = []
    for indices, mask, length in LengthEvaluationPlan(lengths, 16, (8, 32, 600)).batches():
        assert indices.shape == mask.shape == (16,)
        assert length == min(edge for edge in (8, 32, 600) if edge >= lengths[indices].max())
        seen += indices[mask > 0].tolist()
    assert sorted(seen) == list(range(n))


def test_texts_longer_than_any_of_training_are_scored_whole():
    lengths = sizes(n=100)
    made = LengthEvaluationPlan(lengths, 16, (8, 32))
    assert made.edges == (8, 32, int(lengths.max()))
    assert all(length >= lengths[indices].max() for indices, _, length in made.batches())


@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
def test_a_column_of_one_value_a_token_is_gathered_as_the_tokens_are(xp):
    given = {**columns(sizes(n=30)), "label": np.arange(sizes(n=30).sum(), dtype=np.int32)}
    indices = np.array([29, 0, 7], np.int32)
    layout = choose_layout(Features("text", (128,), None), {"train": given}, BatchOptions(batch_size=4))
    assert isinstance(layout, Ragged) and layout.token_columns == ("inputs", "label")
    arrays = {name: xp.asarray(values) for name, values in given.items()}
    batch = layout.gather(arrays, indices, 40, xp)
    for row, i in enumerate(indices):
        start, end = given["offsets"][i : i + 2]
        expected = np.full(40, NO_LABEL)
        expected[: end - start] = given["label"][start:end][:40]
        np.testing.assert_array_equal(batch["label"][row], expected)
        assert np.array_equal(batch["label"][row] != NO_LABEL, np.arange(40) < batch["lengths"][row])


def test_other_columns_have_a_row_an_example():
    given = {**columns(sizes(n=30)), "label": np.eye(30, 4, dtype=np.uint8)}
    layout = choose_layout(Features("text", (128,), None), {"train": given}, BatchOptions(batch_size=4))
    assert layout is not None
    np.testing.assert_array_equal(layout.gather(given, np.array([3, 1]), 8)["label"], given["label"][[3, 1]])
