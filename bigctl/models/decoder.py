"""Decoders of text, GPT-2 (Radford et al. 2019) and Llama (Touvron et al. 2023): each token sees those before it.

Dimension names: batch, length (tokens in), width (of the residual stream), heads, groups (heads of keys and values),
depth (features of a head), room (places in the cache), vocab (tokens, padded to a multiple of 128).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from bigctl.config import schema
from bigctl.errors import ConfigError
from bigctl.models.architecture import DecoderArchitecture, decoder_architecture
from bigctl.models.attention import (
    MASKED,
    Documents,
    Rows,
    attention_row_by_row,
    cached_attention,
    causal_attention,
    places_after,
    rotated,
    write_to_cache,
    write_to_slots,
)
from bigctl.models.depth import made, named, through
from bigctl.models.embed import embed
from bigctl.models.experts import Experts, Routing
from bigctl.models.layers import Dense, Embedding, QuickDropout, by_row, fold
from bigctl.models.ops import gelu
from bigctl.parallel import mesh as meshes

T = TypeVar("T")

_STD = 0.02
_TILE = 512  # columns of the head

Cache = list[dict[str, Array]]
"""For each layer "key" and "value" [batch, groups, room, depth]."""

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
}


class Norm(nnx.Module):
    """Layer normalisation (Ba et al. 2016), or by the root mean square alone (Zhang & Sennrich 2019); in float32."""

    def __init__(self, config: DecoderArchitecture):
        self.centred, self.eps = config.norm == "layer", config.eps
        self.scale = nnx.Param(jnp.ones(config.width)) if config.norm_gain else None
        self.bias = nnx.Param(jnp.zeros(config.width)) if config.bias and self.centred else None

    def __call__(self, x: Float[Array, "*dims width"]) -> Float[Array, "*dims width"]:
        wide = x.astype(jnp.float32)
        if self.centred:
            wide = wide - wide.mean(-1, keepdims=True)
        y = rms_norm(wide, self.eps).astype(x.dtype)
        if self.scale is not None:
            y = y * self.scale[...]
        return y if self.bias is None else y + self.bias[...]


class Attention(nnx.Module):
    """Causal self-attention; several heads may share their keys and values (Ainslie et al. 2023)."""

    def __init__(self, config: DecoderArchitecture, *, rngs: nnx.Rngs):
        self.heads, self.groups, self.depth = config.heads, config.kv_heads, config.depth
        self.theta = config.rope_theta if config.position == "rope" else None
        self.normalised, self.eps = config.qk_norm, config.eps
        width, shared, bias = config.width, self.groups * self.depth, config.bias
        self.wide = self.heads * self.depth
        self.query = Dense(width, self.wide, bias=bias, std=_STD, rngs=rngs)
        self.key = Dense(width, shared, bias=bias, std=_STD, rngs=rngs)
        self.value = Dense(width, shared, bias=bias, std=_STD, rngs=rngs)
        self.output = Dense(self.wide, width, bias=bias, std=_residual_std(config), rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch length width"], documents: Documents | None = None
    ) -> Float[Array, "batch length width"]:
        places = jnp.arange(x.shape[1]) if documents is None else documents.positions
        q, k, v = (named(part, "projected") for part in self._project(x, places))
        mixed = causal_attention(q, k, v, None if documents is None else documents.segments)
        return self._out(named(mixed, "attended"))

    def _out(self, mixed: Float[Array, "batch length heads depth"]) -> Float[Array, "batch length width"]:
        return self.output(mixed.reshape(*mixed.shape[:2], self.wide))

    def extend(
        self,
        x: Float[Array, "batch length width"],
        cache: dict[str, Array],
        start: Int[Array, " batch"] | None,
    ) -> tuple[Float[Array, "batch length width"], dict[str, Array]]:
        """Attention over what is in the cache before `start` and over x, which `write_to_cache` puts there."""
        places = places_after(cache, x.shape[1], start)
        q, k, v = self._project(x, places)
        cache = {name: write_to_cache(cache[name], new, start) for name, new in (("key", k), ("value", v))}
        visible = jnp.arange(cache["key"].shape[2]) <= places[..., None]
        return self._out(cached_attention(q, cache["key"], cache["value"], visible)), cache

    def _project(self, x: Float[Array, "batch length width"], places: Int[Array, "*batch length"]) -> list[Array]:
        """Queries [batch, length, heads, depth], and keys and values [batch, length, groups, depth]."""
        parts = [
            layer(x).reshape(*x.shape[:2], heads, self.depth)
            for layer, heads in ((self.query, self.heads), (self.key, self.groups), (self.value, self.groups))
        ]
        if self.normalised:
            parts[:2] = [rms_norm(part.astype(jnp.float32), self.eps).astype(x.dtype) for part in parts[:2]]
        if self.theta is not None:
            parts[:2] = [rotated(part, places, self.theta) for part in parts[:2]]
        return parts


class Layer(nnx.Module):
    """Attention, then the feed-forward part; each reads the normalised stream and adds to it."""

    def __init__(self, config: DecoderArchitecture, *, rngs: nnx.Rngs):
        width, wide = config.width, config.intermediate
        self.attention_norm, self.mlp_norm = Norm(config), Norm(config)
        self.attention = Attention(config, rngs=rngs)
        self.activation = jax.nn.silu if config.gated else ACTIVATIONS[config.activation]
        down_std = _residual_std(config)
        self.experts = (
            Experts(config, self.activation, std=_STD, down_std=down_std, rngs=rngs) if config.experts else None
        )
        if not config.experts:
            self.up = Dense(width, wide, bias=config.bias, std=_STD, rngs=rngs)
            self.gate = Dense(width, wide, bias=config.bias, std=_STD, rngs=rngs) if config.gated else None
            self.down = Dense(wide, width, bias=config.bias, std=down_std, rngs=rngs)
        self.dropout = QuickDropout(config.dropout)

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        key: Array | None,
        documents: Documents | None = None,
        weights: Float[Array, "batch length"] | None = None,
    ) -> tuple[Float[Array, "batch length width"], Routing | None]:
        added = self.attention(self.attention_norm(x), documents)
        x = named(meshes.placed(x + self.dropout(added, fold(key, 0)), "batch", "context"), "stream")
        added, told = self.mlp_norm(x), None
        if self.experts is None:
            added = self._feed_forward(added)
        else:
            added, told = self.experts(added, training=key is not None, weights=weights)
        return meshes.placed(x + self.dropout(added, fold(key, 1)), "batch", "context"), told

    def extend(
        self, x: Array, cache: dict[str, Array], start: Array | None, rows: Rows | None
    ) -> tuple[Array, dict[str, Array]]:
        if rows is not None and start is not None:
            return self._extend_rows(x, cache, start, rows)
        added, cache = self.attention.extend(self.attention_norm(x), cache, start)
        x = x + added
        return x + self._feed_forward(self.mlp_norm(x)), cache

    def _extend_rows(
        self, x: Float[Array, "batch 1 width"], cache: dict[str, Array], start: Int[Array, " batch"], rows: Rows
    ) -> tuple[Array, dict[str, Array]]:
        """One token a text. Each product is made row by row, while its weights are in the processor's cache."""
        attention = self.attention

        def each(function: Callable[..., T], *given: Array) -> T:
            return by_row(function, rows.used, *given)

        q, k, v = each(lambda x, start: attention._project(self.attention_norm(x), start[:, None]), x, start)
        new = {"key": k, "value": v}
        cache = {name: write_to_slots(cache[name], part, start, rows.slots) for name, part in new.items()}
        found = attention_row_by_row(q, cache["key"], cache["value"], start, rows)
        found = found.reshape(*x.shape[:2], attention.wide)
        x = x + each(attention.output, found)
        if self.experts is not None:
            return x + each(lambda x: self._feed_forward(self.mlp_norm(x)), x), cache
        wide = each(lambda x: self._wide(self.mlp_norm(x)), x)
        return x + each(self.down, wide), cache

    def _feed_forward(self, x: Float[Array, "*dims width"]) -> Float[Array, "*dims width"]:
        return self.down(self._wide(x)) if self.experts is None else self.experts(x)[0]

    def _wide(self, x: Float[Array, "*dims width"]) -> Float[Array, "*dims intermediate"]:
        if self.gate is not None:
            return self.activation(self.gate(x)) * self.up(x)
        return self.activation(self.up(x))


