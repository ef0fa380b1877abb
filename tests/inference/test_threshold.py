"""A threshold is chosen on the validation split, kept with the run, and refused for another."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics as sk

import bigctl
from bigctl.cli.main import main
from bigctl.errors import ConfigError
from bigctl.inference import confidence, threshold
from tests import small


@pytest.mark.parametrize("seed", range(3))
def test_no_other_threshold_does_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.random(120) < 0.25
    probability = np.clip(0.3 * truth + rng.random(120) * 0.7, 0, 1).round(2)
    tried = np.unique(np.concatenate([probability, [0.001]]))
    for objective, score in (
        ("f1", sk.f1_score), ("accuracy", sk.accuracy_score), ("balanced_accuracy", sk.balanced_accuracy_score),
    ):  # fmt: skip
        cut, value = threshold.choose(objective, probability, truth)
        assert value == pytest.approx(score(truth, probability >= cut))
        assert value == pytest.approx(max(score(truth, probability >= other) for other in tried))
    cut, precision = threshold.choose("recall>=0.8", probability, truth)
    assert sk.recall_score(truth, probability >= cut) >= 0.8
    assert precision == pytest.approx(sk.precision_score(truth, probability >= cut))
    cut, recall = threshold.choose("precision>=0.5", probability, truth)
    assert sk.precision_score(truth, probability >= cut) >= 0.5 and recall > 0


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_a_threshold_is_told_of_calibrated_probabilities_too(temperature: float) -> None:
    told = threshold.describe(0.8, temperature)
    raw = np.array([[0.2, 0.8]])
    assert f"{confidence.scaled(raw, temperature)[0, 1]:.4f} of the calibrated probability" in told


@pytest.mark.parametrize("text", ["0", "1", "1.5", "-1", "nan", "best", "recall>=2", ""])
def test_what_is_no_threshold_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no threshold"):
        threshold.parse(text)


def test_a_threshold_is_kept_with_its_run_and_refused_for_another(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(small.trained(tmp_path_factory) / "runs" / "small", run)

    def command(*arguments: str, code: int = 0) -> str:
        capsys.readouterr()
        assert main([*arguments]) == code
        out, err = capsys.readouterr()
        return out if code == 0 else err

    plain = json.loads(command("eval", str(run), "--json", "--threshold", "none"))
    chosen = json.loads(command("eval", str(run), "--json", "--threshold", "recall>=1"))
    assert plain["positive"] == "small" and [row["name"] for row in plain["per_class"]] == ["large", "small"]
    kept = json.loads((run / "threshold.json").read_text())
    assert kept["positive"] == "small" and kept["objective"] == "recall>=1"
    assert chosen["metrics"]["test/threshold"] == pytest.approx(kept["threshold"])
    assert json.loads(command("eval", str(run), "--json"))["metrics"] == chosen["metrics"]  # from now on
    trained = bigctl.load(run)
    labels = [record["label"] for record in trained.describe(small.columns(40, seed=2))]
    above = trained.predict(small.columns(40, seed=2))[:, 1] >= kept["threshold"]
    assert [label == "small" for label in labels] == above.tolist()
    said = command("eval", str(run))
    assert "positive class: small" in said and "chosen on the validation split by recall>=1" in said

    other = tmp_path / "other.json"
    other.write_text(json.dumps({**kept, "run": "1.0-abc"}))
    assert "is the threshold of another run" in command("eval", str(run), "--threshold", str(other), code=2)
    other.write_text(json.dumps({**kept, "step": 3}))
    assert "was chosen for the weights of step 3" in command("eval", str(run), "--threshold", str(other), code=2)
    other.write_text("{}")
    assert "is no threshold that bigctl wrote" in command("eval", str(run), "--threshold", str(other), code=2)


def test_errors_name_the_line_they_come_from(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = small.trained(tmp_path_factory)
    lines = (folder / "rows.csv").read_text().splitlines()
    trained = bigctl.load(folder / "runs" / "small")
    errors = trained.score("train", errors=5).errors
    assert len(errors) == 5
    for error in errors:
        name, _, number = error["origin"].partition(":")
        assert name == "rows.csv" and lines[int(number) - 1].endswith(f",{error['label']}")
        (cells,) = [lines[int(number) - 1].split(",")]
        said = trained.describe({"size": float(cells[0]), "place": cells[1]})
        assert said["label"] == error["predicted"] and said["probability"] == pytest.approx(
            error["probability"], abs=1e-5
        )


def test_what_was_reached_is_named() -> None:
    found = threshold.Threshold("run", 1, "ill", "recall>=0.95", 0.3191, 0.2941)
    assert "by recall>=0.95, with a precision of 0.2941 there" in threshold.describe(found)
    assert "by f1, which is 0.2941 there" in threshold.describe(dataclasses.replace(found, objective="f1"))
