"""Promises of `bigctl.recipes.entities`: entities are what seqeval takes them for."""

from __future__ import annotations

import random
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bigctl.recipes.entities import Scheme
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities, precision_recall_fscore_support
from seqeval.scheme import BILOU
from seqeval.scheme import Entities as StrictEntities

TYPES = ("PER", "LOC", "A-B")
SCHEMES = {
    "iob": ["O", *(f"{letter}-{kind}" for letter in "BI" for kind in TYPES)],
    "iobes": ["O", *(f"{letter}-{kind}" for letter in "BIES" for kind in TYPES)],
    "bare": ["O", "B", "I", "E", "S"],
}


def padded(sentences: list[list[int]], holes: random.Random | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Rows of tags and which places are real; with `holes`, other places among the words."""
    rows = []
    for sentence in sentences:
        row: list[int] = []
        for tag in sentence:
            row += [-1] * (holes.randrange(3) if holes else 0) + [tag]
        rows.append(row)
    wide = max(map(len, rows), default=0) + 2
    tags = np.array([row + [-1] * (wide - len(row)) for row in rows], np.int32)
    return tags, tags >= 0


def found(scheme: Scheme, tags: np.ndarray, real: np.ndarray) -> list[list[tuple[str, int, int]]]:
    """What seqeval's `get_entities` gives of each sentence: (type, first word, last word)."""
    entities = scheme.entities(tags, real)
    result = []
    for row in range(len(tags)):
        word = np.cumsum(real[row]) - 1
        spans = []
        for place in np.flatnonzero(entities.begins[row]):
            last = np.flatnonzero(real[row][: entities.stops[row, place]])[-1]
            spans.append((scheme.types[entities.types[row, place]], int(word[place]), int(word[last])))
        result.append(spans)
    return result


@st.composite
def tagged(draw):
    names = draw(st.sampled_from(sorted(SCHEMES)))
    tags = SCHEMES[names]
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=6))
    some = st.sampled_from(draw(st.lists(st.sampled_from(range(len(tags))), min_size=1, max_size=5)) + [0])
    both = [(draw(st.lists(some, min_size=n, max_size=n)), draw(st.lists(some, min_size=n, max_size=n))) for n in sizes]
    return tags, [true for true, _ in both], [predicted for _, predicted in both], draw(st.randoms())


@settings(max_examples=200, deadline=None, database=None)
@given(tagged())
def test_entities_and_scores_of_any_tags_are_those_of_seqeval(case):
    tags, true, predicted, draw = case
    scheme = Scheme.of(tags)
    named = [[[tags[n] for n in row] for row in rows] for rows in (true, predicted)]
    state = draw.getstate()
    rows, real = padded(true, draw)
    draw.setstate(state)
    other, same = padded(predicted, draw)
    assert (real == same).all()
    assert found(scheme, rows, real) == [get_entities(row) for row in named[0]]
    counts = scheme.counts(rows, other, real)
    scores = scheme.metrics(counts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, reference in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
            assert scores[f"entity_{name}"] == pytest.approx(reference(*named), abs=1e-12)
        each = precision_recall_fscore_support(*named, average=None)[2]
    seen = sorted({kind for rows in named for row in rows for kind, _, _ in get_entities(row)})
    assert [scores[f"entity_f1/{kind}"] for kind in seen] == pytest.approx(list(each))


@settings(max_examples=100, deadline=None, database=None)
@given(st.lists(st.lists(st.sampled_from(["O", "U-X", "U-Y", "B-X L-X", "B-Y I-Y L-Y"]), min_size=1), min_size=1))
def test_bilou_is_read_as_its_strict_scheme_has_it(parts):
    sentences = [" ".join(row).split() for row in parts]
    tags = ["O", *(f"{letter}-{kind}" for letter in "BILU" for kind in "XY")]
    scheme = Scheme.of(tags)
    strict = StrictEntities(sentences, BILOU).entities
    expected = [[(e.tag, e.start, e.end - 1) for e in row] for row in strict]
    assert found(scheme, *padded([[tags.index(tag) for tag in row] for row in sentences])) == expected


def test_counts_are_the_same_on_the_device_and_add_up_over_batches():
    draw = np.random.default_rng(0)
    tags = SCHEMES["iobes"]
    scheme = Scheme.of(tags)
    true, predicted = draw.integers(0, len(tags), (2, 40, 17)).astype(np.int32)
    predicted = np.where(draw.random(true.shape) < 0.7, true, predicted)
    real = draw.random(true.shape) < 0.8
    whole = scheme.counts(true, predicted, real)
    on_device = jax.jit(lambda *arrays: scheme.counts(*arrays, jnp))
    parts = [on_device(true[part], predicted[part], real[part]) for part in (slice(0, 9), slice(9, 40))]
    assert whole.sum() > 100 and np.array_equal(sum(map(np.asarray, parts)), whole)
    assert whole.dtype == np.float32


@pytest.mark.parametrize("tags", [["NOUN", "VERB"], ["O", "PER"], ["O"], [], ["B", "I"], ["O", "N", "B"], ["B-X", "x"]])
def test_tags_that_mark_no_entities_have_no_scheme(tags):
    assert Scheme.of(tags) is None


def test_nothing_predicted_and_nothing_there_scores_zero():
    scheme = Scheme.of(["O", "B-X"])
    nothing = np.zeros((2, 3), np.int32)
    assert set(scheme.metrics(scheme.counts(nothing, nothing, nothing == 0)).values()) == {0.0}
