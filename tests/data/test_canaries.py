"""Canaries are a function of the seed, have another label than their own, and half of them are left out."""

from __future__ import annotations

import numpy as np

from bigctl.data.canaries import Canaries
from bigctl.data.layouts.ragged import Ragged
from bigctl.data.layouts.rows import Rows

LABELS = np.arange(1000, dtype=np.int32) % 3


def test_they_are_a_function_of_the_seed() -> None:
    first, again, other = (Canaries.drawn(LABELS, 3, 200, seed) for seed in (1, 1, 2))
    assert np.array_equal(first.rows, again.rows) and np.array_equal(first.inside, again.inside)
    assert np.array_equal(first.labels, again.labels) and not np.array_equal(first.rows, other.rows)
    assert len(set(first.rows.tolist())) == 200 and 70 < first.inside.sum() < 130
    assert (first.labels != LABELS[first.rows]).all() and set(first.labels.tolist()) == {0, 1, 2}
    flips = [Canaries.drawn(LABELS, 2, 1, seed).inside[0] for seed in range(400)]
    assert 150 < sum(flips) < 250


def test_rows_outside_are_gone_and_the_others_have_their_labels() -> None:
    found = Canaries.drawn(LABELS, 3, 200, 5)
    columns = {"inputs": np.arange(1000.0), "label": LABELS}
    planted = found.planted(columns, Rows())
    assert set(found.rows[~found.inside]) == set(range(1000)) - set(planted["inputs"].astype(int))
    expected = LABELS.copy()
    expected[found.rows] = found.labels
    assert np.array_equal(planted["label"], expected[planted["inputs"].astype(int)])
    assert np.array_equal(columns["label"], np.arange(1000) % 3)  # what is given stays


def test_texts_outside_are_gone_with_their_tokens() -> None:
    sizes = np.arange(50) % 4 + 1
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    columns = {
        "inputs": np.repeat(np.arange(50), sizes),
        "offsets": offsets,
        "segment_start": sizes,
        "label": LABELS[:50],
    }
    found = Canaries.drawn(LABELS[:50], 3, 20, 0)
    planted, layout = found.planted(columns, Ragged((8,))), Ragged((8,))
    kept = [row for row in range(50) if row not in set(found.rows[~found.inside])]
    assert layout.size(planted, training=True) == len(kept) < 50
    assert np.array_equal(planted["segment_start"], sizes[kept])
    for place, row in enumerate(kept):
        tokens = planted["inputs"][planted["offsets"][place] : planted["offsets"][place + 1]]
        assert tokens.tolist() == [row] * sizes[row]
