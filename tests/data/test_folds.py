"""Promises of `bigctl.data.folds`: each row of training and validation is validated once, by class and whole groups."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from sklearn.model_selection import GroupKFold, StratifiedKFold

from bigctl.config.compose import compose
from bigctl.config.schema import Data, Memory, Packaged
from bigctl.data import cache, splits
from bigctl.data.preparation import prepare
from bigctl.data.sources import memory
from bigctl.data.sources.decoded import GROUP, Columns, Decoded
from bigctl.data.target import NUMBER, Target
from bigctl.errors import ConfigError, DataError

NAMES = ("a", "b", "c")


def source(*labels: int, **more: np.ndarray) -> Columns:
    """Rows that carry their own number."""
    return {"x": np.arange(len(labels)), "label": np.array(labels, np.int32), **more}


def decoded(n: int = 47, **more: np.ndarray) -> Decoded:
    return Decoded("table", {"train": source(*np.random.default_rng(0).choice(3, n, p=[0.6, 0.3, 0.1]), **more)}, NAMES)


def all_folds(given: Decoded, count: int, **keys) -> list[dict[str, Columns]]:
    return [splits.split_examples(given, Packaged(name="x", fold=fold, folds=count, **keys)) for fold in range(count)]


def rows(made: list[dict[str, Columns]], split: str) -> list[list[int]]:
    return [each[split]["x"].tolist() for each in made]


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_every_row_but_those_for_the_test_is_validated_exactly_once(count: int) -> None:
    given = decoded(61)
    usual = splits.split_examples(given, Packaged(name="x"))
    made = all_folds(given, count)
    pool = sorted(usual["train"]["x"].tolist() + usual["validation"]["x"].tolist())
    assert sorted(sum(rows(made, "validation"), [])) == pool
    for train, validation in zip(rows(made, "train"), rows(made, "validation"), strict=True):
        assert sorted(train + validation) == pool and train == sorted(train) and validation == sorted(validation)
    assert rows(made, "test") == [usual["test"]["x"].tolist()] * count, "the test split is as without folds"


@pytest.mark.parametrize("count", [2, 3, 5])
def test_folds_are_as_even_as_those_of_scikit_learn_in_all_and_in_each_class(count: int) -> None:
    made = all_folds(decoded(), count)
    labels = [each["validation"]["label"] for each in made]
    pool = np.concatenate(labels)
    theirs = [pool[held] for _, held in StratifiedKFold(count).split(pool, pool)]
    assert sorted(map(len, labels)) == sorted(map(len, theirs))
    for c in range(3):
        assert sorted((own == c).sum() for own in labels) == sorted((own == c).sum() for own in theirs)


def test_numbers_have_no_classes_and_folds_of_them_differ_by_one_row() -> None:
    columns = {"x": np.arange(33), "label": np.linspace(0, 1, 33)}
    made = all_folds(Decoded("table", {"train": columns}, None, target=Target(NUMBER)), 4)
    assert sorted(map(len, rows(made, "validation"))) == [7, 7, 8, 8]


def test_groups_stay_whole_and_folds_of_them_are_as_even_as_those_of_scikit_learn() -> None:
    names = np.array([f"p{k}" for k in np.random.default_rng(1).choice(12, 80, p=np.arange(1, 13) / 78)], object)
    columns = {"x": np.arange(80), "label": np.linspace(0, 1, 80), GROUP: names}
    made = all_folds(Decoded("table", {"train": columns}, None, target=Target(NUMBER)), 3)
    held = [set(names[own]) for own in rows(made, "validation")]
    assert sum(map(len, held)) == len(set.union(*held)), "no group is in two folds"
    for train, own in zip(rows(made, "train"), held, strict=True):
        assert not own & set(names[train])
    pool = sorted(sum(rows(made, "validation"), []))
    theirs = [len(h) for _, h in GroupKFold(3).split(pool, groups=names[pool])]
    assert sorted(map(len, rows(made, "validation"))) == sorted(theirs)


def test_a_validation_split_of_the_source_is_shared_out_with_the_training_split() -> None:
    train, validation = source(*[0, 1] * 10), source(*[0, 1] * 4)
    validation["x"] += 1000
    test = source(0, 1)
    made = all_folds(Decoded("table", {"train": train, "validation": validation, "test": test}, ("a", "b")), 4)
    found = Counter(sum(rows(made, "validation"), []))
    assert set(found) == {*range(20), *range(1000, 1008)} and set(found.values()) == {1}
    assert rows(made, "test") == [[0, 1]] * 4


def test_folds_are_drawn_by_the_seed_of_splits() -> None:
    one, same, other = (rows(all_folds(decoded(), 3, split_seed=s), "validation") for s in (0, 0, 1))
    assert one == same != other


# ----------------------------------------------------------------------------------------------------- what is refused


def of_groups(*groups: str) -> Decoded:
    made = [source(*[0] * len(names), **{GROUP: np.array(names, object)}) for names in (list(groups), ["z"])]
    return Decoded("table", dict(zip(("train", "test"), made, strict=True)), ("a",))


@pytest.mark.parametrize(
    ("given", "count", "said"),
    [
        (Decoded("table", {"train": source(0, 0, 0), "test": source(0)}, ("a",)), 5, "cannot be made of 3 rows"),
        (Decoded("table", {"train": source(0, 0, 1), "test": source(0)}, ("a", "b")), 2, "class 'b' has one row"),
        (of_groups("p", "p", "q"), 3, "3 folds cannot be made of 2 groups"),
    ],
)
def test_fewer_rows_groups_or_rows_of_a_class_than_there_must_be_are_told(
    given: Decoded, count: int, said: str
) -> None:
    with pytest.raises(DataError, match=said) as caught:
        all_folds(given, count)
    assert (caught.value.where or "").startswith("data.fold") and caught.value.hint


def test_one_long_text_has_no_folds() -> None:
    text = np.empty(1, object)
    text[0] = "a text" * 50
    with pytest.raises(DataError, match="no folds"):
        splits.split_stream(Decoded("stream", {"train": {"document": text}}, None), Packaged(name="x", fold=0))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data=breast_cancer", "data.fold=5"], "data.fold cannot be 5: there are 5 folds, 0 to 4"),
        (["data=breast_cancer", "data.fold=3", "data.folds=3"], "there are 3 folds, 0 to 2"),
        (["data=breast_cancer", "data.fold=-1"], "data.fold cannot be -1"),
        (["data=breast_cancer", "data.fold=0", "data.folds=1"], "data.folds cannot be 1"),
        (["data=breast_cancer", "data.folds=5"], "without data.fold"),
        (["data=csv", "data.path=t.csv", "data.label=y", "data.time=t", "data.fold=0"], "learned from the future"),
    ],
)
def test_keys_that_do_not_fit_are_refused_before_anything_is_read(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        compose(["recipe=mlp_cls", *overrides])


# ----------------------------------------------------------------------------------------------------- prepared data


def test_prepared_data_is_kept_by_fold_and_without_folds_where_it_always_was(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path))
    plain = Packaged(name="breast_cancer")
    configs: list[Data] = [
        plain,
        *(Packaged(name="breast_cancer", fold=f, folds=n) for f, n in ((0, 5), (1, 5), (1, 4))),
    ]
    assert len({cache.cache_folder(config) for config in configs}) == 4
    five = Packaged(name="breast_cancer", fold=0)
    assert cache.cache_folder(five) == cache.cache_folder(configs[1]), "five where nothing says how many"


def test_what_python_holds_has_folds_and_rare_classes_are_noted(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path))
    inputs, labels, counts = np.arange(80.0).reshape(40, 2), ["a"] * 35 + ["b"] * 5, []
    for fold in range(5):
        with memory.held(memory.read((inputs, labels), Memory(fold=fold))) as config:
            dataset = prepare.prepare(config)
        counts.append(np.bincount(dataset.splits["validation"]["label"], minlength=2).tolist())
        said = "1 class has fewer rows than there are folds, so not every fold validates it: 'b' (4)"
        assert said in dataset.info["notes"], "one is in the test split"
    assert np.sum(counts, 0).tolist() == [31, 4] and {b for _, b in counts} == {0, 1}
