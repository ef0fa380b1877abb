"""Slices are those of the data, paired tests those of the books, strange examples are told from known ones."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

import bigctl
from bigctl.cli.main import main
from bigctl.inference import paired, slices, unfamiliar
from bigctl.reports import trust
from bigctl.runs import directory, removal
from tests import small

FEW = ["train.steps=80", "train.tensorboard=false", "model.hidden=[8]", "data.test_fraction=0.5"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class that is easy but for the rows with a place "west", two runs on it, one of a number."""
    found = tmp_path_factory.mktemp("trust")
    rng = np.random.default_rng(0)
    kind, place = rng.integers(0, 2, 800), rng.choice(["east", "west"], 800, p=[0.7, 0.3])
    size = kind + rng.normal(0, 0.2, 800) + np.where(place == "west", rng.normal(0, 2, 800), 0)
    rows = {"size": size, "place": place, "kind": np.where(kind, "large", "small"), "note": rng.integers(0, 100, 800)}
    small.write(found / "rows.csv", rows)
    far = {name: values[:60] for name, values in rows.items()}
    small.write(found / "far.csv", {**far, "size": 30 + rng.normal(0, 1, 60)})
    keys = ["recipe=mlp_cls", "data=csv", "data.label=kind", "data.drop=[note]", *FEW]
    for name, rate in (("one", 0.03), ("two", 0.0001)):
        bigctl.train([*keys, f"data.path={found / 'rows.csv'}", f"optimizer.lr={rate}"], found / name, quiet=True)
    number = ["recipe=mlp_cls", "model.head=regression", "data=csv", "data.label=size", "data.drop=[kind]", *FEW]
    bigctl.train([*number, f"data.path={found / 'rows.csv'}", "optimizer.lr=0.03"], found / "number", quiet=True)
    return found


