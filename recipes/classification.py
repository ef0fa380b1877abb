"""One class an example: loss, metrics and predictions, shared by the recipes of classification."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from bigctl.recipes import curves
from bigctl.recipes.head import Head
from jaxtyping import Array, Float, Int

from bigctl.config import schema
from bigctl.errors import ConfigError
from bigctl.training.metrics import EACH, Sums, pair
from bigctl.training.task import TEACHER, Batch, Judged, Record

THRESHOLD = "threshold"
MOST_SCORED = 128
"""Classes up to which an evaluation keeps what each example's probabilities are, to rank the examples by."""
ClassWeights = str | Sequence[float] | None
"""`recipe.class_weights`: none, balanced, or a number for each class."""
Reduction = Callable[..., Array]
"""`jnp.mean` or `jnp.sum`."""


class ClassHead(Head):
    """Cross-entropy over classes.

    Args:
        classes: their names, in label order.
        class_weights: `recipe.class_weights`.
        counts: training examples of each class; None where nothing is trained.
        sigmoid: whether two classes are told apart by one output, the log-odds of the second.
        positive: of two classes the one that binary metrics are about; None for the second.
        binary: where training asks yes or no of every class, by binary cross-entropy, how the losses of the classes
            become one: their mean or sum. None for cross-entropy over all of them.

    Attributes:
        cut: the least probability of the positive class at which it is predicted; None to predict the likelier class.

    Raises:
        ConfigError: if there is no such class, or there are not two.
    """

    cut: float | None = None
    distil: schema.Distil | None = None
    """How a teacher is heeded; None where there is none."""

    metric = "val/accuracy"

    def __init__(
        self,
        classes: tuple[str, ...],
        class_weights: ClassWeights,
        counts: np.ndarray | None,
        *,
        sigmoid: bool = False,
        positive: str | None = None,
        binary: Reduction | None = None,
    ):
        if positive is not None and (len(classes) != 2 or positive not in classes):
            what = f"{positive!r} is none of the classes" if len(classes) == 2 else f"there are {len(classes)} classes"
            hint = f"one of: {', '.join(classes)}" if len(classes) == 2 else "of two classes one is the positive"
            raise ConfigError(what, where="data.positive", hint=hint)
        self._positive = 1 if positive is None else classes.index(positive)
        self.positive_class = classes[self._positive] if len(classes) == 2 else None
        self.classes, self.binary = classes, binary
        self.outputs = 1 if sigmoid and len(classes) == 2 else len(classes)
        self.class_weights = resolve_class_weights(class_weights, np.ones(len(classes)) if counts is None else counts)

    def decided(self, values: Mapping[str, float]) -> Self:
        if THRESHOLD not in values or len(self.classes) != 2:
            return self
        other = copy.copy(self)
        other.cut = values[THRESHOLD]
        return other

    def taught(self, distil: schema.Distil) -> Self:
        other = copy.copy(self)
        other.distil = distil
        return other

    def loss(self, outputs: Float[Array, "batch outputs"], batch: Batch, hparams: Mapping[str, Any]) -> Sums:
        logits = class_logits(outputs)
        sums = training_sums(
            logits,
            batch["label"],
            batch["mask"],
            smoothing=hparams["recipe.label_smoothing"],
            class_weights=self.class_weights,
            binary=self.binary,
        )
        if self.distil is None:
            return sums
        weights = batch["mask"] if self.class_weights is None else self.class_weights[batch["label"]] * batch["mask"]
        soft = pair(soft_losses(logits, batch[TEACHER], self.distil.temperature), weights)
        alpha, hard = self.distil.alpha, sums["loss"]
        mixed = jnp.stack([(1 - alpha) * hard[0] + alpha * soft[0], hard[1]])
        return {**sums, "loss": mixed, "cross_entropy": hard, "distil": soft}

    def evaluate(self, outputs: Float[Array, "batch outputs"], batch: Batch) -> Sums:
        return evaluation_sums(class_logits(outputs), batch["label"], batch["mask"])

    def metrics(self, sums: Mapping[str, np.ndarray]) -> Record:
        return classification_metrics(sums, positive=self._positive, cut=self.cut)

    def predict(self, outputs: Float[Array, "batch outputs"]) -> Float[Array, "batch classes"]:
        return jax.nn.softmax(class_logits(outputs))

    def exported(self, outputs: Float[Array, "batch outputs"]) -> dict[str, Array]:
        return {"logits": class_logits(outputs), "probabilities": self.predict(outputs)}

    def describe(self, prediction: np.ndarray) -> Record:
        probabilities = {name: round(float(p), 6) for name, p in zip(self.classes, prediction, strict=True)}
        best = self.classes[int(self._chosen(prediction[None])[0])]
        return {"label": best, "probability": probabilities[best], "probabilities": probabilities}

    def judge(self, predictions: np.ndarray, labels: np.ndarray) -> list[Judged]:
        loss = -np.log(np.maximum(predictions[np.arange(len(labels)), labels], 1e-12))
        chosen = self._chosen(predictions).tolist()
        return [
            Judged(self.classes[int(label)], self.classes[best], best != label, float(each), float(values[best]))
            for values, label, each, best in zip(predictions, labels, loss, chosen, strict=True)
        ]

    def _chosen(self, predictions: np.ndarray) -> np.ndarray:
        """The class that is predicted of each example, by probabilities [N, classes]."""
        if self.cut is None:
            return predictions.argmax(1)
        return np.where(predictions[:, self._positive] >= self.cut, self._positive, 1 - self._positive)

    def curves(self, examples: Mapping[str, np.ndarray], labels: np.ndarray) -> Record:
        if self.positive_class is None:
            found = curves.described(examples["probability"], examples["predicted"] == labels)
            if "probabilities" not in examples:
                return found
            several = curves.one_vs_rest(examples["probabilities"], one_hot(labels, len(self.classes)), self.classes)
            return {**found, **({"one_vs_rest": several} if several else {})}
        scores = positive_scores(examples["score"], self._positive)
        truth = labels == self._positive
        return curves.described(sigmoid(scores), truth, scores=scores, positive=self.positive_class)

    def errors(self, examples: Mapping[str, np.ndarray], labels: np.ndarray, count: int) -> list[Record]:
        if self.cut is not None:
            examples = {**examples, **predicted_at(examples["score"], self._positive, self.cut)}
        wrong = np.flatnonzero(examples["predicted"] != labels)
        rows = wrong[np.argsort(-examples["loss"][wrong], kind="stable")][:count]
        return [
            {
                "row": row,
                "loss": float(examples["loss"][row]),
                "label": self.classes[int(labels[row])],
                "predicted": self.classes[int(examples["predicted"][row])],
                "probability": round(float(examples["probability"][row]), 6),
            }
            for row in rows.tolist()
        ]


