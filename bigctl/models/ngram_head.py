"""A linear layer that reads a vector for each text, and beside it a linear model of the text's runs of tokens, which
are hashed as it computes.

What is wide and what is deep are joined as in Cheng et al. (2016), but each learns by itself, by a loss of its own:
trained on their sum, a network that has fitted the training texts leaves nothing for the runs to learn, which are the
better of the two where there are few texts.

Dimension names: batch, length (of the padded text), features, runs, outputs.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from bigctl.config import schema
from bigctl.models.layers import QuickDropout

_BASE, _MIX = -1640531535, -2048144789  # odd, as 32 bits with a sign: 2654435761 (Knuth) and 2246822507 (MurmurHash3)


class NgramHead(nnx.Linear):
    """A weighted mean of the logits of `nnx.Linear` and of what each run of 1 to n tokens adds to each output.

    What runs add is nothing at first; their sum is divided by the root of how many a text has. Dropout leaves out runs,
    not parts of what they say (Iyyer et al. 2015).

    Args:
        features: width of the vectors.
        outputs: number of logits.
        config: tokens of the longest runs, rows that they are hashed to, scale, share of the mean; dropout.
    """

    def __init__(self, features: int, outputs: int, config: schema.Lstm, *, rngs: nnx.Rngs):
        super().__init__(features, outputs, rngs=rngs)
        self.longest, self.scale, self.share = config.ngrams, config.ngram_scale, config.ngram_share
        self.ngrams = nnx.Param(jnp.zeros((config.ngram_rows, outputs)))
        self.dropout = QuickDropout(config.dropout)

    def __call__(  # type: ignore[override]  # it reads more than a linear layer
        self,
        x: Float[Array, "batch features"],
        tokens: Int[Array, "batch length"],
        lengths: Int[Array, " batch"],
        key: Array | None,
        present: Float[Array, "batch length"] | None = None,
    ) -> Float[Array, "batch outputs"]:
        """Logits. A run counts as much as the product of `present` over its tokens, by default 1."""
        deep, wide = self.apart(x, tokens, lengths, key, present)
        return (1 - self.share) * deep + self.share * wide

    def apart(
        self,
        x: Float[Array, "batch features"],
        tokens: Int[Array, "batch length"],
        lengths: Int[Array, " batch"],
        key: Array | None,
        present: Float[Array, "batch length"] | None = None,
    ) -> tuple[Float[Array, "batch outputs"], Float[Array, "batch outputs"]]:
        """The logits of the linear layer and those of the runs, which training has a loss for each of."""
        table = self.ngrams[...]
        rows, real = hashed_runs(tokens, lengths, self.longest, len(table))
        count = jnp.maximum(real.sum(-1, keepdims=True), 1).astype(jnp.float32)
        here = real.astype(jnp.float32)
        if present is not None:
            here = here * _presence(present, self.longest)
        weights = self.dropout(here * (self.scale / jnp.sqrt(count)), key)
        wide = jnp.einsum("br,bro->bo", weights, table[rows].astype(jnp.float32))
        return super().__call__(x), wide.astype(table.dtype)


def hashed_runs(
    tokens: Int[Array, "batch length"], lengths: Int[Array, " batch"], longest: int, rows: int
) -> tuple[Int[Array, "batch runs"], Bool[Array, "batch runs"]]:
    """The row of each run of 1 to `longest` tokens, the shorter first; and which of the runs are within their text.

    A polynomial of the tokens modulo 2^32, its high bits folded into the low ones. Nothing but sums, products and
    remainders of signed numbers, which every runtime of ONNX has.
    """
    codes, places, real = jnp.zeros_like(tokens), [], []
    for size in range(1, longest + 1):
        last = jnp.pad(tokens[:, size - 1 :], ((0, 0), (0, size - 1)))[:, : tokens.shape[1]]
        codes = codes * jnp.int32(_BASE) + last + 1
        mixed = codes * jnp.int32(_MIX)
        places.append(jnp.mod(mixed + lax.div(mixed, jnp.int32(2**15)), rows))
        real.append(jnp.arange(tokens.shape[1]) + size <= lengths[:, None])
    return jnp.concatenate(places, 1), jnp.concatenate(real, 1)


def _presence(present: Float[Array, "batch length"], longest: int) -> Float[Array, "batch runs"]:
    """Of each run, in the order of `hashed_runs`, the product over its tokens."""
    length, product, found = present.shape[1], jnp.ones_like(present), []
    for size in range(1, longest + 1):
        product = product * jnp.pad(present[:, size - 1 :], ((0, 0), (0, size - 1)))[:, :length]
        found.append(product)
    return jnp.concatenate(found, 1)
