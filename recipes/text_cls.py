"""Classification of texts, or of pairs of them: token ids to class logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from bigctl.recipes.classification import Reduction
from bigctl.recipes.misfit import NAME_CLASSES, misfit
from bigctl.recipes.supervised import Supervised
from flax import nnx
from jaxtyping import Array, Float, Int

from bigctl.config import schema
from bigctl.data.dataset import Features
from bigctl.data.target import TOKEN_CLASS
from bigctl.errors import ConfigError
from bigctl.models import texts
from bigctl.models.bert import BertClassifier
from bigctl.models.layers import fold
from bigctl.models.lstm import LstmClassifier
from bigctl.training.metrics import Sums, add, pair
from bigctl.training.task import TEACHER, Batch, Network


class TextCls(Supervised):
    """Cross-entropy over the classes of a text data set.

    Raises:
        ConfigError: if the data holds no texts, or no classes.
    """

    packs = True

    def __init__(
        self,
        config: schema.Config,
        features: Features,
        class_counts: np.ndarray | None = None,
        *,
        binary: Reduction | None = None,
    ):
        self.vocabulary: int = require_text(features, config.recipe.kind)["vocab_size"]
        if features.target.kind == TOKEN_CLASS:
            raise misfit(config.recipe.kind, "a class a text", features)
        if not features.target.names:
            raise ConfigError(
                f"recipe={config.recipe.kind} needs texts with classes, these have none",
                where="data",
                hint=NAME_CLASSES,
            )
        super().__init__(config, features, class_counts, binary=binary)
        self.frozen = config.model.frozen()
        self.hidden = config.distil.hidden if self.taught else 0.0

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        return self.model_config.build(self.vocabulary, self.head.outputs, rngs=rngs)

    def inputs(self, n: int) -> dict[str, jax.ShapeDtypeStruct]:
        return text_shapes(self.features, n)

    def outputs(self, model: Network, batch: Batch, **options: jax.Array) -> jax.Array:
        return model(batch["inputs"], batch["lengths"], batch["segment_start"], **options)

    def loss(
        self, model: nnx.Module, batch: Batch, key: jax.Array, augment_key: jax.Array, hparams: Mapping[str, Any]
    ) -> Sums:
        if self.hidden:
            sums = self._beside_teacher(cast(BertClassifier, model), batch, key, hparams)
        elif isinstance(model, LstmClassifier) and model.reads_runs:  # the mean of both losses, and of both accuracies
            given = batch["inputs"], batch["lengths"], batch["segment_start"]
            logits = model.apart(*given, key=key, mask=batch["mask"])
            sums = add(*(self.head.loss(each, batch, hparams) for each in logits))
        else:
            sums = super().loss(model, batch, key, augment_key, hparams)
        return {**sums, "padding": padding(batch)}

    def _beside_teacher(self, model: BertClassifier, batch: Batch, key: jax.Array, hparams: Mapping[str, Any]) -> Sums:
        """The loss, and how far the vectors of the last layer point away from the teacher's; 0 without its weights, as
        where only shapes are asked."""
        given = batch["inputs"], batch["lengths"], batch["segment_start"]
        ours = model.encoder(*given, fold(key, 0))
        sums = self.head.loss(model.judged(ours, batch["lengths"], key), batch, hparams)
        weights = hparams.get(TEACHER)
        if self.teacher is None or weights is None:
            away = jnp.zeros(len(batch["lengths"]))
        else:
            away = cosine_distances(ours, cast(BertClassifier, self.teacher(weights)).encoder(*given), batch["lengths"])
        total, count = sums["loss"]
        mean = jnp.sum(away * batch["mask"]) / jnp.maximum(jnp.sum(batch["mask"]), 1e-9)
        return {
            **sums,
            "loss": jnp.stack([total + self.hidden * mean * count, count]),
            "hidden": pair(away, batch["mask"]),
        }


def cosine_distances(
    ours: Float[Array, "rows length width"], theirs: Float[Array, "rows length width"], lengths: Int[Array, " texts"]
) -> Float[Array, " texts"]:
    """1 - the cosine of the angle between two vectors of each token, the mean over the real tokens of a text; no
    gradient flows to theirs (the third loss of DistilBERT, Sanh et al. 2019)."""
    one, other = ours.astype(jnp.float32), jax.lax.stop_gradient(theirs).astype(jnp.float32)
    norms = jnp.linalg.norm(one, axis=-1) * jnp.linalg.norm(other, axis=-1)
    return texts.mean(1 - jnp.sum(one * other, -1) / jnp.maximum(norms, 1e-8), lengths)


def require_text(features: Features, recipe: str) -> dict[str, Any]:
    """What is known of the tokenizer of a data set of texts. Raises ConfigError if it holds none."""
    if features.kind != "text" or features.tokenizer is None:
        also = ["data.text=COLUMN names a column of texts"] if features.kind == "table" else []
        raise misfit(recipe, "texts", features, *also)
    return features.tokenizer


def text_shapes(features: Features, n: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Columns of a batch of n of the longest texts."""
    one = jax.ShapeDtypeStruct((n,), jnp.int32)
    return {"inputs": jax.ShapeDtypeStruct((n, *features.shape), jnp.int32), "lengths": one, "segment_start": one}


def padding(batch: Batch) -> jax.Array:
    """The share of a batch that is no token of any text, as [sum, weight]."""
    places = batch["inputs"].size
    return jnp.stack([places - jnp.sum(batch["lengths"]), places]).astype(jnp.float32)
