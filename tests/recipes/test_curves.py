"""Curves, and metrics of a chosen positive class and threshold, equal scikit-learn's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sklearn.calibration
import sklearn.metrics as sk
from bigctl.recipes import curves
from bigctl.recipes.classification import ClassHead, classification_metrics, sigmoid
from bigctl.recipes.multilabel import LabelsHead

from bigctl.data.target import CLASSES, Target
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


def draw_classes(classes: int, ties: bool, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [examples, classes] and labels."""
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, count)
    logits = rng.normal(0, 1, (count, classes)) + 2 * (labels[:, None] == np.arange(classes))
    found = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return (found.round(1) if ties else found), labels


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("classes", [3, 10])
def test_areas_of_several_classes_equal_those_of_scikit_learn(classes: int, ties: bool) -> None:
    probabilities, labels = draw_classes(classes, ties)
    truth = labels[:, None] == np.arange(classes)
    matrix = sk.confusion_matrix(labels, probabilities.argmax(1))
    found = classification_metrics({"confusion": matrix, "each/probabilities": probabilities, "each/label": labels})
    expected = sk.roc_auc_score(truth, probabilities, average="macro")
    if not ties:  # else they sum to no 1, which scikit-learn asks of labels, not of rows
        assert expected == sk.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    assert found["roc_auc"] == pytest.approx(expected)
    assert found["average_precision"] == pytest.approx(sk.average_precision_score(truth, probabilities))
    told = curves.one_vs_rest(probabilities, truth, [f"c{number}" for number in range(classes)])
    each = sk.roc_auc_score(truth, probabilities, average=None)
    assert [row["roc_auc"] for row in told["classes"]] == pytest.approx(each, abs=1e-6)
    assert len(told["roc"]) == 1 + min(classes, curves.WORST) and told["roc"][0]["name"] is None
    worst = [row["name"] for row in told["roc"][1:]]
    assert worst == [f"c{number}" for number in np.argsort(each, kind="stable")[: curves.WORST]]
    for key, x, y, mean in (
        ("roc", "false_positive_rate", "true_positive_rate", "roc_auc"),
        ("precision_recall", "recall", "precision", "average_precision"),
    ):
        area = np.trapezoid(told[key][0][y], told[key][0][x])
        assert area == pytest.approx(told[mean], abs=0.02)
        assert len(told[key][0][x]) == curves.POINTS


def test_classes_that_do_not_occur_are_left_out_of_the_mean() -> None:
    probabilities, labels = draw_classes(4, ties=False)
    labels[labels == 3] = 0
    truth = labels[:, None] == np.arange(4)
    area, precision = curves.areas(probabilities, truth)
    assert np.isnan(area).tolist() == np.isnan(precision).tolist() == [False, False, False, True]
    assert curves.mean_known(area) == pytest.approx(sk.roc_auc_score(truth[:, :3], probabilities[:, :3]))
    told = curves.one_vs_rest(probabilities, truth, list("abcd"))
    assert told["classes"][3]["roc_auc"] is None and "d" not in [row["name"] for row in told["roc"]]
    assert curves.one_vs_rest(probabilities, np.zeros((400, 4), bool), list("abcd")) == {}


def test_heads_of_several_classes_draw_them() -> None:
    probabilities, labels = draw_classes(3, ties=False)
    predicted = probabilities.argmax(1)
    examples = {"probabilities": probabilities, "predicted": predicted, "probability": probabilities.max(1)}
    found = ClassHead(("a", "b", "c"), None, None).curves(examples, labels)
    assert {"reliability", "one_vs_rest"} == set(found) and found["one_vs_rest"]["classes"][0]["name"] == "a"
    truth = (labels[:, None] == np.arange(3)).astype(np.uint8)
    several = LabelsHead(Target(CLASSES, ("a", "b", "c")), None, None)
    assert several.curves({"probability": probabilities}, truth)["one_vs_rest"] == found["one_vs_rest"]
