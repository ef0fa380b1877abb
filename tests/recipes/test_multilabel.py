"""Promises of `recipes.multilabel`: losses are torch's, metrics are scikit-learn's, and the threshold is the best."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bigctl.recipes import multilabel
from sklearn import metrics as reference

from bigctl.data.target import CLASSES, Target
from bigctl.errors import ConfigError
from bigctl.training import metrics

NAMES = ("news", "poem", "recipe", "song")
N = 60


def examples(seed: int = 0, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = (rng.random((N, classes)) < np.linspace(0.1, 0.5, classes)).astype(np.uint8)
    logits = (rng.normal(size=(N, classes)) + 1.5 * truth - 1).astype(np.float32)
    return logits, truth


def head(weights: Any = "none", counts: np.ndarray | None = None, threshold: float | None = None) -> Any:
    found = multilabel.LabelsHead(Target(CLASSES, NAMES), weights, counts)
    return found if threshold is None else found.decided({"threshold": threshold})


def batch(truth: np.ndarray, mask: np.ndarray | None = None) -> dict[str, jax.Array]:
    return {"label": jnp.asarray(truth), "mask": jnp.ones(len(truth)) if mask is None else jnp.asarray(mask)}


def mean(pair: jax.Array) -> float:
    return float(pair[0] / pair[1])


@pytest.mark.parametrize("weights", ["none", "balanced", [0.5, 2.0, 1.0, 3.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_and_gradient_are_those_of_torch(weights: Any, smoothing: float) -> None:
    torch = pytest.importorskip("torch")
    logits, truth = examples()
    positive = truth.sum(0)
    counts = np.stack([N - positive, positive])
    expected = {"none": None, "balanced": counts[0] / counts[1]}.get(str(weights), weights)
    given = torch.tensor(logits, requires_grad=True)
    own = None if expected is None else torch.tensor(np.asarray(expected, np.float32))
    targets = torch.tensor(truth * (1 - smoothing) + smoothing / 2, dtype=torch.float32)
    loss = torch.nn.BCEWithLogitsLoss(pos_weight=own)(given, targets)
    loss.backward()

    def ours(logits: jax.Array) -> jax.Array:
        hparams = {"recipe.label_smoothing": jnp.float32(smoothing)}
        total, count = head(weights, counts).loss(logits, batch(truth), hparams)["loss"]
        return total / count

    value, gradient = jax.value_and_grad(ours)(jnp.asarray(logits))
    assert float(value) == pytest.approx(loss.item(), rel=1e-6)
    np.testing.assert_allclose(gradient, given.grad.numpy(), rtol=1e-5, atol=1e-9)


def test_padding_counts_for_nothing() -> None:
    logits, truth = examples()
    mask = np.float32([1] * 40 + [0] * (N - 40))
    hparams = {"recipe.label_smoothing": jnp.float32(0)}
    whole = head().loss(logits, batch(truth, mask), hparams)["loss"]
    part = head().loss(logits[:40], batch(truth[:40]), hparams)["loss"]
    np.testing.assert_allclose(whole, part, rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_metrics_are_those_of_scikit_learn(seed: int) -> None:
    logits, truth = examples(seed)
    logits = np.round(logits, 1)  # so that scores are equal now and then
    sums = {name: np.asarray(value) for name, value in head().evaluate(jnp.asarray(logits), batch(truth)).items()}
    probability = sums[f"{metrics.EACH}probability"]
    found = head(threshold=0.4).metrics(sums)
    predicted = probability >= 0.4
    assert found["f1"] == pytest.approx(reference.f1_score(truth, predicted, average="micro"))
    assert found["precision"] == pytest.approx(reference.precision_score(truth, predicted, average="micro"))
    assert found["recall"] == pytest.approx(reference.recall_score(truth, predicted, average="micro"))
    assert found["macro_f1"] == pytest.approx(reference.f1_score(truth, predicted, average="macro", zero_division=0))
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(truth, predicted))
    assert found["map"] == pytest.approx(reference.average_precision_score(truth, probability, average="macro"))
    assert found["threshold"] == 0.4
    assert mean(sums["loss"]) == pytest.approx(
        np.mean([reference.log_loss(truth[:, k], probability[:, k], labels=[0, 1]) for k in range(4)]), rel=1e-5
    )


@pytest.mark.filterwarnings("ignore:No positive class found")
def test_a_class_without_examples_counts_as_scikit_learn_counts_it() -> None:
    logits, truth = examples()
    truth[:, 2] = 0
    expected = reference.average_precision_score(truth, logits, average="macro")
    assert multilabel.mean_average_precision(truth > 0, logits) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
def test_no_threshold_reaches_a_higher_micro_f1_than_the_chosen_one(seed: int) -> None:
    logits, truth = examples(seed)
    probability = 1 / (1 + np.exp(-np.round(logits, 1)))
    chosen = multilabel.best_threshold(truth > 0, probability)
    best = max(reference.f1_score(truth, probability >= cut, average="micro") for cut in np.unique(probability))
    assert reference.f1_score(truth, probability >= chosen, average="micro") == pytest.approx(best)
    assert np.abs(probability - chosen).min() > 1e-6, "between two probabilities, not on one"
    assert multilabel.best_threshold(np.zeros((3, 2), bool), np.full((3, 2), 0.9)) == 0.5


def test_undecided_metrics_choose_the_threshold_and_decided_ones_keep_it() -> None:
    logits, truth = examples()
    sums = {name: np.asarray(value) for name, value in head().evaluate(jnp.asarray(logits), batch(truth)).items()}
    found = head().metrics(sums)
    assert found == head(threshold=found["threshold"]).metrics(sums)
    assert found["f1"] >= head(threshold=0.5).metrics(sums)["f1"]


def test_predictions_list_what_is_at_or_above_the_threshold_the_most_likely_first() -> None:
    record = head(threshold=0.3).describe(np.float32([0.31, 0.1, 0.9, 0.3]))
    assert record["labels"] == ["recipe", "news", "song"]
    assert record["probabilities"] == {"news": 0.31, "poem": 0.1, "recipe": 0.9, "song": 0.3}
    assert head(threshold=0.95).describe(np.float32([0.31, 0.1, 0.9, 0.3]))["labels"] == []


def test_errors_are_examples_of_which_anything_is_wrong_by_loss() -> None:
    truth = np.uint8([[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 1]])
    probability = np.float32([[0.9, 0, 0, 0], [0.6, 0, 0, 0], [0.1, 0.2, 0, 0]])
    values = {"probability": probability, "loss": np.float32([1, 2, 3])}
    found = head(threshold=0.5).errors(values, truth, 5)
    assert [(e["row"], e["label"], e["predicted"]) for e in found] == [(2, ["poem", "song"], []), (1, [], ["news"])]
    assert len(head(threshold=0.5).errors(values, truth, 1)) == 1


def test_weights_must_be_one_a_class() -> None:
    with pytest.raises(ConfigError, match="has 2 numbers, the data has 4 classes"):
        head([1.0, 2.0])
