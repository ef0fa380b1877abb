"""What `explain --global` says of tables is what scikit-learn says of the same model; words and patches add up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.inspection import partial_dependence
from sklearn.inspection import permutation_importance as of_sklearn

import bigctl
from bigctl.cli.main import main
from bigctl.errors import ConfigError
from bigctl.inference.explaining import overall
from bigctl.inference.explaining.asked import Attribution, Output
from bigctl.inference.explaining.importance import permutation_importance
from bigctl.inference.explaining.text_tokens import Piece
from bigctl.inference.explaining.texts import TextExplanation
from bigctl.inference.trained import TrainedRun
from bigctl.reports import trust
from bigctl.runs import directory
from tests import small


class Wrapped(ClassifierMixin, BaseEstimator):
    """A run as an estimator of scikit-learn, on encoded rows."""

    def __init__(self, trained: TrainedRun):
        self.trained = trained
        self.classes_ = np.arange(len(trained.classes))

    def fit(self, x: np.ndarray, y: np.ndarray) -> Wrapped:
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        return self.trained.predict(np.asarray(x, np.float32)).astype(np.float64)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.predict_proba(x).argmax(1)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """Numbers alone, of which one says most and one nothing."""
    folder, rng = tmp_path_factory.mktemp("overall"), np.random.default_rng(0)
    rows = {name: rng.normal(5, 2, 400) for name in ("strong", "weak", "idle")}
    score = 2 * rows["strong"] + rows["weak"] + rng.normal(0, 1, 400)
    small.write(folder / "rows.csv", {**rows, "kind": np.where(score > 15, "large", "small")})
    keys = [*small.KEYS, "data=csv", f"data.path={folder / 'rows.csv'}"]
    bigctl.train(keys, folder / "numbers", quiet=True)
    return TrainedRun.load(str(folder / "numbers"))


def test_partial_dependence_is_that_of_sklearn(table: TrainedRun) -> None:
    rows = np.asarray(table.data().splits["validation"]["inputs"], np.float32)
    encoder = table.features.encoder
    assert encoder is not None
    for number in range(3):
        how = {"kind": "average", "method": "brute", "response_method": "predict_proba", "grid_resolution": 9}
        theirs = partial_dependence(Wrapped(table), rows.astype(np.float64), [number], **how)
        mean, std = (encoder["columns"][number][name] for name in ("mean", "std"))
        found = overall.dependence(table, rows, number, theirs["grid_values"][0] * std + mean)
        assert found.answers[:, 1] == pytest.approx(theirs["average"][0], abs=1e-6)
        assert found.answers.sum(1) == pytest.approx(np.ones(9), abs=1e-6)


def test_permutation_importance_is_that_of_sklearn(table: TrainedRun) -> None:
    split = table.data().splits["validation"]
    rows, labels = np.asarray(split["inputs"], np.float64), np.asarray(split["label"])
    theirs = of_sklearn(Wrapped(table), rows, labels, scoring="neg_log_loss", n_repeats=40, random_state=0)
    found = permutation_importance(table)
    spread = theirs.importances.std(1) * np.sqrt(1 / 10 + 1 / 40)
    assert (np.abs(found.values - theirs.importances_mean) < 4 * spread + 1e-6).all()
    assert found.values[0] > found.values[1] > 0.02 > abs(found.values[2])


def test_a_category_is_set_as_a_whole(tmp_path_factory: pytest.TempPathFactory) -> None:
    trained = TrainedRun.load(str(small.trained(tmp_path_factory) / "runs" / "small"))
    rows = np.asarray(trained.data().splits["train"]["inputs"][:20], np.float32)
    found = overall.dependence(trained, rows, 1)
    assert found.column == "place" and found.grid == ("north", "south")
    south = rows.copy()
    south[:, 1:] = [0, 1]
    assert found.answers[1] == pytest.approx(trained.predict(south).mean(0), abs=1e-6)
    numbers = overall.dependence(trained, rows, 0)
    assert len(numbers.grid) == 20 and numbers.grid[0] < numbers.grid[-1]


def explained(text: str, name: str, parts: list[tuple[str, float]]) -> TextExplanation:
    pieces, at = [Piece("[CLS]")], 0
    for token, _ in parts:
        at = text.lower().index(token.removeprefix("##"), at)
        pieces.append(Piece(token, 0, at, at + len(token.removeprefix("##"))))
        at = pieces[-1].end
    values = np.array([9.0, *(value for _, value in parts)])
    return TextExplanation(
        Attribution("m", Output(0, name, "logit"), values, 0.0), {}, texts=(text,), pieces=tuple(pieces)
    )


def test_words_are_put_together_and_ranked_by_what_they_add() -> None:
    one = explained("Great acting, dull plot", "good", [("gre", 1.0), ("##at", 0.5), ("acting", 0.2), ("dull", -1.0)])
    assert overall.words_of(one) == {"great": 1.5, "acting": 0.2, "dull": -1.0}
    other = explained("great 電影", "good", [("great", 0.5), ("電", 0.3), ("影", -0.1)])
    told = overall._words([one, other])["good"]
    assert told["for"][:2] == [{"word": "great", "adds": 1.0, "texts": 2}, {"word": "電", "adds": 0.3, "texts": 1}]
    assert told["against"][0]["word"] == "dull" and told["examples"] == 2


def shown_of(capsys: pytest.CaptureFixture[str], run: Path, *words: str) -> dict:
    capsys.readouterr()
    assert main(["explain", str(run), "--global", "--json", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    report = trust.of_run(directory.locate(str(run)))
    assert report is not None
    return {**found, "report": report}


def test_the_command_keeps_what_the_report_shows(table: TrainedRun, capsys: pytest.CaptureFixture[str]) -> None:
    found = shown_of(capsys, table.run.path)
    assert [each["column"] for each in found["dependence"]][:2] == ["strong", "weak"]
    assert found["report"].tables[0].rows[0][0] == "strong" and len(found["report"].figures) == 3
    assert main(["explain", str(table.run.path), "--global"]) == 0
    assert "strong: " in capsys.readouterr().out
    alike = {"column": "idle", "grid": [2.0], "answers": {"large": [0.25], "small": [0.75]}}
    (_, line) = overall.sentences({**found, "dependence": [alike]})
    assert line == "  idle: large 0.25; it is 2 in all of these examples"


def test_pictures_are_told_by_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ["recipe=cnn_cls", "data=digits", "model.channels=[4]", "model.hidden=[]", "train.steps=3"]
    bigctl.train([*keys, "train.tensorboard=false"], tmp_path / "run", quiet=True)
    found = shown_of(capsys, tmp_path / "run", "--count", "12")
    assert sum(each["examples"] for each in found["classes"].values()) == 12 == found["examples"]
    each = next(iter(found["classes"].values()))
    assert np.asarray(each["adds"]).shape == (8, 8) and each["mean"]["shape"] == [8, 8, 1]
    assert found["report"].pictures[0].image.startswith("data:image/png")


def test_what_does_not_fit_is_refused(table: TrainedRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(table.run.path), "--global", "--check"]) == 2
    assert "--check does not" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="of single rows"):
        overall.overall(table, method="shapley")
    with pytest.raises(ConfigError, match="no such split|has no nowhere split"):
        overall.overall(table, "nowhere")
