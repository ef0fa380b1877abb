"""Promises of `bigctl.data.layouts.packed_texts`: batches of as many texts as without, in few rows and nothing else."""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigctl.data.layouts import packed_texts, ragged
from bigctl.data.layouts.packed_texts import Cut, PackedTexts, Shape
from bigctl.data.layouts.ragged import Ragged
from bigctl.data.sampler import BatchPlan
from tests.data.test_ragged import LENGTHS, columns, sizes


def layout(lengths: np.ndarray, batch: int = 16, window: int = 8, cut: Cut = packed_texts.WHOLE) -> PackedTexts:
    base = Ragged(ragged.choose_edges(lengths, batch, 4), window)
    shape = packed_texts.shape_for(base.training_plan(columns(lengths), batch_size=batch, seed=3))
    return PackedTexts(base, shape or Shape(batch, int(lengths.max()), 1), cut)


def plan(lengths: np.ndarray, batch: int = 16, *, seed: int = 3, frozen: bool = False, **options: Any):
    made = layout(lengths, batch, **options)
    return made.training_plan(columns(lengths), batch_size=batch, seed=seed, frozen=frozen)


def texts(indices: np.ndarray) -> list[int]:
    return indices[indices >= 0].tolist()


@pytest.mark.parametrize("kind", LENGTHS)
@pytest.mark.parametrize(("n", "batch", "window"), [(300, 16, 8), (37, 8, 64), (300, 16, 1), (64, 16, 4), (5, 16, 8)])
def test_a_window_holds_the_examples_of_the_stream_that_it_replaces(kind, n, batch, window):
    """Each batch as many, and no row more tokens than it has places."""
    lengths = sizes(kind, n)
    made = plan(lengths, batch, window=window)
    for number in range(5):
        drawn = [made.batch(number * made.texts.span + i * batch) for i in range(made.texts.window)]
        for indices, rows in drawn:
            assert len(texts(indices)) == batch and indices.shape == (rows, made.shape.most)
            assert np.where(indices >= 0, lengths[indices], 0).sum(1).max() <= made.shape.length
        stream = BatchPlan(n, 3).indices(number * made.texts.span, made.texts.span)
        assert Counter(text for indices, _ in drawn for text in texts(indices)) == Counter(stream.tolist())


def test_a_batch_is_a_function_of_seed_and_position_whatever_it_is_cut_into():
    lengths = sizes()
    walked = plan(lengths)
    order = [walked.batch(i * 16)[0] for i in range(80)]
    for i in np.random.default_rng(0).permutation(80):
        for other in (plan(lengths), walked):
            assert np.array_equal(other.batch(int(i) * 16)[0], order[i])
        indices, rows = plan(lengths, cut=Cut(1, 8)).batch(int(i) * 16)
        assert (
            rows % 8 == 0 and np.array_equal(indices[: len(order[i])], order[i]) and not texts(indices[len(order[i]) :])
        )
    different = plan(lengths, seed=4)
    assert not all(np.array_equal(different.batch(i * 16)[0], order[i]) for i in range(80))


def test_what_is_computed_together_does_not_depend_on_the_devices():
    """In the parts that a batch is computed in: the same rows, in the same order."""
    lengths = sizes()
    one, many = (plan(lengths, cut=Cut(3, shards)).batch(0)[0] for shards in (1, 8))
    assert len(one) % 3 == 0 and len(many) % 24 == 0
    for own, theirs in zip(np.split(one, 3), np.split(many, 3), strict=True):
        assert np.array_equal(theirs[: len(own)], own) and not texts(theirs[len(own) :])


def test_the_one_batch_that_is_trained_on_for_ever():
    made = plan(sizes(), frozen=True)
    first = made.batch(0)[0]
    assert len(set(texts(first))) == 16
    assert all(np.array_equal(made.batch(i * 16)[0], first) for i in range(9))


def test_batches_of_many_lengths_come_to_about_the_same_number_of_tokens():
    lengths = sizes(n=4000)
    made = plan(lengths, 32, window=64)
    batches = [made.batch(i * 32)[0] for i in range(125)]
    sums = np.array([lengths[texts(indices)].sum() for indices in batches])
    plain = lengths[BatchPlan(4000, 3).indices(0, 4000)].reshape(125, 32).sum(1)
    assert np.ptp(sums[:64]) < np.ptp(plain) / 4
    assert {len(indices) for indices in batches} == set(made.lengths)
    assert sum(indices.shape[0] for indices in batches) * made.shape.length < 1.15 * sums.sum()


def test_things_are_dealt_so_that_no_sum_is_far_from_another():
    lengths = sizes(n=512)
    dealt = packed_texts.deal(lengths, 16)
    assert sorted(dealt.reshape(-1).tolist()) == list(range(512))
    assert np.all(np.diff(lengths[dealt], axis=1) <= 0)
    sums = lengths[dealt].sum(1)
    assert np.ptp(sums) < 0.02 * sums.mean() < np.ptp(lengths.reshape(16, 32).sum(1)) / 4


def test_rows_are_those_of_best_fit_decreasing():
    """By a plain loop over things and rows."""
    lengths = -np.sort(-sizes(n=96).reshape(4, 24), axis=1)
    found = packed_texts.fit(lengths, 140, 5)
    for things, rows in zip(lengths, found, strict=True):
        room: list[list[int]] = []
        for size, row in zip(things.tolist(), rows.tolist(), strict=True):
            fitting = [i for i, held in enumerate(room) if len(held) < 5 and sum(held) + size <= 140]
            best = max(fitting, key=lambda i: sum(room[i]), default=len(room))
            assert row == best
            if best == len(room):
                room.append([])
            room[best].append(size)


