"""An embedding bag (Joulin et al. 2017): the mean of the embeddings of what a text holds, in any order.

Dimension names: batch, length (of the padded bag), width, outputs.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from bigctl.config import schema
from bigctl.models.layers import QuickDropout


class BagClassifier(nnx.Module):
    """Embedding, mean, linear output. What pads a bag changes nothing.

    Dropout leaves out n-grams, not parts of their embeddings (Iyyer et al. 2015).

    Args:
        config: width, pool, dropout.
        vocab_size: rows of the embedding.
        outputs: number of logits.
    """

    def __init__(self, config: schema.Bag, vocab_size: int, outputs: int, *, rngs: nnx.Rngs):
        self.pool = config.pool
        self.embedding = nnx.Embed(vocab_size, config.width, embedding_init=nnx.initializers.zeros, rngs=rngs)
        self.dropout = QuickDropout(config.dropout)
        self.head = nnx.Linear(config.width, outputs, rngs=rngs)

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        lengths: Int[Array, " batch"],
        segment_start: Int[Array, " batch"],
        *,
        key: Array | None = None,
        mask: Array | None = None,
    ) -> Float[Array, "batch outputs"]:
        table = self.embedding.embedding[...]
        real = (jnp.arange(tokens.shape[1]) < lengths[:, None]).astype(jnp.float32)
        weights = self.dropout(real, key)
        total = jnp.einsum("bl,blw->bw", weights, table[tokens].astype(jnp.float32))
        count = jnp.maximum(lengths, 1)[:, None].astype(jnp.float32)
        pooled = total / (count if self.pool == "mean" else jnp.sqrt(count))
        return self.head(pooled.astype(table.dtype))
