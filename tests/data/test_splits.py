"""Promises of `bigctl.data.splits`: every data set has three splits, as written or by rule, none sharing an example."""

from __future__ import annotations

import numpy as np
import pytest

from bigctl.config.schema import Csv, Packaged
from bigctl.data import catalog, splits
from bigctl.data.sources.decoded import Columns, Decoded
from bigctl.errors import DataError


def columns(n: int, first: int = 0, classes: int = 4) -> Columns:
    """Examples that carry their own number."""
    return {"x": np.arange(first, first + n, dtype=np.float64), "label": (np.arange(n) % classes).astype(np.int32)}


def source(classes: tuple[str, ...] | None = ("a", "b", "c", "d"), **lengths: int) -> Decoded:
    """Splits of these lengths; the numbers of the k-th count from 1000 k."""
    made = {name: columns(n, 1000 * k) for k, (name, n) in enumerate(lengths.items())}
    return Decoded("table", made, classes)


def make(decoded: Decoded, **keys) -> dict[str, list[int]]:
    """The example numbers of each split."""
    made = splits.split_examples(decoded, Packaged(name="x", **keys))
    assert list(made) == ["train", "validation", "test"]
    return {name: split["x"].astype(int).tolist() for name, split in made.items()}


def refused(match: str, decoded: Decoded, **keys) -> DataError:
    with pytest.raises(DataError, match=match) as caught:
        make(decoded, **keys)
    return caught.value


# --- As written -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("train", range(100)),
        ("train[:90%]", range(90)),
        ("train[90%:]", range(90, 100)),
        ("train[10:20]", range(10, 20)),
        (" train[ 10 : 20 ] ", range(10, 20)),
        ("train[:3]+train[97:]", [0, 1, 2, 97, 98, 99]),
        ("train[10:12]+extra", [10, 11, *range(1000, 1010)]),
        ("train[-5:]", range(95, 100)),
        ("train[:-95]", range(5)),
        ("train[-10%:]", range(90, 100)),
        ("train[50:1000]", range(50, 100)),
    ],
)
def test_expressions_mean_what_slices_mean(expression, expected):
    decoded = source(train=100, extra=10, val=4, tune=4)
    assert make(decoded, train=expression, validation="val", test="tune")["train"] == list(expected)


def test_percentages_meet_without_gap_or_overlap():
    for n in (7, 10, 99, 101):
        found = make(source(train=n), train="train[:34%]", validation="train[34%:67%]", test="train[67%:]")
        assert sorted(found["train"] + found["validation"] + found["test"]) == list(range(n))


@pytest.mark.parametrize("name", ["val", "valid", "dev", "validation"])
def test_validation_has_many_names(name):
    lengths = {"train": 50, "test": 5, name: 6}
    decoded = Decoded("table", {s: columns(n, 1000 * k) for k, (s, n) in enumerate(lengths.items())}, tuple("abcd"))
    for keys in ({}, {"validation": "validation"}, {"validation": "val"}):
        assert make(decoded, **keys)["validation"] == list(range(2000, 2006))


def test_splits_that_share_examples_are_refused():
    error = refused("shares examples of 'train' with the train split", source(train=9), train="train", test="train[:1]")
    assert error.where == "data.test"
    refused("with the validation split", source(train=90), validation="train[:20]", test="train[19:30]")
    refused("with the train split", source(train=90), train="train[:20]+train[19:30]")


def test_unknown_splits_are_named_with_what_there_is():
    error = refused("there is no split 'tarin'", source(train=9, test=3), train="tarin[:5]")
    assert error.where == "data.train" and "train, test" in str(error.hint)


@pytest.mark.parametrize(
    "expression", ["", "train[", "train[1]", "train[a:b]", "train[:50%", "train++test", "train[::2]"]
)
def test_what_is_no_expression_is_refused(expression):
    assert "train[:90%]" in str(refused("is no split", source(train=9), train=expression).hint)


def test_an_empty_split_is_refused():
    assert refused("test split is empty", source(train=9), test="train[5:5]").where == "data.test"
    refused("train split is empty", source(train=9), validation="train[:5]", test="train[5:]")


# --- By rule ----------------------------------------------------------------------------------------------------------


def test_splits_of_the_source_are_used_where_they_are():
    found = make(source(train=50, validation=8, test=9))
    assert found == {"train": list(range(50)), "validation": [*range(1000, 1008)], "test": [*range(2000, 2009)]}


def test_what_is_named_is_taken_out_of_the_training_split():
    found = make(source(train=100, test=10), validation="train[90%:]")
    assert found["train"] == list(range(90)) and found["validation"] == list(range(90, 100))


def test_a_split_that_another_one_uses_up_is_made_by_rule():
    found = make(source(train=100, validation=10), test="validation")
    assert found["test"] == list(range(1000, 1010)) and len(found["validation"]) == 8
    assert sorted(found["train"] + found["validation"]) == list(range(100))


