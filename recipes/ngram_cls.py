"""Classification of texts, or of pairs of them, as bags of n-grams."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from bigctl.recipes.text_cls import TextCls, require_text
from flax import nnx

from bigctl.config import schema
from bigctl.data.dataset import Features


class NgramCls(TextCls):
    """As of any text; its model is told besides how rare the n-grams are, where that is known.

    With `recipe.loss=one_vs_rest` each of more than two classes is held against all others by itself (Rifkin & Klautau
    2004), so that what tells it apart needs not outdo what tells the others apart. The probabilities remain the softmax
    of the logits.
    """

    def __init__(self, config: schema.Config, features: Features, class_counts: np.ndarray | None = None):
        loss = schema.NgramCls.require(config.recipe, by="NgramCls").loss
        apart = loss == schema.ONE_VS_REST and len(features.target.names) > 2
        super().__init__(config, features, class_counts, binary=jnp.sum if apart else None)

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        groups = require_text(self.features, "ngram_cls").get("groups") or ()
        return self.model_config.build(self.vocabulary, self.head.outputs, groups=groups, rngs=rngs)