def class_logits(outputs: Float[Array, "batch outputs"]) -> Float[Array, "batch classes"]:
    """Logits of every class, float32. A single output is the log-odds of class 1, as under a sigmoid."""
    outputs = outputs.astype(jnp.float32)
    if outputs.shape[-1] == 1:
        return jnp.concatenate([jnp.zeros_like(outputs), outputs], axis=-1)
    return outputs


def soft_losses(
    logits: Float[Array, "batch classes"], teacher: Float[Array, "batch classes"], temperature: float
) -> Float[Array, " batch"]:
    """What the student's probabilities differ from the teacher's by, both softened: KL(teacher || student) times the
    square of the temperature, so that its gradient weighs the same at any (Hinton et al. 2015)."""
    wanted, said = (jax.nn.log_softmax(values.astype(jnp.float32) / temperature) for values in (teacher, logits))
    return temperature**2 * jnp.sum(jnp.exp(wanted) * (wanted - said), axis=-1)


def training_sums(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    mask: Float[Array, " batch"],
    *,
    smoothing: float | jax.Array = 0.0,
    class_weights: Float[Array, " classes"] | None = None,
    binary: Reduction | None = None,
) -> Sums:
    """Cross-entropy and accuracy.

    Label smoothing mixes the target with the uniform distribution (Szegedy et al. 2016). With class weights the mean
    is that of torch's `CrossEntropyLoss(weight=...)`: over the weights, not over the examples. Binary cross-entropy is
    what `binary` makes of those of the classes: the mean (Beyer et al. 2020), as timm's `BinaryCrossEntropy` has it, or
    the sum; class weights are then those of an example's own class.
    """
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    if binary is not None:
        losses = binary(optax.sigmoid_binary_cross_entropy(logits, targets), axis=-1)
        weights = mask if class_weights is None else class_weights[labels] * mask
        return {"loss": pair(losses, weights), "accuracy": pair(jnp.argmax(logits, -1) == labels, mask)}
    log_probabilities = jax.nn.log_softmax(logits)
    if class_weights is None:
        losses = -jnp.sum(targets * log_probabilities, axis=-1)
        loss = pair(losses, mask)
    else:
        losses = -jnp.sum(targets * class_weights * log_probabilities, axis=-1)
        loss = jnp.stack([jnp.sum(losses * mask), jnp.sum(class_weights[labels] * mask)])
    return {"loss": loss, "accuracy": pair(jnp.argmax(logits, -1) == labels, mask)}