def test_a_batch_without_room_in_its_rows_gets_more_of_them():
    lengths = np.where(np.arange(64) < 60, 10, 40)
    base = Ragged((40,), 1)
    made = PackedTexts(base, Shape(1, 40, 4), Cut(1, 2)).training_plan(columns(lengths), batch_size=8, seed=0)
    for i in range(8):
        indices, rows = made.batch(i * 8)
        assert len(texts(indices)) == 8 and rows == len(indices) and rows % 2 == 0 and rows <= 8
        assert np.where(indices >= 0, lengths[indices], 0).sum(1).max() <= 40


@pytest.mark.parametrize("kind", ["equal", "outlier"])
def test_texts_of_one_length_and_a_single_long_one_are_padded(kind):
    lengths = sizes(kind)
    base = Ragged(ragged.choose_edges(lengths, 16, 4), 8)
    assert packed_texts.packed(base, columns(lengths), 16, 3) is base
    assert (packed_texts.evaluated(base, columns(lengths), None) is base) == (kind == "equal")


def test_tokens_that_have_labels_are_padded():
    lengths = sizes()
    tagged = Ragged(ragged.choose_edges(lengths, 16, 4), 8, ("inputs", "label"))
    assert packed_texts.packed(tagged, columns(lengths), 16, 3) is tagged


@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
def test_a_batch_is_what_a_plain_loop_makes_of_the_texts(xp):
    lengths = sizes(n=30)
    given = {**columns(lengths), "teacher": np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)}
    indices = np.array([[29, 0, -1], [-1, -1, -1], [7, 12, 3], [5, -1, -1]], np.int32)
    width = int(max(sum(lengths[i] for i in row if i >= 0) for row in indices)) + 3
    expected = np.zeros((4, width), np.int32)
    for row, those in zip(expected, indices, strict=True):
        parts = [given["inputs"][given["offsets"][i] : given["offsets"][i + 1]] for i in those if i >= 0]
        joined = np.concatenate(parts) if parts else np.empty(0, np.int32)
        row[: len(joined)] = joined
    arrays = given if xp is np else jax.tree.map(jnp.asarray, {k: v.astype("i4") if v.dtype != "f4" else v
                                                              for k, v in given.items()})  # fmt: skip
    made = PackedTexts(Ragged((int(lengths.max()),)), Shape(4, width, 3))
    batch = made.gather(arrays, xp.asarray(indices), 4, xp)
    flat = indices.reshape(-1)
    np.testing.assert_array_equal(batch["inputs"], expected)
    np.testing.assert_array_equal(batch["mask"], (flat >= 0).astype(np.float32))
    np.testing.assert_array_equal(batch["lengths"], np.where(flat >= 0, lengths[flat], 0))
    for name in ("label", "segment_start", "teacher"):
        assert len(batch[name]) == 12
        np.testing.assert_array_equal(np.asarray(batch[name])[flat >= 0], given[name][flat[flat >= 0]])
    assert batch["inputs"].dtype == batch["lengths"].dtype == np.int32 and batch["mask"].dtype == np.float32


@pytest.mark.parametrize("n", [1, 15, 127, 128, 129, 500])
@pytest.mark.parametrize("batch_size", [None, 16])
def test_evaluation_sees_each_example_once(n, batch_size):
    lengths = sizes(n=n)
    made = layout(sizes(n=300))
    shape = packed_texts.evaluated(made.base, columns(lengths), batch_size)
    found = shape if isinstance(shape, PackedTexts) else PackedTexts(made.base, Shape(64, 136, 64))
    seen: list[int] = []
    shapes = set()
    for indices, mask, rows in found.evaluation_plan(columns(lengths), batch_size=batch_size, shards=2).batches():
        assert rows == len(indices) and rows % 2 == 0 and mask.shape == (indices.size,)
        assert np.array_equal(mask, (indices.reshape(-1) >= 0).astype(np.float32))
        assert np.where(indices >= 0, lengths[indices], 0).sum(1).max() <= found.shape.length
        seen += texts(indices)
        shapes.add(indices.shape)
    assert sorted(seen) == list(range(n)) and len(shapes) == 1


def test_places_that_only_fill_the_last_batch_take_no_room():
    """Two batches of 65 and 64 texts, of which the second has one that is none."""
    lengths = sizes(n=129)
    made = packed_texts.evaluated(layout(sizes(n=300)).base, columns(lengths), None)
    whole = packed_texts.evaluated(layout(sizes(n=300)).base, columns(lengths[:128]), 64)
    assert isinstance(made, PackedTexts) and isinstance(whole, PackedTexts)
    assert made.shape.most <= whole.shape.most and made.shape.rows <= whole.shape.rows + 4


def test_the_first_batches_all_have_the_shape_that_is_chosen():
    """Of a training so short that to compile once more would tell; later ones may have one of few others."""
    for n, batch in ((150, 16), (3000, 32), (6000, 64)):
        lengths = sizes(n=n)
        made = plan(lengths, batch, window=64)
        steps = min(2**14 // made.texts.span, 16) * made.texts.window
        assert {made.batch(i * batch)[1] for i in range(steps)} == set(made.lengths)
        assert len({made.batch(i * batch)[1] for i in range(5 * max(1, n // batch))}) <= 2


def test_splits_of_like_texts_are_scored_in_one_shape():
    made = layout(sizes(n=2000))
    found = {
        packed_texts.evaluated(made.base, columns(sizes(n=n, seed=seed)), None).shape  # type: ignore[attr-defined]
        for n, seed in ((768, 1), (852, 2))
    }
    assert len(found) == 1
