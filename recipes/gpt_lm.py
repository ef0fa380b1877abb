"""Language modelling (Radford et al. 2019): one long text in windows, each token predicted from those before it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bigctl.recipes import lm_loss
from flax import nnx

from bigctl.config import schema
from bigctl.data.dataset import Features
from bigctl.data.layouts.windows import NO_TARGET
from bigctl.errors import ConfigError
from bigctl.training import metrics
from bigctl.training.metrics import Sums
from bigctl.training.task import Batch


class GptLm:
    """Mean cross-entropy of the next token [nats]; `perplexity` is its exponential, `bits_per_byte` what a byte of the
    text takes to be told, which does not depend on the tokenizer.

    Raises:
        ConfigError: if the data is not one long text.
    """

    metric = "val/loss"

    def __init__(self, config: schema.Config, features: Features, class_counts: np.ndarray | None = None):
        assert isinstance(config.recipe, schema.GptLm)
        if features.kind != "stream" or features.tokenizer is None:
            raise ConfigError(
                f"recipe=gpt_lm needs a text, the data holds {features.kind}s",
                where="data",
                hint="data=text data.path=FILE takes any text; data=csv data.text=COLUMN a column of texts",
            )
        self.recipe = config.recipe
        self.model_config = config.model
        self.vocabulary: int = features.tokenizer["vocab_size"]
        (self.block,) = features.shape

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        return self.model_config.build(self.vocabulary, rngs=rngs)

    def example_shapes(self, n: int) -> dict[str, Any]:
        window = jax.ShapeDtypeStruct((n, self.block), jnp.int32)
        return {"inputs": window, "targets": window}

    def loss(
        self, model: Any, batch: Batch, key: jax.Array, augment_key: jax.Array, numbers: Mapping[str, Any]
    ) -> Sums:
        found = self._sums(model, batch, key, numbers["recipe.z_loss"] if self.recipe.z_loss else 0.0)
        return {
            "loss": jnp.stack([found.total, found.weight]),
            **({"cross_entropy": jnp.stack([found.cross_entropy, found.weight])} if self.recipe.z_loss else {}),
        }

    def evaluate(self, model: Any, batch: Batch) -> Sums:
        found = self._sums(model, batch, None, 0.0)
        return {"loss": jnp.stack([found.cross_entropy, found.weight])}

    def metrics(self, sums: Mapping[str, np.ndarray]) -> dict[str, Any]:
        total, count = (float(value) for value in sums["loss"])
        mean = total / max(count, 1.0)
        found = {"perplexity": math.exp(min(mean, 700.0))}
        if metrics.BYTES in sums:
            found["bits_per_byte"] = mean / math.log(2) / float(sums[metrics.BYTES])
        return found

    def _sums(self, model: Any, batch: Batch, key: jax.Array | None, z_loss: Any) -> lm_loss.LossSums:
        targets = batch["targets"]
        weights = batch["mask"][:, None] * (targets != NO_TARGET)
        hidden = model(batch["inputs"], key=key)
        kernel = model.head_kernel()
        chunk = self.recipe.loss_chunk
        return lm_loss.loss_sums(hidden, kernel, jnp.maximum(targets, 0), weights, model.vocab_size, z_loss, chunk)
