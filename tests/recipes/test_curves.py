"""Curves, and metrics of a chosen positive class and threshold, equal scikit-learn's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sklearn.calibration
import sklearn.metrics as sk
from bigctl.recipes import curves
from bigctl.recipes.classification import ClassHead, classification_metrics, sigmoid

from bigctl.errors import ConfigError


def draw(seed: int, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.random(300) < 0.3
    scores = truth + rng.normal(0, 1, 300)
    return (scores.round(1) if ties else scores), truth


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_curves_equal_those_of_scikit_learn(seed: int, ties: bool) -> None:
    scores, truth = draw(seed, ties)
    false, true, _ = sk.roc_curve(truth, scores, drop_intermediate=False)
    np.testing.assert_allclose(np.stack(curves.roc(scores, truth)), np.stack([false, true]))
    precision, recall, _ = sk.precision_recall_curve(truth, scores)
    np.testing.assert_allclose(np.stack(curves.precision_recall(scores, truth)), np.stack([precision, recall]))
    assert curves.average_precision(scores, truth) == pytest.approx(sk.average_precision_score(truth, scores))
    share, mean = sklearn.calibration.calibration_curve(truth, sigmoid(scores), n_bins=10)
    found = curves.reliability(sigmoid(scores), truth)
    np.testing.assert_allclose(found["share"], share, atol=1e-6)
    np.testing.assert_allclose(found["probability"], mean, atol=1e-6)
    assert sum(found["count"]) == len(truth)


def test_what_is_kept_of_a_curve_lies_on_it() -> None:
    scores, truth = draw(2, ties=False)
    found = curves.described(sigmoid(scores), truth, scores=scores, positive="yes")
    kept = list(zip(*found["roc"].values(), strict=True))
    whole = {(round(x, 6), round(y, 6)) for x, y in zip(*curves.roc(scores, truth), strict=True)}
    assert len(kept) == curves.POINTS and set(kept) <= whole and kept[0] == (0, 0) and kept[-1] == (1, 1)
    one = curves.described(sigmoid(scores), np.ones(300, bool), scores=scores, positive="yes")
    assert "roc" not in one and one["reliability"]["count"] == found["reliability"]["count"]


def sums(scores: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """As an evaluation gives them; scores are log-odds of the second class."""
    predicted = (scores > 0).astype(int)
    return {"confusion": sk.confusion_matrix(labels, predicted), "each/score": scores, "each/label": labels}


@pytest.mark.parametrize("positive", [0, 1])
@pytest.mark.parametrize("cut", [None, 0.2, 0.7])
def test_the_positive_class_and_its_threshold_decide(positive: int, cut: float | None) -> None:
    scores, truth = draw(3, ties=False)
    labels = truth.astype(int)
    probability = sigmoid(scores if positive == 1 else -scores)
    found = classification_metrics(sums(scores, labels), positive=positive, cut=cut)
    predicted = np.where(probability >= (0.5 if cut is None else cut), positive, 1 - positive)
    assert found["binary_f1"] == pytest.approx(sk.f1_score(labels, predicted, pos_label=positive))
    assert found["binary_recall"] == pytest.approx(sk.recall_score(labels, predicted, pos_label=positive))
    assert found["f1"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"))
    assert found["confusion"] == sk.confusion_matrix(labels, predicted).tolist()
    assert found["roc_auc"] == pytest.approx(sk.roc_auc_score(labels == positive, probability))
    if cut is not None:
        assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted))


def test_a_threshold_decides_labels_and_mistakes() -> None:
    head = ClassHead(("no", "yes"), None, None, positive="no").decided({"threshold": 0.9})
    rows = np.array([[0.95, 0.05], [0.8, 0.2], [0.1, 0.9]])
    assert [head.describe(row)["label"] for row in rows] == ["no", "yes", "yes"]
    assert head.describe(rows[1])["probability"] == 0.2
    assert [judged.wrong for judged in head.judge(rows, np.array([0, 0, 1]))] == [False, True, False]
    examples = {"score": np.log(rows[:, 1] / rows[:, 0]), "loss": np.ones(3), "predicted": rows.argmax(1)}
    (mistake,) = head.errors({**examples, "probability": rows.max(1)}, np.array([0, 0, 1]), 5)
    assert (mistake["row"], mistake["label"], mistake["predicted"]) == (1, "no", "yes")


def test_a_positive_class_that_cannot_be_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="'maybe' is none of the classes"):
        ClassHead(("no", "yes"), None, None, positive="maybe")
    with pytest.raises(ConfigError, match="there are 3 classes"):
        ClassHead(("a", "b", "c"), None, None, positive="a")