class Head(nnx.Module):
    """The output's own weights."""

    def __init__(self, config: DecoderArchitecture, *, rngs: nnx.Rngs):
        std = 0.0 if config.zero_init else _STD
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (config.width, config.padded_vocab)))


class Decoder(nnx.Module):
    """Token ids to one vector for each token, from which the logits of the next token are made.

    Attributes:
        vocab_size: tokens the model knows.
        padded: columns of the logits, of which those from `vocab_size` on only pad.
        context: longest text.

    Args:
        given: the architecture, all sizes given by now.
        vocab_size: tokens of the tokenizer.

    Raises:
        ConfigError: if a size is missing, sizes do not go together, or, when called, on a text that is longer than the
            table of positions.
    """

    def __init__(self, given: schema.Decoder, vocab_size: int, *, rngs: nnx.Rngs):
        config = decoder_architecture(given, vocab_size)
        self.vocab_size, self.padded, self.context = config.vocab, config.padded_vocab, config.context
        self.remat, self.scan, self.count = config.remat, config.scan, config.layers
        self.groups, self.depth = config.kv_heads, config.depth
        self.token = Embedding(self.padded, config.width, std=_STD, rngs=rngs)
        self.position = (
            Embedding(config.context, config.width, std=_STD, rngs=rngs) if config.position == "learned" else None
        )
        self.dropout = QuickDropout(config.dropout)
        self.layers = made(lambda _, rngs: Layer(config, rngs=rngs), config.layers, rngs)
        self.final_norm = Norm(config)
        self.head = None if config.tied else Head(config, rngs=rngs)

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        *,
        key: Array | None = None,
        segments: Int[Array, "batch length"] | None = None,
        positions: Int[Array, "batch length"] | None = None,
        vectors: Float[Array, "batch length width"] | None = None,
    ) -> Float[Array, "batch length width"]:
        """The last layer's vectors, normalised; arguments as for `routed`."""
        return self.routed(tokens, key=key, segments=segments, positions=positions, vectors=vectors)[0]

    def routed(
        self,
        tokens: Int[Array, "batch length"],
        *,
        key: Array | None = None,
        segments: Int[Array, "batch length"] | None = None,
        positions: Int[Array, "batch length"] | None = None,
        vectors: Float[Array, "batch length width"] | None = None,
        weights: Float[Array, "batch length"] | None = None,
    ) -> tuple[Float[Array, "batch length width"], Routing | None]:
        """The last layer's vectors, normalised, and of a model of experts the mean over its layers of their `Routing`.

        Args:
            tokens: texts, each of them one, unless `segments` says otherwise.
            key: means training, dropout is drawn from it.
            segments: numbers of the documents in each text; tokens see those of their own document alone.
            positions: with `segments`, places of tokens in their documents.
            vectors: stand in place of the tokens' embeddings.
            weights: what each token counts in `Routing`.
        """
        length = tokens.shape[1]
        tokens = meshes.placed(tokens, "batch", "context")
        x = embed(meshes.placed(self.token.embedding[...], "tensor"), tokens) if vectors is None else vectors
        if self.position is not None:
            if length > self.context:
                raise ConfigError(
                    f"texts of {length} tokens, the model has {self.context} positions",
                    where="model.context",
                    hint=f"use texts of {self.context} tokens or fewer, or a larger model.context",
                )
            table = self.position.embedding[...]
            x = x + (table[:length] if positions is None else embed(table, positions))
        x = meshes.placed(self.dropout(x, fold(key, 0)), "batch", "context")
        documents = None if segments is None or positions is None else Documents(segments, positions)
        x, told = through(
            self.layers,
            x,
            self.count,
            lambda number: fold(key, number + 1),
            lambda layer, x, key: layer(x, key, documents, weights),
            scan=self.scan,
            remat=self.remat,
        )
        return self.final_norm(x), None if told is None else jax.tree.map(jnp.mean, told)

    def head_kernel(self) -> Float[Array, "width vocab"]:
        """The output's weights, those of the token embedding where they are tied."""
        return self.token.embedding[...].T if self.head is None else self.head.kernel[...]

    def logits(self, hidden: Float[Array, "*dims width"]) -> Float[Array, "*dims vocab"]:
        """Logits of the next token, `MASKED` in the columns that only pad."""
        return masked_logits(hidden, self.head_kernel(), self.vocab_size)

    def logits_row_by_row(
        self, hidden: Float[Array, "batch width"], used: Int[Array, ""]
    ) -> Float[Array, "batch vocab"]:
        """`logits` of the first `used` rows, each with the bits that it has alone; zeros for the others.

        Tiles of the weights stay in the processor's cache while one row after the other is multiplied with them.
        """
        table, axis = (self.token.embedding[...], 0) if self.head is None else (self.head.kernel[...], 1)
        tiles = next(n for n in range(max(1, self.padded // _TILE), 0, -1) if self.padded % n == 0)
        size = self.padded // tiles

        def tile(number: Array) -> Array:
            part = jax.lax.dynamic_slice_in_dim(table, number * size, size, axis)

            def row(at: Array, found: Array) -> Array:
                vector = hidden[at]
                return found.at[at].set(vector @ part if axis else part @ vector)

            return jax.lax.fori_loop(0, used, row, jnp.zeros((len(hidden), size), hidden.dtype))

        found = jax.lax.map(tile, jnp.arange(tiles)).swapaxes(0, 1).reshape(len(hidden), -1)
        return found[:, : self.vocab_size]

    def cache(self, batch: int, length: int) -> Cache:
        """An empty cache with room for texts of `length` tokens, of the type that the model computes in."""
        shape, dtype = (batch, self.groups, length, self.depth), self.token.embedding[...].dtype
        return [{"key": jnp.zeros(shape, dtype), "value": jnp.zeros(shape, dtype)} for _ in self.layers]

    def extend(
        self,
        tokens: Int[Array, "batch length"],
        cache: Cache,
        start: Int[Array, " batch"] | None,
        rows: Rows | None = None,
    ) -> tuple[Float[Array, "batch length width"], Cache]:
        """The vectors of tokens that continue what is in the cache: those of the call on the whole text.

        Args:
            tokens: the next ones of each text; what pads a row at its end is overwritten by a later call that begins
                there, and never seen before.
            cache: from `cache` or an earlier call; without room for `start` + length tokens, what is written is wrong.
            start: how many tokens of each text are in the cache already; None where it is full, and becomes longer.
            rows: with one token a text, where in the cache each text is.
        """
        x = self.token.embedding[...][tokens]
        if self.position is not None:
            x = x + self.position.embedding[...][places_after(cache[0], tokens.shape[1], start)]
        new = []
        for layer, part in zip(self.layers, cache, strict=True):
            x, part = layer.extend(x, part, start, rows)
            new.append(part)
        return (self.final_norm(x) if rows is None else by_row(self.final_norm, rows.used, x)), new


# ------------------------------------------------------------------------------------------------------------- pieces


def rms_norm(x: Float[Array, "*dims features"], eps: float) -> Float[Array, "*dims features"]:
    """x divided by the root of its mean square."""
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps)


def masked_logits(
    hidden: Float[Array, "*dims width"], kernel: Float[Array, "width vocab"], vocab_size: int
) -> Float[Array, "*dims vocab"]:
    """hidden @ kernel, `MASKED` in the columns from `vocab_size` on."""
    logits = hidden @ kernel
    return (
        logits
        if vocab_size == kernel.shape[1]
        else jnp.where(jnp.arange(kernel.shape[1]) < vocab_size, logits, jnp.asarray(MASKED, logits.dtype))
    )


def _residual_std(config: DecoderArchitecture) -> float:
    """Of what is added to the stream, less the more often it is added to (Radford et al. 2019)."""
    return 0.0 if config.zero_init else _STD / math.sqrt(2 * config.layers)