def test_hold_out_is_disjoint_and_complete():
    found = make(source(train=400), validation_fraction=0.1, test_fraction=0.25)
    assert [len(found[split]) for split in ("train", "validation", "test")] == [268, 32, 100]
    assert sorted(found["train"] + found["validation"] + found["test"]) == list(range(400))
    assert all(numbers == sorted(numbers) for numbers in found.values())


def test_only_what_is_missing_is_held_out():
    found = make(source(train=100, test=10))
    assert found["test"] == list(range(1000, 1010)) and len(found["validation"]) == 8
    assert sorted(found["train"] + found["validation"]) == list(range(100))


def test_held_out_classes_are_in_proportion():
    label = np.repeat([0, 1, 2], [800, 150, 50]).astype(np.int32)
    np.random.default_rng(0).shuffle(label)
    decoded = Decoded("table", {"train": {"x": np.arange(1000.0), "label": label}}, ("a", "b", "c"))
    made = splits.split_examples(decoded, Packaged(name="x", test_fraction=0.2, validation_fraction=0.1))
    assert np.bincount(made["test"]["label"]).tolist() == [160, 30, 10]
    assert np.bincount(made["validation"]["label"]).tolist() == [64, 12, 4]
    for split in made.values():  # a row keeps its own label
        assert np.array_equal(split["label"], label[split["x"].astype(int)])


def test_a_class_of_a_few_examples_is_in_every_split():
    label = np.array([0] * 100 + [1] * 5, np.int32)
    decoded = Decoded("table", {"train": {"x": np.arange(105.0), "label": label}}, ("a", "b"))
    made = splits.split_examples(decoded, Packaged(name="x"))
    assert {split: int((made[split]["label"] == 1).sum()) for split in made} == {"train": 3, "validation": 1, "test": 1}


def test_real_targets_are_held_out_without_classes():
    targets = np.linspace(0, 1, 200)  # no two are equal: by class, nothing could be held out
    decoded = Decoded("table", {"train": {"x": np.arange(200.0), "label": targets}}, None)
    made = splits.split_examples(decoded, Packaged(name="x", test_fraction=0.2, validation_fraction=0.25))
    assert {name: len(split["x"]) for name, split in made.items()} == {"train": 120, "validation": 40, "test": 40}
    assert 0.3 < made["test"]["label"].mean() < 0.7


def test_split_seed_changes_what_is_held_out_and_nothing_else_does():
    first = make(source(train=400))
    assert make(source(train=400)) == first
    other = make(source(train=400), split_seed=1)
    assert other["test"] != first["test"] and other["validation"] != first["validation"]
    assert [len(v) for v in other.values()] == [len(v) for v in first.values()]


def test_the_test_split_does_not_depend_on_the_validation_fraction():
    assert make(source(train=400))["test"] == make(source(train=400), validation_fraction=0.4)["test"]


# --- Groups and time --------------------------------------------------------------------------------------------------


def by_column(tmp_path, **keys):
    """A table of 40 patients with three visits each, one a day; the number of each row is its feature."""
    rows = [f"{n},p{n // 3},2024-{1 + n // 28:02}-{1 + n % 28:02},{n * 7 % 2}" for n in range(120)]
    order = [rows[n * 37 % 120] for n in range(120)]
    (tmp_path / "t.csv").write_text("n,patient,day,y\n" + "\n".join(order) + "\n")
    config = Csv(path=str(tmp_path / "t.csv"), label="y", drop=["day"], **keys)
    made = splits.split_examples(catalog.decode(config), config)
    names = {name for columns in made.values() for name in columns}
    assert names == {"n", "label"} | (set() if "group" in keys else {"patient"})
    return {split: sorted(int(value) for value in columns["n"]) for split, columns in made.items()}


def test_examples_of_one_group_stay_together(tmp_path):
    made = by_column(tmp_path, group="patient")
    groups = {split: {n // 3 for n in rows} for split, rows in made.items()}
    assert not groups["train"] & groups["test"] and not groups["validation"] & (groups["train"] | groups["test"])
    assert [len(made[split]) for split in ("train", "validation", "test")] == [96, 12, 12]
    assert by_column(tmp_path, group="patient") == made != by_column(tmp_path, group="patient", split_seed=1)


def test_the_latest_examples_are_held_out(tmp_path):
    made = by_column(tmp_path, time="day")
    assert made["train"][-1] < made["validation"][0] <= made["validation"][-1] < made["test"][0]
    assert made["test"] == [*range(108, 120)] and sum(map(len, made.values())) == 120
    with pytest.raises(DataError, match="the column 'patient' is not in order of time"):
        by_column(tmp_path, time="patient")
