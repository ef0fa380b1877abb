"""Several classes an example, or none: each is decided by itself, by a sigmoid and one threshold for all.

The threshold is that which reaches the highest micro-F1 on the validation split. It is chosen anew at each validation,
logged as `val/threshold`, and belongs to the weights of that step: the test split and predictions use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from bigctl.recipes import curves
from bigctl.recipes.classification import THRESHOLD, ClassWeights
from bigctl.recipes.head import Head
from jaxtyping import Array, Float, Int

from bigctl.data.target import Target
from bigctl.errors import ConfigError
from bigctl.training.metrics import EACH, Sums, pair
from bigctl.training.task import Batch, Judged, Record

_UNDECIDED = 0.5


class LabelsHead(Head):
    """Binary cross-entropy, its mean over the classes, as torch's `BCEWithLogitsLoss` has it.

    Args:
        target: the classes.
        class_weights: `recipe.class_weights`: what positives of each class weigh against its negatives, torch's
            `pos_weight`; "balanced" is negatives by positives of the training split.
        counts: training examples without and with each class, [2, classes]; None where nothing is trained.
        threshold: the least probability of a class that is predicted; None to choose it in `metrics`.
    """

    metric = "val/f1"
    carried = (THRESHOLD,)

    def __init__(
        self, target: Target, class_weights: ClassWeights, counts: np.ndarray | None, threshold: float | None = None
    ):
        self.target, self.threshold = target, threshold
        self.cut = _UNDECIDED if threshold is None else threshold
        self.outputs = len(target.names)
        self.settings = (class_weights, counts)
        self.weights = positive_weights(class_weights, counts, self.outputs)

    def decided(self, values: Mapping[str, float]) -> Self:
        return type(self)(self.target, *self.settings, threshold=values.get(THRESHOLD, _UNDECIDED))

    def loss(self, outputs: Float[Array, "batch classes"], batch: Batch, hparams: Mapping[str, Any]) -> Sums:
        smoothing = hparams["recipe.label_smoothing"]
        truth = batch["label"].astype(jnp.float32) * (1 - smoothing) + smoothing / 2
        losses = jnp.mean(cross_entropy(outputs, truth, self.weights), axis=-1)
        return {"loss": pair(losses, batch["mask"])}

    def evaluate(self, outputs: Float[Array, "batch classes"], batch: Batch) -> Sums:
        losses = jnp.mean(cross_entropy(outputs, batch["label"].astype(jnp.float32), None), axis=-1)
        each = {"loss": losses, "probability": self.predict(outputs), "label": batch["label"]}
        return {"loss": pair(losses, batch["mask"]), **{f"{EACH}{name}": values for name, values in each.items()}}

    def metrics(self, sums: Mapping[str, np.ndarray]) -> Record:
        """At the threshold: micro-F1 `f1`, `precision` and `recall`, `macro_f1`, and `accuracy`, the share of examples
        of which all is right; and `map`, mean average precision, which needs none. All as scikit-learn defines them."""
        truth, probability = np.asarray(sums[f"{EACH}label"]) > 0, np.asarray(sums[f"{EACH}probability"])
        threshold = best_threshold(truth, probability) if self.threshold is None else self.threshold
        found = probability >= threshold
        hits, true, predicted = (np.sum(each, axis=0) for each in (truth & found, truth, found))
        return {
            "f1": _f1(hits.sum(), true.sum(), predicted.sum()),
            "precision": float(hits.sum() / max(predicted.sum(), 1)),
            "recall": float(hits.sum() / max(true.sum(), 1)),
            "macro_f1": float(np.mean([_f1(*counts) for counts in zip(hits, true, predicted, strict=True)])),
            "accuracy": float(np.mean((truth == found).all(1))),
            "map": mean_average_precision(truth, probability),
            THRESHOLD: float(threshold),
        }

    def predict(self, outputs: Float[Array, "batch classes"]) -> Float[Array, "batch classes"]:
        return jax.nn.sigmoid(outputs.astype(jnp.float32))

    def describe(self, prediction: np.ndarray) -> Record:
        probabilities = {name: round(float(p), 6) for name, p in zip(self.target.names, prediction, strict=True)}
        return {"labels": self._names(prediction), "probabilities": probabilities}

    def judge(self, predictions: np.ndarray, labels: np.ndarray) -> list[Judged]:
        likelihood = np.where(labels > 0, predictions, 1 - predictions)
        losses = -np.log(np.maximum(likelihood, 1e-12)).mean(1)
        found = predictions >= self._cut
        return [
            Judged(self.target.text(label), self.target.text(row), bool((row != (label > 0)).any()), float(loss))
            for label, row, loss in zip(labels, found, losses, strict=True)
        ]

    def curves(self, examples: Mapping[str, np.ndarray], labels: np.ndarray) -> Record:
        several = curves.one_vs_rest(examples["probability"], np.asarray(labels) > 0, self.target.names)
        return {"one_vs_rest": several} if several else {}

    def errors(self, examples: Mapping[str, np.ndarray], labels: np.ndarray, count: int) -> list[Record]:
        probability = examples["probability"]
        wrong = np.flatnonzero(((probability >= self._cut) != (labels > 0)).any(1))
        rows = wrong[np.argsort(-examples["loss"][wrong], kind="stable")][:count]
        return [
            {
                "row": row,
                "loss": float(examples["loss"][row]),
                "label": [self.target.names[number] for number in np.flatnonzero(labels[row])],
                "predicted": self._names(probability[row]),
            }
            for row in rows.tolist()
        ]

    @property
    def _cut(self) -> float:
        return _UNDECIDED if self.threshold is None else self.threshold

    def _names(self, probability: np.ndarray) -> list[str]:
        """What is predicted, the most likely first."""
        order = np.argsort(-probability, kind="stable")
        return [self.target.names[number] for number in order if probability[number] >= self._cut]


def cross_entropy(
    logits: Float[Array, "batch classes"],
    truth: Float[Array, "batch classes"],
    weights: Float[Array, " classes"] | None,
) -> Float[Array, "batch classes"]:
    """Binary cross-entropy of each class, float32; `weights` multiply the part of the positives."""
    logits = logits.astype(jnp.float32)
    positive = 1.0 if weights is None else weights
    return -(positive * truth * jax.nn.log_sigmoid(logits) + (1 - truth) * jax.nn.log_sigmoid(-logits))


def positive_weights(
    setting: ClassWeights, counts: Int[np.ndarray, "2 classes"] | None, classes: int
) -> jax.Array | None:
    """`recipe.class_weights` as weights of positives, float32 [classes]; None for equal ones."""
    if setting is None or setting == "none":
        return None
    if setting == "balanced":
        without, having = np.ones((2, classes)) if counts is None else counts
        return jnp.asarray(np.maximum(without, 1) / np.maximum(having, 1), jnp.float32)
    if len(setting) != classes:
        raise ConfigError(
            f"recipe.class_weights has {len(setting)} numbers, the data has {classes} classes",
            where="recipe.class_weights",
        )
    return jnp.asarray([float(weight) for weight in setting], jnp.float32)


def best_threshold(truth: np.ndarray, probability: np.ndarray) -> float:
    """The least probability of a predicted class at which micro-F1 is highest; 0.5 where nothing is true.

    Args:
        truth, probability: [examples, classes].
    """
    true = int(truth.sum())
    if not true:
        return _UNDECIDED
    return curves.best_cut(probability.reshape(-1), truth.reshape(-1), lambda hits, said: 2 * hits / (said + true))[0]


def mean_average_precision(truth: np.ndarray, probability: np.ndarray) -> float:
    """The mean over the classes of scikit-learn's `average_precision_score`, which is 0 for a class without examples.

    Args:
        truth, probability: [examples, classes].
    """
    pairs = zip(probability.T, truth.T, strict=True)
    return float(np.mean([curves.average_precision(scores, true) for scores, true in pairs]))


def _f1(hits: int, true: int, predicted: int) -> float:
    return float(2 * hits / max(true + predicted, 1))