def evaluation_sums(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], mask: Float[Array, " batch"]
) -> Sums:
    """Plain cross-entropy, accuracy, the confusion matrix [true class, predicted class], and each example's loss,
    predicted class, its probability and, for two classes, score of the second, for more all probabilities."""
    classes = logits.shape[-1]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    predicted, probabilities = jnp.argmax(logits, -1), jax.nn.softmax(logits)
    true_rows = jax.nn.one_hot(labels, classes) * mask[:, None]
    confusion = jnp.einsum("bt,bp->tp", true_rows, jax.nn.one_hot(predicted, classes))
    probability = jnp.max(probabilities, axis=-1)
    each = {"loss": losses, "predicted": predicted.astype(jnp.int32), "probability": probability}
    if classes == 2:
        each |= {"score": logits[:, 1] - logits[:, 0], "label": labels}
    elif classes <= MOST_SCORED:
        each |= {"probabilities": probabilities, "label": labels}
    each = {f"{EACH}{name}": values for name, values in each.items()}
    return {"loss": pair(losses, mask), "accuracy": pair(predicted == labels, mask), "confusion": confusion, **each}


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """Whether each example is of each class, bool [N, classes]."""
    return np.asarray(labels)[:, None] == np.arange(classes)


def positive_scores(scores: np.ndarray, positive: int) -> np.ndarray:
    """Log-odds of the positive class, float64 [N], of those of the second one."""
    return np.asarray(scores, np.float64) * (1 if positive == 1 else -1)


def sigmoid(scores: np.ndarray) -> np.ndarray:
    """Probabilities of log-odds."""
    return np.asarray(np.exp(-np.logaddexp(0, -scores)))


def predicted_at(scores: np.ndarray, positive: int, cut: float) -> dict[str, np.ndarray]:
    """The class that is predicted of each example at a threshold of the positive one, and its probability."""
    probability = sigmoid(positive_scores(scores, positive))
    found = np.where(probability >= cut, positive, 1 - positive)
    return {"predicted": found, "probability": np.where(found == positive, probability, 1 - probability)}


def classification_metrics(
    sums: Mapping[str, np.ndarray], *, positive: int = 1, cut: float | None = None
) -> dict[str, Any]:
    """Macro precision, recall and F1 as scikit-learn defines them with `zero_division=0`, and the matrix itself.

    The mean is over the classes that occur, as a true label or as a prediction. Of two classes there are besides
    precision, recall and F1 of the positive one, and the area under the ROC curve; at a threshold `cut` of its
    probability also the accuracy, as all that is counted is counted there. `roc_auc` and `average_precision` are those
    of the positive one; of more than two classes the mean of each against the rest, over those that occur as a label.
    """
    confusion = np.asarray(sums["confusion"], np.float64)
    if cut is not None:
        labels = np.asarray(sums[f"{EACH}label"])
        found = predicted_at(sums[f"{EACH}score"], positive, cut)["predicted"]
        confusion = np.zeros((2, 2))
        np.add.at(confusion, (labels, found), 1)
    hits, true, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    occurs = (true + predicted) > 0
    precision = hits / np.maximum(predicted, 1)
    recall = hits / np.maximum(true, 1)
    f1 = 2 * hits / np.maximum(true + predicted, 1)
    values = {"precision": precision, "recall": recall, "f1": f1}
    result: dict[str, Any] = {name: float(value[occurs].mean()) for name, value in values.items()}
    if cut is not None:
        result |= {"accuracy": float(hits.sum() / max(confusion.sum(), 1)), THRESHOLD: cut}
    if len(confusion) == 2:
        result |= {f"binary_{name}": float(value[positive]) for name, value in values.items()}
        scores, labels = sums[f"{EACH}score"], np.asarray(sums[f"{EACH}label"])
        result["roc_auc"] = roc_auc(scores, labels)
        result["average_precision"] = curves.average_precision(positive_scores(scores, positive), labels == positive)
    elif f"{EACH}probabilities" in sums:
        truth = one_hot(sums[f"{EACH}label"], len(confusion))
        ranked = map(curves.mean_known, curves.areas(np.asarray(sums[f"{EACH}probabilities"]), truth))
        result |= dict(zip(("roc_auc", "average_precision"), ranked, strict=True))
    result["confusion"] = confusion.astype(int).tolist()
    return result


def roc_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """The probability that an example of class 1 scores above one of class 0, a tie counting half; NaN without both.

    It is the area under the ROC curve (Hanley & McNeil 1982), from the ranks of the scores.
    """
    positive = np.asarray(labels) == 1
    ones, zeros = int(positive.sum()), int((~positive).sum())
    if not ones or not zeros:
        return float("nan")
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # of equal scores, the mean of theirs
    return float((ranks[place][positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def resolve_class_weights(setting: ClassWeights, counts: np.ndarray) -> jax.Array | None:
    """`recipe.class_weights` as numbers: None, inverse class frequency with mean 1 over examples, or as given."""
    if setting == "none" or setting is None:
        return None
    if setting == "balanced":
        return jnp.asarray(counts.sum() / (np.maximum(counts, 1) * len(counts)), jnp.float32)
    if len(setting) != len(counts):
        raise ConfigError(
            f"recipe.class_weights has {len(setting)} numbers, the data has {len(counts)} classes",
            where="recipe.class_weights",
        )
    return jnp.asarray([float(weight) for weight in setting], jnp.float32)
