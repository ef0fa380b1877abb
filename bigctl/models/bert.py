"""BERT (Devlin et al. 2019): an encoder of text, with a head for classes or for masked tokens.

Dimension names: batch (rows of tokens), length (of a row), texts, width (of the residual stream), heads, depth (width /
heads). A row holds the token ids of one text, padded at the end, or of several, see `models.texts`; `lengths` says how
many of them each text has, `segment_start` where in it the second text of a pair begins.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from bigctl.config import schema
from bigctl.errors import ConfigError
from bigctl.models import texts
from bigctl.models.architecture import BertArchitecture, bert_architecture
from bigctl.models.depth import made, named, through
from bigctl.models.embed import look_up
from bigctl.models.layers import Dense, Embedding, QuickDropout, fold
from bigctl.models.ops import gelu, matmul
from bigctl.models.texts import Places

Visible = Bool[Array, "batch some length"]
"""Which places each sees, see `Places.visible`."""


class AdaptedDense(Dense):
    """A dense layer plus x @ lora_a @ lora_b * alpha / rank (Hu et al. 2022).

    `lora_b` starts as zeros, so that the start is the layer without it.
    """

    def __init__(self, inputs: int, outputs: int, *, rank: int, alpha: float, rngs: nnx.Rngs):
        super().__init__(inputs, outputs, rngs=rngs)
        self.lora_scale = alpha / rank
        self.lora_a = nnx.Param(nnx.initializers.normal(1 / rank)(rngs.params(), (inputs, rank)))
        self.lora_b = nnx.Param(jnp.zeros((rank, outputs)))

    def __call__(self, x: Float[Array, "*dims inputs"]) -> Float[Array, "*dims outputs"]:
        return super().__call__(x) + matmul(matmul(x, self.lora_a[...]), self.lora_b[...]) * self.lora_scale


class LayerNorm(nnx.Module):
    """Layer normalisation (Ba et al. 2016), its statistics in float32."""

    def __init__(self, width: int, eps: float):
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.eps = eps

    def __call__(self, x: Float[Array, "*dims width"]) -> Float[Array, "*dims width"]:
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.eps)
        return normal.astype(x.dtype) * self.scale[...] + self.bias[...]


class Embeddings(nnx.Module):
    """Token + position + segment, normalised. Segment 1 is the second text."""

    def __init__(self, config: BertArchitecture, *, rngs: nnx.Rngs):
        self.token = Embedding(config.vocab, config.width, rngs=rngs)
        self.position = Embedding(config.positions, config.width, rngs=rngs)
        self.segment = Embedding(2, config.width, rngs=rngs)
        self.norm = LayerNorm(config.width, config.eps)
        self.dropout = QuickDropout(config.dropout)

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        seen: Places,
        key: Array | None,
        vectors: Float[Array, "batch length width"] | None = None,
    ) -> Float[Array, "batch length width"]:
        length, positions = tokens.shape[1], self.position.embedding[...]
        if seen.positions is None and length > len(positions):
            raise ConfigError(
                f"texts of {length} tokens, the model has {len(positions)} positions",
                where="recipe.tokenizer.max_length",
                hint=f"set recipe.tokenizer.max_length to {len(positions)} or less",
            )
        first, other = self.segment.embedding[...]
        positions = positions[:length] if seen.positions is None else look_up(positions, seen.positions)
        vectors = look_up(self.token.embedding[...], tokens) if vectors is None else vectors
        x = vectors + positions + jnp.where(seen.second[..., None], other, first)
        return self.dropout(self.norm(x), key)


class Attention(nnx.Module):
    """Multi-head self-attention (Vaswani et al. 2017) over the tokens of each text."""

    def __init__(self, config: BertArchitecture, *, rngs: nnx.Rngs):
        width, self.heads, self.depth = config.width, config.heads, config.depth
        wide = self.heads * self.depth
        self.query, self.key, self.value = (
            _dense(config, name, width, wide, rngs) for name in ("query", "key", "value")
        )
        self.output = _dense(config, "output", wide, width, rngs)
        self.dropout = QuickDropout(config.attention_dropout, key="model.attention_dropout")

    def __call__(
        self, x: Float[Array, "batch length width"], visible: Visible, key: Array | None
    ) -> Float[Array, "batch length width"]:
        batch, length, _ = x.shape
        split = (batch, length, self.heads, self.depth)
        q, k, v = (named(layer(x).reshape(split), "projected") for layer in (self.query, self.key, self.value))
        weights = self.dropout(_attention_weights(q, k, visible).astype(x.dtype), key)
        mixed = named(jnp.einsum("bhqk,bhkd->bhqd", weights, v.swapaxes(1, 2)).swapaxes(1, 2), "attended")
        return self.output(mixed.reshape(batch, length, self.heads * self.depth))

    def weights(
        self, x: Float[Array, "batch length width"], visible: Visible
    ) -> Float[Array, "batch heads length length"]:
        """How much each token (the last but one dimension) takes of every other, float32."""
        q, k = (layer(x).reshape(*x.shape[:2], self.heads, self.depth) for layer in (self.query, self.key))
        return _attention_weights(q, k, visible)


class Layer(nnx.Module):
    """Attention, then the feed-forward part; each is added to its input, and the sum normalised."""

    def __init__(self, config: BertArchitecture, *, rngs: nnx.Rngs):
        width, intermediate = config.width, config.intermediate
        self.attention = Attention(config, rngs=rngs)
        self.attention_norm = LayerNorm(width, config.eps)
        self.up = _dense(config, "up", width, intermediate, rngs)
        self.down = _dense(config, "down", intermediate, width, rngs)
        self.output_norm = LayerNorm(width, config.eps)
        self.dropout = QuickDropout(config.dropout)

    def __call__(
        self, x: Float[Array, "batch length width"], visible: Visible, key: Array | None
    ) -> Float[Array, "batch length width"]:
        x = self.attention_norm(x + self.dropout(self.attention(x, visible, fold(key, 0)), fold(key, 1)))
        x = named(x, "stream")
        hidden = self.down(gelu(self.up(x)))
        return self.output_norm(x + self.dropout(hidden, fold(key, 2)))


class Encoder(nnx.Module):
    """Embeddings and layers: token ids to one vector for each token."""

    def __init__(self, config: BertArchitecture, *, rngs: nnx.Rngs):
        self.remat, self.scan, self.count = config.remat, config.scan, config.layers
        self.embeddings = Embeddings(config, rngs=rngs)
        self.layers = made(lambda _, rngs: Layer(config, rngs=rngs), config.layers, rngs)

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        lengths: Int[Array, " texts"],
        segment_start: Int[Array, " texts"],
        key: Array | None = None,
        vectors: Float[Array, "batch length width"] | None = None,
    ) -> Float[Array, "batch length width"]:
        seen = texts.places(tokens, lengths, segment_start)
        x = self.embeddings(tokens, seen, fold(key, 0), vectors)
        return through(
            self.layers,
            x,
            self.count,
            lambda number: fold(key, number + 1),
            lambda layer, x, key: (layer(x, seen.visible, key), None),
            scan=self.scan,
            remat=self.remat,
        )[0]

    def attention(
        self, tokens: Int[Array, "batch length"], lengths: Int[Array, " batch"], segment_start: Int[Array, " batch"]
    ) -> Float[Array, "layers batch heads length length"]:
        """The attention weights of each layer, float32."""
        seen = texts.places(tokens, lengths, segment_start)
        x, found = self.embeddings(tokens, seen, None), []
        for layer in self.layers:
            found.append(layer.attention.weights(x, seen.visible))
            x = layer(x, seen.visible, None)
        return jnp.stack(found)


class BertClassifier(nnx.Module):
    """An encoder, one vector for each text, and a linear output.

    Args:
        given: the architecture, all sizes given by now.
        vocab_size: tokens of the tokenizer.
        outputs: number of logits.
        per_token: give logits for each token, and not for each text: nothing is pooled then.

    Raises:
        ConfigError: if the numbers of the architecture do not go together, or, when called, on texts that are longer
            than the table of positions.
    """

    def __init__(self, given: schema.Bert, vocab_size: int, outputs: int, *, per_token: bool = False, rngs: nnx.Rngs):
        config = bert_architecture(given, vocab_size)
        width = config.width
        self.encoder = Encoder(config, rngs=rngs)
        self.pool = "none" if per_token else config.pool
        self.pooler = Dense(width, width, rngs=rngs) if config.pooler and not per_token else None
        self.dropout = QuickDropout(config.dropout)
        self.head = Dense(width, outputs, rngs=rngs)

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        lengths: Int[Array, " texts"],
        segment_start: Int[Array, " texts"],
        *,
        key: Array | None = None,
        mask: Array | None = None,
        vectors: Float[Array, "batch length width"] | None = None,
    ) -> Float[Array, "texts *length outputs"]:
        """Logits. `vectors` stand in place of those that `look_up` gives."""
        return self.judged(self.encoder(tokens, lengths, segment_start, fold(key, 0), vectors), lengths, key)

    def judged(
        self, x: Float[Array, "batch length width"], lengths: Int[Array, " texts"], key: Array | None
    ) -> Float[Array, "texts *length outputs"]:
        """Logits, from what the encoder gives with the key `fold(key, 0)`."""
        if self.pool == "none":
            return self.head(self.dropout(x, fold(key, 1)))
        pooled = texts.first(x, lengths) if self.pool == "cls" else texts.mean(x, lengths).astype(x.dtype)
        if self.pooler is not None:
            pooled = jnp.tanh(self.pooler(pooled))
        return self.head(self.dropout(pooled, fold(key, 1)))

    def look_up(self, tokens: Int[Array, "batch length"]) -> Float[Array, "batch length width"]:
        """What the model reads of each token, without its position and segment."""
        return self.encoder.embeddings.token.embedding[...][tokens]

    def blank(self, tokens: Int[Array, "batch length"], padding: int) -> Float[Array, "batch length width"]:
        """The same of tokens that are left out: padding stands in their places."""
        return self.look_up(jnp.full_like(tokens, padding))


class BertMaskedLM(nnx.Module):
    """An encoder whose vectors say which token was there; the output weights are those of the token embedding.

    Args:
        given: the architecture, all sizes given by now.
        vocab_size: tokens of the tokenizer.

    Raises:
        ConfigError: as `BertClassifier` does.
    """

    def __init__(self, given: schema.Bert, vocab_size: int, *, rngs: nnx.Rngs):
        config = bert_architecture(given, vocab_size)
        self.encoder = Encoder(config, rngs=rngs)
        self.transform = Dense(config.width, config.width, rngs=rngs)
        self.transform_norm = LayerNorm(config.width, config.eps)
        self.decoder_bias = nnx.Param(jnp.zeros(len(self.encoder.embeddings.token.embedding[...])))

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        lengths: Int[Array, " texts"],
        segment_start: Int[Array, " texts"],
        *,
        key: Array | None = None,
    ) -> Float[Array, "batch length width"]:
        return self.encoder(tokens, lengths, segment_start, key)

    def logits(self, hidden: Float[Array, "n width"]) -> Float[Array, "n vocab"]:
        """Logits of every token, for the vectors of those places where one is to be guessed."""
        hidden = self.transform_norm(gelu(self.transform(hidden)))
        return hidden @ self.encoder.embeddings.token.embedding[...].T + self.decoder_bias[...]


def _attention_weights(
    q: Float[Array, "batch length heads depth"],
    k: Float[Array, "batch length heads depth"],
    visible: Visible,
) -> Float[Array, "batch heads length length"]:
    """softmax(q k^T / sqrt(depth)) over the tokens that are seen, in float32."""
    q, k = q.swapaxes(1, 2), k.swapaxes(1, 2)
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
    scores = jnp.where(visible[:, None], scores, -1e30)  # finite, so that a text of no tokens gives no NaN
    return jax.nn.softmax(scores)


def _dense(config: BertArchitecture, name: str, inputs: int, outputs: int, rngs: nnx.Rngs) -> Dense:
    """A layer of the encoder, with low-rank adaptation where its name is among the targets."""
    if config.lora_rank and name in config.lora_targets:
        return AdaptedDense(inputs, outputs, rank=config.lora_rank, alpha=config.lora_alpha, rngs=rngs)
    return Dense(inputs, outputs, rngs=rngs)
