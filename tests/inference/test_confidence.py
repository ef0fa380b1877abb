"""Probabilities are scaled, sets of classes hold what they promise, intervals cover the truth as often as they say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import bigctl
from bigctl.cli.main import main
from bigctl.errors import ConfigError
from bigctl.inference import assess, confidence
from bigctl.runs import removal
from tests import small


def drawn(count: int, classes: int, seed: int, sharp: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a model that is as sure as it should be, but for `sharp`, and labels drawn by the true ones."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, classes))
    true = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (true.cumsum(1) > rng.random((count, 1))).argmax(1)
    said = np.exp(sharp * logits)
    return said / said.sum(1, keepdims=True), labels


@pytest.mark.parametrize("sharp", [0.5, 2.5])
def test_temperature_is_found_again_and_mends_the_calibration(sharp: float) -> None:
    told, labels = drawn(20_000, 5, 0, sharp)
    temperature = confidence.best_temperature(told, labels)
    assert temperature == pytest.approx(sharp, rel=0.05)
    scaled = confidence.scaled(told, temperature)
    assert (scaled.argmax(1) == told.argmax(1)).all(), "what is predicted stays"
    before, after = (confidence.calibration_error(each, labels) for each in (told, scaled))
    assert after < 0.02 and after < before / 3
    for other in (0.97, 1.03):
        assert confidence.loss(scaled, labels) < confidence.loss(confidence.scaled(told, temperature * other), labels)


def test_calibration_error_is_the_mean_gap_of_equally_large_bins() -> None:
    said = np.array([0.6, 0.6, 0.8, 0.8, 0.9, 0.9])
    told = np.stack([said, 1 - said], axis=1)
    labels = np.array([0, 1, 0, 0, 0, 1])  # half right at 0.6, all at 0.8, half at 0.9
    assert confidence.calibration_error(told, labels, bins=3) == pytest.approx((0.1 + 0.2 + 0.4) / 3)


@pytest.mark.parametrize("kind", confidence.KINDS)
def test_sets_hold_the_true_class_as_often_as_they_promise(kind: str) -> None:
    """Over 20 splits; "adaptive" somewhat more often, for it does not draw."""
    covered, by_class, sizes = [], [], []
    for seed in range(20):
        told, labels = drawn(4_000, 4, seed, 1.5)
        cuts = np.asarray(confidence.conformal_cuts(told[:2000], labels[:2000], 0.9, kind))
        held = confidence.in_set(told[2000:], kind, cuts)
        right = held[np.arange(2000), labels[2000:]]
        covered.append(right.mean())
        by_class.append([right[labels[2000:] == k].mean() for k in range(4)])
        sizes.append(held.sum(1).min())
    assert np.mean(covered) == pytest.approx(0.9, abs=0.01) or (kind == "adaptive" and 0.9 < np.mean(covered) < 0.97)
    if kind == "class":
        assert np.mean(by_class, axis=0) == pytest.approx(np.full(4, 0.9), abs=0.015)
    if kind == "adaptive":
        assert min(sizes) >= 1


def test_too_few_examples_of_a_class_leave_it_in_every_set() -> None:
    told, labels = np.array([[0.9, 0.1]] * 30), np.array([0] * 28 + [1] * 2)
    cuts = confidence.conformal_cuts(told, labels, 0.9, "class")
    assert confidence.in_set(told[:1], "class", np.asarray(cuts)).tolist() == [[True, True]]


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        hits = rng.random(150) < 0.8
        found = confidence.intervals(lambda rows, hits=hits: {"a": hits[rows].mean()}, 150, rounds=200, seed=seed)
        held += found["a"][0] <= 0.8 <= found["a"][1]
    assert 0.90 <= held / 200 <= 0.99


# ------------------------------------------------------------------------------------------------------- of a real run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes that are hard to tell apart, and a run on them."""
    found = tmp_path_factory.mktemp("confidence")
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 3, 900)
    rows = {
        "a": kind + rng.normal(0, 0.7, 900),
        "b": kind % 2 + rng.normal(0, 0.7, 900),
        "kind": np.array(list("xyz"))[kind],
    }
    small.write(found / "rows.csv", rows)
    overrides = [*small.KEYS, "train.steps=60", "data=csv", f"data.path={found / 'rows.csv'}"]
    bigctl.train(overrides, found / "run", quiet=True)
    return found


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder / "run", tmp_path / "run")
    return tmp_path / "run"


