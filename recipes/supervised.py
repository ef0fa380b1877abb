"""Supervised learning: a model's outputs for each example, and the head that fits the kind of target.

A task says how its inputs become outputs; the head says what these mean: their loss, metrics and predictions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np
from bigctl.recipes.classification import ClassHead
from bigctl.recipes.regression import NumberHead
from jaxtyping import Array, Float

from bigctl.config import schema
from bigctl.data.dataset import Features
from bigctl.training.metrics import Sums
from bigctl.training.task import Batch, Record, Task


class Head(Protocol):
    """What one kind of target makes of a model's outputs.

    Attributes:
        outputs: how many numbers the model gives for each example.
        metric: what selects the best checkpoint.
        label: type of the target in a batch.
    """

    outputs: int
    metric: str
    label: Any

    def loss(self, outputs: Float[Array, "batch outputs"], batch: Batch, hparams: Mapping[str, Any]) -> Sums:
        """Training sums, as of `Task.loss`."""

    def evaluate(self, outputs: Float[Array, "batch outputs"], batch: Batch) -> Sums:
        """Evaluation sums, as of `Task.evaluate`."""

    def metrics(self, sums: Mapping[str, np.ndarray]) -> Record:
        """As of `Task.metrics`."""

    def predict(self, outputs: Float[Array, "batch outputs"]) -> Float[Array, "batch values"]:
        """Probabilities of classes, or values of the target."""

    def describe(self, prediction: np.ndarray) -> Record:
        """As of `Task.describe`."""

    def errors(self, examples: Mapping[str, np.ndarray], labels: np.ndarray, count: int) -> list[Record]:
        """As of `Task.errors`."""


class Supervised(Task):
    """What the tasks with a target an example share; each defines `build`, `inputs` and `outputs`.

    Args:
        config: the experiment.
        features: what its examples look like.
        class_counts: how many training examples each class has; None where nothing is trained.
        sigmoid: whether two classes are told apart by one output.

    Raises:
        ConfigError: if the recipe's keys are not those of a classification.
    """

    def __init__(
        self, config: schema.Config, features: Features, class_counts: np.ndarray | None, *, sigmoid: bool = False
    ):
        recipe = schema.Classification.require(config.recipe, by=type(self).__name__)
        self.model_config = config.model
        self.features = features
        self.head: Head = (
            ClassHead(features.classes, recipe.class_weights, class_counts, sigmoid=sigmoid)
            if features.classes
            else NumberHead(features.mean[0], features.std[0])
        )
        self.metric = self.head.metric

    def inputs(self, n: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Columns of a batch of n examples, but for the target."""
        raise NotImplementedError

    def outputs(self, model: Any, batch: Batch, **options: Any) -> Float[Array, "batch outputs"]:
        """The model's outputs; `options` are `key` and `mask` where it is trained."""
        raise NotImplementedError

    def example_shapes(self, n: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {**self.inputs(n), "label": jax.ShapeDtypeStruct((n,), self.head.label)}

    def augment(self, batch: Batch, key: jax.Array) -> Batch:
        """The batch as the model sees it in training; by default as it is."""
        return batch

    def loss(
        self, model: Any, batch: Batch, key: jax.Array, augment_key: jax.Array, hparams: Mapping[str, Any]
    ) -> Sums:
        outputs = self.outputs(model, self.augment(batch, augment_key), key=key, mask=batch["mask"])
        return self.head.loss(outputs, batch, hparams)

    def evaluate(self, model: Any, batch: Batch) -> Sums:
        return self.head.evaluate(self.outputs(model, batch), batch)

    def metrics(self, sums: Mapping[str, np.ndarray]) -> Record:
        return self.head.metrics(sums)

    def predict(self, model: Any, batch: Batch) -> jax.Array:
        """Class probabilities, float32 [batch, classes], or values of the target, float32 [batch, 1]."""
        return self.head.predict(self.outputs(model, batch))

    def describe(self, prediction: np.ndarray) -> Record:
        return self.head.describe(prediction)

    def errors(self, examples: Mapping[str, np.ndarray], labels: np.ndarray, count: int) -> list[Record]:
        return self.head.errors(examples, labels, count)
