"""Supervised learning: a model's outputs for each example, and the head that fits the kind of target.

A task says how its inputs become outputs; the head says what these mean: their loss, metrics and predictions.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Self, cast

import jax
import numpy as np
from bigctl.recipes.classification import ClassHead, ClassWeights, Reduction
from bigctl.recipes.head import Head
from bigctl.recipes.multilabel import LabelsHead
from bigctl.recipes.regression import NumberHead
from bigctl.recipes.tagging import TagHead
from flax import nnx
from jaxtyping import Array, Float

from bigctl.config import schema
from bigctl.data.augmentation import mixing
from bigctl.data.dataset import Features
from bigctl.data.target import CLASS, CLASSES, NUMBER, TOKEN_CLASS
from bigctl.errors import ConfigError
from bigctl.training.metrics import Sums, add
from bigctl.training.task import TEACHER, Batch, ExportedModel, Judged, Network, Record, Task

OTHER, SHARE = "other label", "share"
"""Columns of a batch whose examples are mixed, see `Supervised.augment`."""


class Supervised(Task):
    """What the tasks with a target an example share; each defines `build`, `inputs` and `outputs`.

    Args:
        config: the experiment.
        features: what its examples look like.
        class_counts: how many training examples each class has; where an example has several classes, [2, classes]:
            how many are without and with it. None where nothing is trained.
        sigmoid: whether two classes are told apart by one output.
        binary: how the losses of a yes or no to every class become that of an example of one class; None for none such.

    Raises:
        ConfigError: if the recipe's keys are not those of a classification.
    """

    def __init__(
        self,
        config: schema.Config,
        features: Features,
        class_counts: np.ndarray | None,
        *,
        sigmoid: bool = False,
        binary: Reduction | None = None,
    ):
        recipe = schema.Classification.require(config.recipe, by=type(self).__name__)
        self.model_config = config.model
        self.features = features
        self.head = head_for(features, recipe.class_weights, class_counts, sigmoid, config.data.positive, binary)
        if config.distil.teacher is not None:
            self.head = self.head.taught(config.distil)
        self.taught = config.distil.teacher is not None
        self.metric, self.carried = self.head.metric, self.head.carried
        self.augments = not config.train.overfit_one_batch

    def inputs(self, n: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Columns of a batch of n examples, but for the target."""
        raise NotImplementedError

    def outputs(self, model: Network, batch: Batch, **options: jax.Array) -> Float[Array, "batch outputs"]:
        """The model's outputs; `options` are `key` and `mask` where it is trained."""
        raise NotImplementedError

    def example_shapes(self, n: int) -> dict[str, jax.ShapeDtypeStruct]:
        target = self.features.target
        logits = jax.ShapeDtypeStruct((n, len(target.names)), jax.numpy.float32)
        taught = {TEACHER: logits} if self.taught else {}
        return {**self.inputs(n), "label": jax.ShapeDtypeStruct((n, *target.label_shape), target.dtype), **taught}

    def decided(self, values: Mapping[str, float]) -> Self:
        other = copy.copy(self)
        other.head = self.head.decided(values)
        return other

    def augment(self, batch: Batch, key: jax.Array) -> Batch:
        """The batch as the model sees it in training; by default as it is.

        Where examples are mixed with others, it says with which: the labels of these, `OTHER`, and the share that each
        example keeps of itself, `SHARE`.
        """
        return batch

    def seen(self, batch: Batch) -> Batch:
        """The batch as the model sees it in evaluations and predictions; by default as it is."""
        return batch

    def loss(
        self, model: nnx.Module, batch: Batch, key: jax.Array, augment_key: jax.Array, hparams: Mapping[str, Any]
    ) -> Sums:
        seen = self.augment(batch, augment_key) if self.augments else batch
        outputs = self._outputs(model, seen, key=key, mask=batch["mask"])
        if SHARE not in seen:
            return self.head.loss(outputs, batch, hparams)
        share, mask = seen[SHARE], batch["mask"]
        own = self.head.loss(outputs, {**batch, "mask": mask * share}, hparams)
        other = {**batch, "label": seen[OTHER], "mask": mask * (1.0 - share)}
        if self.taught:
            other[TEACHER] = mixing.neighbours(batch[TEACHER])
        others = self.head.loss(outputs, other, hparams)
        return add(own, others)

    def _outputs(self, model: nnx.Module, batch: Batch, **options: Any) -> Float[Array, "batch outputs"]:
        """The outputs, held to the number that the head needs."""
        outputs = self.outputs(cast(Network, model), batch, **options)
        self._require_shape(outputs, model, batch)
        return outputs

    def _require_shape(self, outputs: Array, model: nnx.Module, batch: Batch) -> None:
        shape, expected = jax.numpy.shape(outputs), (len(batch["mask"]), self.head.outputs)
        if (*shape[:1], *shape[-1:]) != expected:
            raise ConfigError(
                f"model={self.model_config.kind} gave outputs {shape} where {expected} are needed",
                where=schema.place_of(type(model)),
            )

    def scored_outputs(self, model: Network, batch: Batch) -> Float[Array, "batch outputs"]:
        """What is evaluated and predicted with; by default the model's outputs."""
        return self.outputs(model, batch)

    def evaluate(self, model: nnx.Module, batch: Batch) -> Sums:
        batch = self.seen(batch)
        self._require_shape(outputs := self.scored_outputs(cast(Network, model), batch), model, batch)
        return self.head.evaluate(outputs, batch)

    def evaluate_exported(self, model: ExportedModel, batch: Batch) -> Sums:
        return self.head.evaluate(self.head.of_exported(model(batch)), batch)

    def metrics(self, sums: Mapping[str, np.ndarray]) -> Record:
        return self.head.metrics(sums)

    def predict(self, model: nnx.Module, batch: Batch) -> jax.Array:
        """Probabilities of the classes, float32 [batch, classes], or values of the target, float32 [batch, 1]."""
        return self.head.predict(self.scored_outputs(cast(Network, model), self.seen(batch)))

    def exported_inputs(self, n: int) -> dict[str, jax.ShapeDtypeStruct]:
        return self.inputs(n)

    def exported(self, model: nnx.Module, batch: Batch) -> dict[str, jax.Array]:
        """`logits`, and `probabilities`; of a number `value`, in its own unit."""
        return self.head.exported(self.outputs(cast(Network, model), self.seen(batch)))

    def describe(self, prediction: np.ndarray) -> Record:
        return self.head.describe(prediction)

    def judge(self, predictions: np.ndarray, labels: np.ndarray) -> list[Judged]:
        return self.head.judge(predictions, labels)

    @property
    def positive(self) -> str | None:
        return self.head.positive_class

    def decision(self) -> float | None:
        return self.head.cut

    def curves(self, examples: Mapping[str, np.ndarray], labels: np.ndarray) -> Record:
        return self.head.curves(examples, labels)

    def errors(self, examples: Mapping[str, np.ndarray], labels: np.ndarray, count: int) -> list[Record]:
        return self.head.errors(examples, labels, count)


def head_for(
    features: Features,
    class_weights: ClassWeights,
    counts: np.ndarray | None,
    sigmoid: bool = False,
    positive: str | None = None,
    binary: Reduction | None = None,
) -> Head:
    """The head that fits the kind of target; arguments as those of `ClassHead`."""
    target = features.target
    if target.kind == CLASS:
        return ClassHead(target.names, class_weights, counts, sigmoid=sigmoid, positive=positive, binary=binary)
    if positive is not None:
        hint = "leave data.positive out"
        raise ConfigError("only of two classes, one an example, is one the positive", where="data.positive", hint=hint)
    if target.kind == CLASSES:
        return LabelsHead(target, class_weights, counts)
    if target.kind == TOKEN_CLASS:
        return TagHead(target.names, class_weights, counts)
    if target.kind == NUMBER:
        return NumberHead(target.mean, target.std)
    raise ConfigError("the data says nothing that could be predicted", where="data", hint="name a column: data.label")
