"""Promises of `bigctl.data.text.duplicates`: which texts are there twice, and where."""

from __future__ import annotations

import json

import numpy as np

from bigctl.data.target import Target
from bigctl.data.text import duplicates

TARGET = Target("class", ("bad", "good"))


def columns(*examples: tuple[str, int] | tuple[str, str, int]) -> dict[str, np.ndarray]:
    *texts, label = zip(*examples, strict=True)
    names = ("text", "text_pair")[: len(texts)]
    return {n: np.array(t, object) for n, t in zip(names, texts, strict=True)} | {"label": np.array(label, np.int32)}


def test_repeated_texts_are_counted_whatever_their_case_and_blanks():
    train = columns(("A fine  film", 1), ("a FINE film\n", 0), ("a fine film", 1), ("straße", 0), ("STRASSE", 0))
    assert duplicates.surplus(train) == 3
    assert duplicates.report({"train": train}, TARGET) == {"train": {"repeated": 3, "other_label": 1}, "notes": []}
    assert duplicates.surplus(columns(("a fine film", 1), ("afine film", 1), ("a fine film.", 1))) == 0


def test_texts_that_cross_splits_are_counted_with_their_labels():
    splits = {
        "train": columns(("a", 0), ("b", 1), ("c", 0), ("C", 1)),
        "validation": columns(("d", 0), ("B", 1)),
        "test": columns(("a", 1), ("b", 1), ("c", 0), ("x", 0), ("A ", 1), ("a", 1)),
    }
    found = duplicates.report(splits, TARGET)
    assert found["validation"]["in_train"] == 1 and found["validation"]["other_label"] == 0
    assert found["validation"]["examples"] == [{"text": "B", "label": "good", "train_label": "good"}]
    # "c" has both labels in training, so neither is another one.
    assert found["test"]["in_train"] == 5 and found["test"]["other_label"] == 3
    assert found["test"]["examples"] == [{"text": text, "label": "good", "train_label": "bad"} for text in ("a", "A ")]
    assert found["notes"] == [
        "1 validation and 5 test texts are also in the training split, 3 of them with another label; the first: 'B'"
    ]
    json.dumps(found)


def test_a_pair_is_the_same_if_both_texts_are():
    train = columns(("a", "b c", 0), ("a b", "c", 0), ("a", "b", 0))
    test = columns(("a", "B  c", 0), ("b c", "a", 0), ("a", "c", 0))
    found = duplicates.report({"train": train, "test": test}, TARGET)
    assert found["train"]["repeated"] == 0 and found["test"]["in_train"] == 1
    assert found["test"]["examples"][0]["text"] == "a | B  c"


def test_unlabelled_texts_are_reported_without_labels():
    unlabelled = columns(("x" * 500, 0), ("y", 0))
    found = duplicates.report({"train": unlabelled, "test": unlabelled}, Target("none"))
    assert found["test"]["in_train"] == 2 and found["test"]["other_label"] == 0
    assert found["test"]["examples"][0] == {"text": "x" * 77 + "..."}


def test_no_duplicates_are_no_examples():
    found = duplicates.report({"train": columns(("a", 0)), "test": columns(("b", 0))}, TARGET)
    assert found["test"] == {"in_train": 0, "other_label": 0, "examples": []} and not found["notes"]
