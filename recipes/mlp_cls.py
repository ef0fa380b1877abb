"""Tables: standardised and one-hot encoded rows to class logits, or to one real number (`model.head=regression`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bigctl.recipes import classification as cls
from flax import nnx

from bigctl.config import schema
from bigctl.data.dataset import Features
from bigctl.errors import ConfigError
from bigctl.training.metrics import Sums
from bigctl.training.task import Batch


class MlpCls:
    """Cross-entropy over classes, a sigmoid where there are two; or squared error.

    Raises:
        ConfigError: if the data holds no table rows.
    """

    def __init__(self, config: schema.Config, features: Features, class_counts: np.ndarray | None = None):
        if features.kind != "table":
            raise ConfigError(
                f"recipe=mlp_cls needs table rows, the data holds {features.kind}s",
                where="data",
                hint="use recipe=cnn_cls for images (model=mlp works there too), recipe=bert_cls or lstm_cls for texts",
            )
        assert isinstance(config.recipe, schema.MlpCls)
        self.recipe = config.recipe
        self.model_config = config.model
        self.features = features
        self.dtype = jnp.dtype(config.train.precision)
        self.regression = features.classes is None
        self.metric = "val/loss" if self.regression else "val/accuracy"
        counts = np.ones(features.num_classes) if class_counts is None else class_counts
        self.class_weights = None if self.regression else cls.resolve_class_weights(self.recipe.class_weights, counts)

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        outputs = 1 if self.regression or self.features.num_classes == 2 else self.features.num_classes
        return self.model_config.build(self.features.shape, outputs, rngs=rngs)

    def example_shapes(self, n: int) -> dict[str, Any]:
        label = jnp.float32 if self.regression else jnp.int32
        return {
            "inputs": jax.ShapeDtypeStruct((n, *self.features.shape), jnp.float32),
            "label": jax.ShapeDtypeStruct((n,), label),
        }

    def loss(
        self, model: Any, batch: Batch, key: jax.Array, augment_key: jax.Array, numbers: Mapping[str, Any]
    ) -> Sums:
        outputs = model(batch["inputs"].astype(self.dtype), key=key, mask=batch["mask"])
        if self.regression:
            return self._regression(outputs, batch)
        return cls.training_sums(
            cls.class_logits(outputs),
            batch["label"],
            batch["mask"],
            smoothing=numbers["recipe.label_smoothing"],
            class_weights=self.class_weights,
        )

    def evaluate(self, model: Any, batch: Batch) -> Sums:
        outputs = model(batch["inputs"].astype(self.dtype))
        if self.regression:
            return self._regression(outputs, batch)
        return cls.evaluation_sums(cls.class_logits(outputs), batch["label"], batch["mask"])

    def metrics(self, sums: Mapping[str, np.ndarray]) -> dict[str, Any]:
        if not self.regression:
            return cls.classification_metrics(sums)
        squared, count = (float(v) for v in sums["mse"])
        return {"rmse": (squared / count) ** 0.5}

    def predict(self, model: Any, inputs: jax.Array) -> jax.Array:
        """Class probabilities, float32 [batch, classes], or target values, float32 [batch, 1]."""
        outputs = model(inputs.astype(self.dtype))
        if self.regression:
            return outputs.astype(jnp.float32) * self.features.std[0] + self.features.mean[0]
        return jax.nn.softmax(cls.class_logits(outputs))

    def _regression(self, outputs: jax.Array, batch: Batch) -> Sums:
        mean, std = self.features.mean[0], self.features.std[0]
        return cls.regression_sums(outputs, batch["label"], batch["mask"], mean, std)
