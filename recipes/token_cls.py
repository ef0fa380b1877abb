"""Tagging: the words of a sentence to a class each, such as the names in it, or its parts of speech."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from bigctl.recipes.supervised import Supervised
from bigctl.recipes.text_cls import padding, require_text, text_shapes
from flax import nnx

from bigctl.config import schema
from bigctl.data.dataset import Features
from bigctl.data.target import TOKEN_CLASS
from bigctl.errors import ConfigError
from bigctl.training.metrics import Sums
from bigctl.training.task import Batch, Network


class TokenCls(Supervised):
    """Cross-entropy over the tags of words.

    The model is built with `per_token=True`, and gives logits [batch, length, tags].

    Raises:
        ConfigError: if the data holds no sentences with tags.
    """

    def __init__(self, config: schema.Config, features: Features, class_counts: np.ndarray | None = None):
        self.vocabulary: int = require_text(features, config.recipe.kind)["vocab_size"]
        if features.target.kind != TOKEN_CLASS:
            raise ConfigError(
                f"recipe={config.recipe.kind} needs sentences with a tag a word, these texts have none",
                where="data",
                hint="data=conll data.path=FILE; or data=jsonl data.tokens=FIELD data.tags=FIELD",
            )
        super().__init__(config, features, class_counts)
        self.frozen = config.model.frozen()

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        return self.model_config.build(self.vocabulary, self.head.outputs, per_token=True, rngs=rngs)

    def inputs(self, n: int) -> dict[str, jax.ShapeDtypeStruct]:
        return text_shapes(self.features, n)

    def example_shapes(self, n: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {**self.inputs(n), "label": jax.ShapeDtypeStruct((n, *self.features.shape), self.features.target.dtype)}

    def outputs(self, model: Network, batch: Batch, **options: jax.Array) -> jax.Array:
        return model(batch["inputs"], batch["lengths"], batch["segment_start"], **options)

    def loss(
        self, model: nnx.Module, batch: Batch, key: jax.Array, augment_key: jax.Array, hparams: Mapping[str, Any]
    ) -> Sums:
        return {**super().loss(model, batch, key, augment_key, hparams), "padding": padding(batch)}
