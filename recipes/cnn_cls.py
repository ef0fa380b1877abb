"""Image recognition: uint8 images, augmented and standardised on the device, to class logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bigctl.recipes import classification as cls
from flax import nnx

from bigctl.config import schema
from bigctl.data import augmentation
from bigctl.data.dataset import Features
from bigctl.errors import ConfigError
from bigctl.training.metrics import Sums
from bigctl.training.task import Batch


class CnnCls:
    """Cross-entropy over the classes of an image data set.

    Raises:
        ConfigError: if the data holds no images, or no classes.
    """

    metric = "val/accuracy"

    def __init__(self, config: schema.Config, features: Features, class_counts: np.ndarray | None = None):
        if features.kind != "image" or not features.classes:
            raise ConfigError(
                "recipe=cnn_cls needs images with classes, the data holds " + features.kind + " rows",
                where="data",
                hint="use recipe=mlp_cls for tables, bert_cls or lstm_cls for texts, or a data set of images",
            )
        assert isinstance(config.recipe, schema.CnnCls)
        self.recipe = config.recipe
        self.model_config = config.model
        self.features = features
        self.dtype = jnp.dtype(config.train.precision)
        counts = np.ones(features.num_classes) if class_counts is None else class_counts
        self.class_weights = cls.resolve_class_weights(self.recipe.class_weights, counts)

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        return self.model_config.build(self.features.shape, self.features.num_classes, rngs=rngs)

    def example_shapes(self, n: int) -> dict[str, Any]:
        return {
            "inputs": jax.ShapeDtypeStruct((n, *self.features.shape), jnp.uint8),
            "label": jax.ShapeDtypeStruct((n,), jnp.int32),
        }

    def loss(
        self, model: Any, batch: Batch, key: jax.Array, augment_key: jax.Array, numbers: Mapping[str, Any]
    ) -> Sums:
        # Augmenting in standardised numbers would fill borders with the mean colour; black is what the data has.
        pictures = augmentation.augment(batch["inputs"], self.recipe.augment, augment_key, batch["number"])
        logits = self._logits(model, pictures, key=key, mask=batch["mask"])
        smoothing = numbers["recipe.label_smoothing"]
        return cls.training_sums(
            logits, batch["label"], batch["mask"], smoothing=smoothing, class_weights=self.class_weights
        )

    def evaluate(self, model: Any, batch: Batch) -> Sums:
        return cls.evaluation_sums(self._logits(model, batch["inputs"]), batch["label"], batch["mask"])

    def metrics(self, sums: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return cls.classification_metrics(sums)

    def predict(self, model: Any, inputs: jax.Array) -> jax.Array:
        """Class probabilities, float32 [batch, classes]."""
        return jax.nn.softmax(self._logits(model, inputs))

    def _logits(self, model: Any, pictures: jax.Array, **options: Any) -> jax.Array:
        inputs = cls.standardise(pictures, self.features.mean, self.features.std).astype(self.dtype)
        return cls.class_logits(model(inputs, **options))