def test_what_eval_fits_is_kept_and_used_by_predict(
    folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*words: str) -> str:
        capsys.readouterr()
        assert main([*words]) == 0
        return capsys.readouterr().out

    def predicted(*words: str) -> list[dict]:
        command("predict", str(run), str(folder / "rows.csv"), "--out", str(tmp_path / "out.jsonl"), *words)
        return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]

    before = predicted()
    asked = ["--calibration", "--conformal", "0.8", "--bootstrap", "50", "--json"]
    told = json.loads(command("eval", str(run), *asked))
    kept = json.loads((run / "confidence.json").read_text())
    assert kept["temperature"] == told["calibration"]["temperature"] and kept["level"] == 0.8
    assert "test/accuracy" in told["intervals"] and set(told["intervals"]) <= set(told["metrics"])
    for name, (low, high) in told["intervals"].items():
        assert low <= told["metrics"][name] <= high, name
    assert told["conformal"]["coverage"] == pytest.approx(0.8, abs=0.15)
    after, model = predicted(), bigctl.load(run)
    assert [row["label"] for row in after] == [row["label"] for row in before]
    scaled = confidence.scaled(np.array([list(row["probabilities"].values()) for row in before]), kept["temperature"])
    assert np.array([list(row["probabilities"].values()) for row in after]) == pytest.approx(scaled, abs=1e-4)
    given = model.predict(folder / "rows.csv")
    assert given == pytest.approx(scaled, abs=1e-4)
    held = [[model.classes[k] for k in np.flatnonzero(1 - row.astype(float) <= kept["cuts"][0])] for row in given]
    assert [row["set"] for row in after] == held and 1 < np.mean([len(each) for each in held]) < 3
    assert predicted("--uncalibrated") == before
    assert not list(removal.strangers(run)), "a run with it can still be removed"
    plain = command("eval", str(run))
    assert "temperature" not in plain and "accuracy" in plain


def test_metrics_of_all_examples_are_those_of_the_evaluation(folder: Path) -> None:
    model = bigctl.load(folder / "run")
    told, truth = model.probabilities("test")
    whole, found = model.evaluate("test"), assess.metrics_of(model, told, truth)(np.arange(len(truth)))
    assert found == pytest.approx({name: whole[f"test/{name}"] for name in found}, abs=1e-6) and len(found) >= 6


def test_what_is_kept_for_other_weights_or_is_damaged_is_left_aside(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, _ = assess.cover(bigctl.load(run), 0.9, "adaptive", "test")
    assert model.confidence == bigctl.load(run).confidence
    file = run / "confidence.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "step": 1}))
    assert bigctl.load(run).confidence.level is None
    file.write_text(json.dumps({**json.loads(file.read_text()), "step": model.step, "tta": "mirror"}))
    assert bigctl.load(run).confidence.level is None
    file.write_text('{"schema": 1}')
    assert bigctl.load(run).confidence is None and "is not used" in caplog.text


def test_what_cannot_be_is_refused(
    run: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    few = small.trained(tmp_path_factory) / "runs" / "small"
    for words, said in (
        ([str(few), "--calibration"], "examples, of which nothing can be said"),
        ([str(run), "--conformal", "1.5"], "is no share of examples"),
        ([str(run), "--conformal", "many"], "is no share of examples"),
        ([str(run), "--conformal", "0.9", "--sets", "big"], "there are no sets"),
        ([str(run), "--sets", "class"], "no sets are asked for"),
    ):
        assert main(["eval", *words]) == 2
        assert said in capsys.readouterr().err
    assert not (few / "confidence.json").exists() and not (run / "confidence.json").exists()
    with pytest.raises(ConfigError, match="does not say how likely"):
        confidence.probabilities_of({"loss": np.zeros(3)}, "run")


def test_a_temperature_of_few_examples_is_warned_of(caplog) -> None:
    confidence.best_temperature(*drawn(100, 3, 0, 1.0))
    assert not caplog.records
    confidence.best_temperature(*drawn(99, 3, 0, 1.0))
    assert "fitted on 99 examples" in caplog.text