def evaluated(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    capsys.readouterr()
    assert main(["eval", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_worst_slice_is_found_and_shown_by_the_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = evaluated(capsys, folder / "one", "--slices", "place", "--slices", "size", "--slices", "note")
    place, size, note = told["slices"]
    assert [each["name"] for each in place["slices"]] == ["west", "east"] and place["worse"] == ["west"]
    whole = told["metrics"]["test/accuracy"]
    assert place["whole"] == pytest.approx(whole)
    counts, hits = zip(
        *((each["count"], each["count"] * each["metrics"]["accuracy"]) for each in place["slices"]), strict=True
    )
    assert sum(counts) == 400 and sum(hits) / 400 == pytest.approx(whole)
    assert [sum(each["count"] for each in found["slices"]) for found in (size, note)] == [400, 400]
    assert sorted(each["count"] for each in size["slices"]) == [80] * 5, "quantiles"
    for each in place["slices"]:
        low, high = each["intervals"]["accuracy"]
        assert low < each["metrics"]["accuracy"] < high
    page = trust.of_run(directory.locate(str(folder / "one")))
    assert page is not None and "west" in page.tables[0].caption and len(page.tables) == 3
    assert not list(removal.strangers(folder / "one"))
    assert main(["eval", str(folder / "one"), "--slices", "class"]) == 0
    assert "Holm's correction for the 2 slices" in capsys.readouterr().out
    assert main(["report", str(folder / "one"), "--out", str(folder / "page.html")]) == 0
    assert "By class" in (folder / "page.html").read_text()


def test_a_column_that_no_model_reads_is_that_of_the_file(folder: Path) -> None:
    """Rows of the file are found by their places: the slices of `note` have the accuracy of these rows."""
    trained = bigctl.load(folder / "one")
    names, codes = slices._groups(trained, trained.data(), "test", "note")
    data = trained.data()
    lines = (folder / "rows.csv").read_text().splitlines()[1:]
    from bigctl.data import origins

    places = origins.read(data.path, "test", list(range(400)))
    mine = [lines[int(str(place).rpartition(":")[2]) - 2].split(",") for place in places]
    found, expected = slices.cut(np.array([float(row[3]) for row in mine]))
    assert found == names and (codes == expected).all()


def test_numbers_are_sliced_by_their_absolute_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place,) = evaluated(capsys, folder / "number", "--slices", "place")["slices"]
    assert place["headline"] == "mae" and place["slices"][0]["name"] == "west" and place["worse"] == ["west"]


def test_intervals_and_corrections_are_those_of_scipy() -> None:
    from scipy import stats

    for hits, count in ((0, 20), (17, 20), (20, 20), (333, 1000)):
        ends = stats.binomtest(hits, count).proportion_ci(method="wilson")
        assert slices.wilson(hits, count) == pytest.approx((ends.low, ends.high))
    assert slices.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    names, codes = slices.cut(np.array([1.0, np.nan, 2, 2]))
    assert names == ["1", "2", "(missing)"] and codes.tolist() == [0, 2, 1, 1]


def test_mcnemar_is_the_binomial_sum() -> None:
    first, second = np.repeat([1, 1, 0, 0], [30, 3, 11, 6]) > 0, np.repeat([1, 0, 1, 0], [30, 3, 11, 6]) > 0
    found = paired.mcnemar(first, second)
    exact = 2 * sum(math.comb(14, k) for k in range(4)) / 2**14
    assert (found.first_only, found.second_only) == (3, 11) and found.p == pytest.approx(exact)
    assert paired.mcnemar(first, first).p == 1


def test_paired_bootstrap_is_that_of_all_draws() -> None:
    """Of four examples all 256 draws can be made: intervals and p are those of the draws at random."""
    gaps = np.array([1.0, -0.2, 0.4, 0.3])
    (found,) = paired.differences(
        lambda rows: {"m": 0.0}, lambda rows: {"m": float(gaps[rows].mean())}, 4, rounds=20_000, prefix="test"
    )
    every = np.array([gaps[list(rows)].mean() for rows in itertools.product(range(4), repeat=4)])
    assert found.difference == pytest.approx(gaps.mean()) and found.metric == "test/m"
    assert found.interval == pytest.approx(np.quantile(every, (0.025, 0.975)), abs=0.06)
    assert found.p == pytest.approx(2 * (every <= 0).mean(), abs=0.005)


def test_two_runs_are_compared_on_the_same_examples(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", str(folder / "one"), str(folder / "two"), "--significance", "--rounds", "200"]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    accuracy = next(each for each in told["metrics"] if each["metric"] == "test/accuracy")
    assert accuracy["difference"] < 0 and accuracy["p"] < 0.05 and told["mcnemar"]["p"] < 0.01
    assert accuracy["interval"][0] < accuracy["difference"] < accuracy["interval"][1]
    assert accuracy["difference"] * 400 == pytest.approx(told["mcnemar"]["second_only"] - told["mcnemar"]["first_only"])
    assert main(words) == 0 and "McNemar, exact" in capsys.readouterr().out


def test_strange_rows_are_told_from_known_ones(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = evaluated(capsys, folder / "one", "--ood", folder / "far.csv")["ood"]
    by = {each["score"]: each for each in told["scores"]}
    assert told["count"] == 60 and by["mahalanobis"]["auroc"] > 0.95 and by["mahalanobis"]["flagged"] > 0.9
    assert all(each["own_flagged"] < 0.15 for each in by.values())
    own = evaluated(capsys, folder / "one", "--ood", folder / "rows.csv")["ood"]
    assert all(0.4 < each["auroc"] < 0.6 and each["fpr95"] > 0.85 for each in own["scores"])


def test_distances_are_those_of_scikit_learn() -> None:
    from sklearn.covariance import EmpiricalCovariance
    from sklearn.metrics import roc_auc_score
    from sklearn.neighbors import NearestNeighbors

    rng = np.random.default_rng(0)
    known, given, labels = rng.normal(size=(300, 5)), rng.normal(size=(40, 5)), rng.integers(0, 2, 300)
    means = np.stack([known[labels == k].mean(0) for k in (0, 1)])
    fitted = EmpiricalCovariance(assume_centered=True).fit(known - means[labels])
    expected = np.min([fitted.mahalanobis(given - mean) for mean in means], axis=0)
    assert unfamiliar.mahalanobis(known, labels)(given) == pytest.approx(expected, rel=5e-3)
    near = NearestNeighbors(n_neighbors=10).fit(known).kneighbors(given)[0][:, 9]
    assert unfamiliar.neighbour_distance(known, given, 10) == pytest.approx(near)
    own, strange = rng.normal(size=200), rng.normal(1, size=100)
    found = unfamiliar.judged("s", own, own, strange)
    assert found.auroc == pytest.approx(roc_auc_score(np.repeat([0, 1], [200, 100]), np.concatenate([own, strange])))
    assert found.own_flagged == pytest.approx(0.05) and found.flagged == pytest.approx(1 - found.fpr95)


def test_what_cannot_be_told_is_refused(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    other = small.trained(tmp_path_factory) / "runs" / "small"
    one, number = str(folder / "one"), str(folder / "number")
    (folder / "few.csv").write_text("size,place\n1,east\n")
    for words, said in (
        (["eval", one, "--slices", "plac"], "did you mean place?"),
        (["eval", one, "--slices", "length"], "the examples are no texts"),
        (["eval", one, "--slices", "place", "--min-slice", "900"], "fewer than 900"),
        (["eval", number, "--slices", "class"], "predicts no single class"),
        (["eval", number, "--ood", str(folder / "far.csv")], "this run predicts a number"),
        (["eval", one, "--ood", "nowhere.csv"], "there is no such file"),
        (["eval", one, "--ood", str(folder / "few.csv")], "of which nothing can be said"),
        (["compare", one, str(other), "--significance"], "are not the same: there are 400 and"),
        (["compare", one, number, "--significance"], "are not the same"),
        (["compare", one, "--significance"], "1 runs are given"),
    ):
        assert main(words) == 2, words
        assert said in capsys.readouterr().err


def test_a_column_that_is_mostly_its_largest_number_is_cut_below_it():
    names, codes = slices.cut(np.array([*range(1, 10), *[10] * 90], float))
    assert names == ["up to 9", "above 9", "(missing)"] and np.bincount(codes).tolist() == [9, 90]
