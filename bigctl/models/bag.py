"""A bag of n-grams: the sum or mean of the embeddings of what a text holds, in any order (Joulin et al. 2017).

Dimension names: batch, length (of the padded bag), width, outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from bigctl.config import schema
from bigctl.data.text.ngrams import Group
from bigctl.models.layers import QuickDropout


class Bias(nnx.Module):
    """A number for each output, added."""

    def __init__(self, outputs: int):
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: Float[Array, "batch outputs"]) -> Float[Array, "batch outputs"]:
        return x + self.bias[...]


class BagClassifier(nnx.Module):
    """Embedding, pool, linear output; of no width, the embedding of an n-gram is what it adds to each output, as in a
    linear model. What pads a bag changes nothing.

    The pool "norm" is that of TF-IDF: n-grams are weighted by how rare they are, and words and pieces of words are each
    scaled to length 1, so that a long text says no more than a short one, and the many pieces no more than the words.
    Dropout leaves out n-grams, not parts of their embeddings (Iyyer et al. 2015).

    Args:
        config: width, pool, scale, dropout.
        vocab_size: rows of the embedding.
        outputs: number of logits.
        groups: weights of the n-grams, see `ngrams.Ngrams`; none where all weigh the same.
    """

    def __init__(
        self, config: schema.Bag, vocab_size: int, outputs: int, *, groups: Sequence[Group] = (), rngs: nnx.Rngs
    ):
        self.pool = config.pool
        self.scale = max(1.0, math.log2(outputs)) ** config.scale_power if config.scale is None else config.scale
        self.groups = tuple((int(end), bool(pieces), float(weight)) for end, pieces, weight in groups)
        self.embedding = nnx.Embed(
            vocab_size, config.width or outputs, embedding_init=nnx.initializers.zeros, rngs=rngs
        )
        self.dropout = QuickDropout(config.dropout)
        self.head: nnx.Linear | Bias = nnx.Linear(config.width, outputs, rngs=rngs) if config.width else Bias(outputs)

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        lengths: Int[Array, " batch"],
        segment_start: Int[Array, " batch"],
        *,
        key: Array | None = None,
        mask: Array | None = None,
        vectors: Float[Array, "batch length width"] | None = None,
    ) -> Float[Array, "batch outputs"]:
        """Logits. `vectors` stand in place of those that `look_up` gives."""
        table = self.embedding.embedding[...]
        real = (jnp.arange(tokens.shape[1]) < lengths[:, None]).astype(jnp.float32)
        weights = self.dropout(real if self.pool != "norm" else self._normed(tokens, real), key)
        pooled = jnp.einsum("bl,blw->bw", weights, self.look_up(tokens) if vectors is None else vectors)
        if self.pool != "norm":
            count = jnp.maximum(lengths, 1)[:, None].astype(jnp.float32)
            pooled = pooled / (count if self.pool == "mean" else jnp.sqrt(count))
        scores = self.head(pooled.astype(table.dtype))
        return scores if self.scale == 1 else scores * self.scale

    def look_up(self, tokens: Int[Array, "batch length"]) -> Float[Array, "batch length width"]:
        """The embedding of each n-gram, float32."""
        return self.embedding.embedding[...][tokens].astype(jnp.float32)

    def blank(self, tokens: Int[Array, "batch length"], padding: int) -> Float[Array, "batch length width"]:
        """Zeros, as n-grams that are left out add nothing."""
        return jnp.zeros_like(self.look_up(tokens))

    def _normed(
        self, tokens: Int[Array, "batch length"], real: Float[Array, "batch length"]
    ) -> Float[Array, "batch length"]:
        """Weights whose squares add up to 1 over the words of a text, and over their pieces; 0 for what all texts have,
        which is the first number."""
        rows = self.embedding.num_embeddings
        groups = self.groups or ((rows, False, 1.0),)
        counts = np.diff([1, *(end for end, _, _ in groups)])
        rarity = np.concatenate([[0], np.repeat([weight for _, _, weight in groups], counts)]).astype(np.float32)
        words = 1 + sum(int(count) for count, (_, pieces, _) in zip(counts, groups, strict=True) if not pieces)
        weights = real * jnp.asarray(rarity)[tokens]
        total = {kind: jnp.sum(jnp.square(weights) * (kind == (tokens >= words)), 1) for kind in (False, True)}
        scale = {kind: 1 / jnp.sqrt(jnp.maximum(each, 1e-9))[:, None] for kind, each in total.items()}
        return weights * jnp.where(tokens >= words, scale[True], scale[False])
