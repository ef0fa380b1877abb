"""Promises of `recipes.classification`: losses and metrics are those that optax and scikit-learn define."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bigctl.recipes import classification as cls
from bigctl.recipes import image_cls, regression
from flax import nnx
from sklearn import metrics as reference
from sklearn.utils.class_weight import compute_class_weight

import bigctl
from bigctl import randomness
from bigctl.data.augmentation import pipeline
from bigctl.engine import experiment
from bigctl.errors import ConfigError
from bigctl.training import metrics

N, CLASSES = 40, 5


def batch(classes: int = CLASSES, n: int = N, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, classes)).astype(np.float32) * 2, rng.integers(0, classes, n).astype(np.int32)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def mean(pair: Any) -> float:
    assert pair.shape == (2,) and pair.dtype == jnp.float32
    return float(pair[0] / pair[1])


ONES = np.ones(N, np.float32)


# --- The loss ---------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_log_loss():
    logits, labels = batch()
    expected = reference.log_loss(labels, softmax(logits), labels=range(CLASSES))
    for sums in (cls.training_sums(logits, labels, ONES), cls.evaluation_sums(logits, labels, ONES)):
        assert mean(sums["loss"]) == pytest.approx(expected, rel=1e-5) and float(sums["loss"][1]) == N
        accuracy = reference.accuracy_score(labels, logits.argmax(1))
        assert mean(sums["accuracy"]) == pytest.approx(accuracy) and 0 < accuracy < 1
    optaxed = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    assert float(cls.training_sums(logits, labels, ONES)["loss"][0]) == pytest.approx(float(optaxed.sum()), rel=1e-6)


def test_label_smoothing_mixes_in_the_uniform_distribution():
    logits, labels = batch()
    target = 0.9 * np.eye(CLASSES)[labels] + 0.1 / CLASSES
    expected = -(target * np.log(softmax(logits))).sum(1).mean()
    sums = cls.training_sums(logits, labels, ONES, smoothing=jnp.float32(0.1))
    assert mean(sums["loss"]) == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(mean(cls.training_sums(logits, labels, ONES)["loss"]), rel=1e-3)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_binary_cross_entropy_is_the_mean_or_the_sum_over_the_classes(smoothing):
    # torch.nn.BCEWithLogitsLoss()(logits, targets), which timm's BinaryCrossEntropy is too
    logits, labels = batch()
    targets = (1 - smoothing) * np.eye(CLASSES)[labels] + smoothing / CLASSES
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = -(targets * np.log(probability) + (1 - targets) * np.log1p(-probability)).mean(1)
    sums = cls.training_sums(logits, labels, ONES, smoothing=smoothing, binary=jnp.mean)
    assert mean(sums["loss"]) == pytest.approx(expected.mean(), rel=1e-5)
    assert mean(sums["accuracy"]) == pytest.approx(np.mean(logits.argmax(1) == labels))
    summed = cls.training_sums(logits, labels, ONES, smoothing=smoothing, binary=jnp.sum)
    assert mean(summed["loss"]) == pytest.approx(CLASSES * expected.mean(), rel=1e-5)
    weights = np.array([0.5, 2.0, 1.0, 0.0, 3.0])
    sums = cls.training_sums(
        logits, labels, ONES, smoothing=smoothing, class_weights=jnp.float32(weights), binary=jnp.mean
    )
    assert mean(sums["loss"]) == pytest.approx(np.average(expected, weights=weights[labels]), rel=1e-5)


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_the_loss_of_mixed_images_is_that_of_their_mixed_targets(loss):
    keys = [f"recipe.augment.{name}=0" for name in ("rotate", "scale", "shift")]
    keys += ["recipe.augment.mixup=0.8", "recipe.augment.cutmix=1", f"recipe.loss={loss}"]
    built = experiment.build(bigctl.compose(["recipe=cnn_cls", "data=digits", "model=mlp", "model.hidden=[]", *keys]))
    task, split = built.programs.task, built.dataset.splits["train"]
    model = task.build(nnx.Rngs(0))
    given = {name: jnp.asarray(values[:N]) for name, values in split.items()}
    given |= {"mask": jnp.asarray([1.0] * (N - 3) + [0.0] * 3), "number": jnp.arange(N)}
    key = randomness.key(0, randomness.AUGMENTATION)

    @jax.jit
    def both(given):
        images, share = pipeline.mix(given["inputs"], task.recipe.augment, key, given["number"], given["mask"] > 0)
        sums = task.loss(model, given, key, key, {"recipe.label_smoothing": 0.0})
        return images, share, task.outputs(model, {**given, "inputs": images}), sums

    images, share, logits, sums = jax.device_get(both(given))
    assert float((share < 1).mean()) > 0.2 and images.shape == given["inputs"].shape
    own, others = (np.eye(10)[np.asarray(labels)] for labels in (given["label"], given["label"][np.arange(N) ^ 1]))
    target = share[:, None] * own + (1 - share[:, None]) * others
    each = (
        optax.sigmoid_binary_cross_entropy(logits, target).mean(1)
        if loss == "bce"
        else (optax.softmax_cross_entropy(logits, target))
    )
    assert float(sums["loss"][1]) == pytest.approx(N - 3)
    assert mean(sums["loss"]) == pytest.approx(float(each[: N - 3].mean()), rel=1e-5)
    hits = np.take_along_axis(np.asarray(target), logits.argmax(1)[:, None], 1)[:, 0]
    assert mean(sums["accuracy"]) == pytest.approx(float(hits[: N - 3].mean()), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_class_weights_are_those_of_torch(smoothing):
    # CrossEntropyLoss(weight=w, label_smoothing=e), reduction="mean":
    # sum_i [(1-e) w[y_i] (-log p_i[y_i]) + e/C sum_c w[c] (-log p_i[c])] / sum_i w[y_i]
    logits, labels = batch()
    weights = np.array([0.5, 2.0, 1.0, 0.0, 3.0])
    losses = -np.log(softmax(logits))
    own = (1 - smoothing) * weights[labels] * losses[np.arange(N), labels]
    spread = smoothing / CLASSES * (weights * losses).sum(1)
    expected = (own + spread).sum() / weights[labels].sum()
    sums = cls.training_sums(logits, labels, ONES, smoothing=smoothing, class_weights=jnp.float32(weights))
    assert mean(sums["loss"]) == pytest.approx(expected, rel=1e-5)
    assert mean(sums["accuracy"]) == pytest.approx(np.mean(logits.argmax(1) == labels))


def test_a_single_logit_is_a_sigmoid():
    logits, labels = batch(2)
    outputs = logits[:, :1]
    sums = cls.training_sums(cls.class_logits(outputs), labels, ONES)
    assert mean(sums["loss"]) == pytest.approx(
        float(optax.sigmoid_binary_cross_entropy(outputs[:, 0], labels).mean()), rel=1e-5
    )
    assert mean(sums["accuracy"]) == pytest.approx(np.mean((outputs[:, 0] > 0) == labels))
    probability = 1 / (1 + np.exp(-outputs[:, 0].astype(np.float64)))
    np.testing.assert_allclose(softmax(np.asarray(cls.class_logits(outputs)))[:, 1], probability, rtol=1e-5)


def test_losses_of_half_precision_outputs_are_computed_in_single():
    outputs = jnp.asarray(batch()[0], jnp.bfloat16)
    assert cls.class_logits(outputs).dtype == jnp.float32
    assert cls.class_logits(outputs[:, :1]).dtype == jnp.float32


@pytest.mark.parametrize("kind", ["training", "weighted", "evaluation", "regression"])
def test_masked_rows_count_for_nothing_and_sums_add_up(kind):
    logits, labels = batch()
    targets = np.random.default_rng(1).normal(size=N).astype(np.float32)
    weights = jnp.float32([0.5, 2.0, 1.0, 1.5, 3.0])

    def sums(rows: slice, mask: np.ndarray) -> Any:
        if kind == "regression":
            return regression.regression_sums(logits[rows, :1], targets[rows], mask, 0.5, 2.0)
        if kind == "evaluation":
            found = cls.evaluation_sums(logits[rows], labels[rows], mask)
            return {name: value for name, value in found.items() if not name.startswith(metrics.EACH)}
        chosen = weights if kind == "weighted" else None
        return cls.training_sums(logits[rows], labels[rows], mask, class_weights=chosen, smoothing=0.1)

    whole, start = sums(slice(0, N), ONES), sums(slice(0, 15), ONES[:15])
    masked = sums(slice(0, N), (np.arange(N) < 15).astype(np.float32))
    parts = metrics.add(start, sums(slice(15, N), ONES[15:]))
    assert whole.keys() == start.keys()
    for name in whole:
        np.testing.assert_allclose(masked[name], start[name], rtol=1e-5)
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-5)
        assert not np.allclose(masked[name], whole[name])


def test_regression_errors_are_in_the_unit_of_the_target():
    rng = np.random.default_rng(0)
    targets = rng.normal(50, 7, N).astype(np.float32)
    outputs = rng.normal(size=(N, 1)).astype(np.float32)
    sums = regression.regression_sums(outputs, targets, ONES, 50.0, 7.0)
    predicted = outputs[:, 0] * 7 + 50
    assert mean(sums["mse"]) == pytest.approx(reference.mean_squared_error(targets, predicted), rel=1e-5)
    assert mean(sums["mae"]) == pytest.approx(reference.mean_absolute_error(targets, predicted), rel=1e-5)
    assert mean(sums["loss"]) == pytest.approx(
        reference.mean_squared_error((targets - 50) / 7, outputs[:, 0]), rel=1e-5
    )


# --- Metrics ----------------------------------------------------------------------------------------------------------


def test_the_confusion_matrix_is_that_of_scikit_learn():
    logits, labels = batch()
    confusion = cls.evaluation_sums(logits, labels, ONES)["confusion"]
    assert np.array_equal(confusion, reference.confusion_matrix(labels, logits.argmax(1), labels=range(CLASSES)))


@pytest.mark.parametrize("seed", range(20))
def test_macro_metrics_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    # Few examples of some classes, so that classes are absent, never predicted, or predicted and never true.
    true = rng.choice(rng.integers(0, 7, 4), 15)
    predicted = np.where(rng.random(15) < 0.5, true, rng.choice(rng.integers(0, 7, 3), 15))
    confusion = reference.confusion_matrix(true, predicted, labels=range(7))
    found = cls.classification_metrics({"confusion": confusion.astype(np.float32)})
    for name, score in (
        ("precision", reference.precision_score), ("recall", reference.recall_score), ("f1", reference.f1_score)
    ):  # fmt: skip
        assert found[name] == pytest.approx(score(true, predicted, average="macro", zero_division=0)), name
    assert found["confusion"] == confusion.tolist()


def test_balanced_weights_are_those_of_scikit_learn():
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    weights = cls.resolve_class_weights("balanced", np.bincount(labels))
    assert weights is not None
    np.testing.assert_allclose(weights, compute_class_weight("balanced", classes=np.arange(3), y=labels), rtol=1e-6)
    assert float((np.asarray(weights)[labels]).mean()) == pytest.approx(1.0)


def test_class_weights_are_as_given_or_none():
    counts = np.array([3, 0, 5])
    assert cls.resolve_class_weights("none", counts) is None and cls.resolve_class_weights(None, counts) is None
    given = cls.resolve_class_weights([1, 2.5, 0], counts)
    assert given is not None and given.tolist() == [1, 2.5, 0]
    balanced = cls.resolve_class_weights("balanced", counts)
    assert balanced is not None and np.isfinite(balanced).all()
    with pytest.raises(ConfigError, match="2 numbers, the data has 3 classes") as caught:
        cls.resolve_class_weights([1, 2], counts)
    assert caught.value.where == "recipe.class_weights"


def test_images_are_standardised_by_the_given_statistics():
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    shares = images.astype(np.float64) / 255
    standardised = image_cls.standardise(
        jnp.asarray(images), tuple(shares.mean((0, 1, 2))), tuple(shares.std((0, 1, 2)))
    )
    np.testing.assert_allclose(np.mean(standardised, (0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(np.std(standardised, (0, 1, 2)), 1, atol=1e-5)
    assert standardised.dtype == jnp.float32


def test_means_are_of_pairs_alone():
    sums = {"loss": np.array([6, 4]), "none": np.zeros(2), "confusion": np.ones((3, 3))}
    found = metrics.means(sums, "val")
    assert found.keys() == {"val/loss", "val/none"} and found["val/loss"] == 1.5 and np.isnan(found["val/none"])
