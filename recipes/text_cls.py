"""Classification of texts, or of pairs of them: token ids to class logits."""

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


class TextCls:
    """Cross-entropy over the classes of a text data set.

    Raises:
        ConfigError: if the data holds no texts, or no classes.
    """

    metric = "val/accuracy"

    def __init__(self, config: schema.Config, features: Features, class_counts: np.ndarray | None = None):
        assert isinstance(config.recipe, schema.TextCls)
        require_text(features, config.recipe.kind)
        if not features.classes:
            raise ConfigError(
                f"recipe={config.recipe.kind} needs texts with classes, these have none",
                where="data",
                hint="name the column with the classes: data.label=COLUMN",
            )
        self.recipe = config.recipe
        self.model_config = config.model
        self.features = features
        self.frozen = frozen(config.model)
        counts = np.ones(features.num_classes) if class_counts is None else class_counts
        self.class_weights = cls.resolve_class_weights(self.recipe.class_weights, counts)

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        assert self.features.tokenizer is not None
        vocabulary = self.features.tokenizer["vocab_size"]
        return self.model_config.build(vocabulary, self.features.num_classes, rngs=rngs)

    def example_shapes(self, n: int) -> dict[str, Any]:
        return {**text_shapes(self.features, n), "label": jax.ShapeDtypeStruct((n,), jnp.int32)}

    def loss(
        self, model: Any, batch: Batch, key: jax.Array, augment_key: jax.Array, numbers: Mapping[str, Any]
    ) -> Sums:
        logits = self._logits(model, batch, key=key, mask=batch["mask"])
        sums = cls.training_sums(
            logits,
            batch["label"],
            batch["mask"],
            smoothing=numbers["recipe.label_smoothing"],
            class_weights=self.class_weights,
        )
        return {**sums, "padding": padding(batch)}

    def evaluate(self, model: Any, batch: Batch) -> Sums:
        return cls.evaluation_sums(self._logits(model, batch), batch["label"], batch["mask"])

    def metrics(self, sums: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return cls.classification_metrics(sums)

    def predict(self, model: Any, batch: Batch) -> jax.Array:
        """Class probabilities, float32 [batch, classes]."""
        return jax.nn.softmax(self._logits(model, batch))

    def _logits(self, model: Any, batch: Batch, **options: Any) -> jax.Array:
        return cls.class_logits(model(batch["inputs"], batch["lengths"], batch["segment_start"], **options))


def require_text(features: Features, recipe: str) -> None:
    if features.kind != "text":
        raise ConfigError(
            f"recipe={recipe} needs texts, the data holds {features.kind} rows",
            where="data",
            hint="name the column with the text, data.text=COLUMN; or choose a set of texts, see `bigctl ls data`",
        )


def frozen(model: schema.Model) -> tuple[str, ...]:
    """Patterns of what low-rank adaptation leaves as it is: all of the encoder but what it adds."""
    lora = getattr(model, "lora", None)
    return (r"^encoder/(?!.*/lora_[ab]$)",) if lora is not None and lora.rank else ()


def text_shapes(features: Features, n: int) -> dict[str, Any]:
    """Columns of a batch of n of the longest texts."""
    one = jax.ShapeDtypeStruct((n,), jnp.int32)
    return {"inputs": jax.ShapeDtypeStruct((n, *features.shape), jnp.int32), "lengths": one, "segment_start": one}


def padding(batch: Batch) -> jax.Array:
    """The share of a batch that is no token of any text, as [sum, weight]."""
    return jnp.stack([jnp.sum(batch["inputs"].shape[1] - batch["lengths"]), batch["inputs"].size]).astype(jnp.float32)
