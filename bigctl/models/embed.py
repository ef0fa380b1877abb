"""Rows of a table of tokens, with a gradient that is quick on a CPU, in a fixed order where that is asked of a GPU, and
cheap to add up over devices."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bigctl.parallel import mesh as meshes

_ONE_HOT = 1024  # tokens; the gradient of a smaller embedding is a product with one-hot rows


def embed(table: Float[Array, "vocab width"], tokens: Int[Array, "*dims"]) -> Float[Array, "*dims width"]:
    """Rows of a table; the gradient of a small one is a product of matrices: to add row by row is slow on CPU."""
    return _embed(table, tokens, _ordered())


def look_up(table: Float[Array, "vocab width"], tokens: Int[Array, "*dims"]) -> Float[Array, "*dims width"]:
    """table[tokens], with its own gradient but where a GPU is asked for a fixed order, see `_add_in_order`."""
    return _embed(table, tokens, True) if _ordered() else table[tokens]


def _ordered() -> bool:
    return meshes.platform_in_use() == "gpu" and meshes.deterministic_in_use()


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _embed(table: Array, tokens: Array, ordered: bool) -> Array:
    return table[tokens]


def _embed_forward(table: Array, tokens: Array, ordered: bool) -> tuple[Array, tuple[Array, Array]]:
    return table[tokens], (table, tokens)


def _embed_backward(ordered: bool, saved: tuple[Array, Array], dy: Array) -> tuple[Array, None]:
    table, tokens = saved
    vocab, tokens = len(table), tokens.reshape(len(tokens), -1)
    dy = dy.reshape(*tokens.shape, -1)
    shards = meshes.token_shards_in_use(tokens.shape[1])
    add = _add_by_product if vocab <= _ONE_HOT else _add_in_order if ordered else _add_rows
    whole = vocab <= _ONE_HOT and shards[1] == 1
    if whole or math.prod(shards) == 1 or len(tokens) % shards[0]:
        return add(vocab, tokens.reshape(-1), dy.reshape(-1, dy.shape[-1])).astype(table.dtype), None
    # Each part of the batch has a sum of its own, so that what devices add up is of the table's type.
    parts = jax.vmap(partial(add, vocab))(meshes.by_shard(tokens, shards), meshes.by_shard(dy, shards))
    return meshes.summed(meshes.placed(parts.astype(table.dtype), "tokens", None, "tensor"), "fsdp", "tensor"), None


_embed.defvjp(_embed_forward, _embed_backward)


def _add_by_product(vocab: int, tokens: Array, rows: Array) -> Array:
    """As `_add_rows`, of a few tokens, in the type of the rows."""
    hot = jax.nn.one_hot(tokens, vocab, dtype=rows.dtype)
    return jax.lax.dot_general(hot, rows, (((0,), (0,)), ((), ())))


def _add_rows(vocab: int, tokens: Array, rows: Array) -> Array:
    """The sum of the rows of each token, float32 [vocab, width]."""
    return jnp.zeros((vocab, rows.shape[1]), jnp.float32).at[tokens].add(rows.astype(jnp.float32))


def _add_in_order(vocab: int, tokens: Array, rows: Array) -> Array:
    """The same in an order that depends on the tokens alone, quicker than what XLA makes of `_add_rows` on a GPU where
    sums by atomics are not allowed: rows sorted by token are added up within each token by a segmented scan (Blelloch
    1990), and its last row is written, no two to one place."""
    order = jnp.argsort(tokens, stable=True)
    tokens = tokens[order]
    changes = tokens[1:] != tokens[:-1]
    edge = jnp.ones(1, bool)

    def add(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        (left_starts, a), (right_starts, b) = left, right
        return left_starts | right_starts, jnp.where(right_starts[:, None], b, a + b)

    starts, last = jnp.concatenate([edge, changes]), jnp.concatenate([changes, edge])
    _, sums = jax.lax.associative_scan(add, (starts, rows[order].astype(jnp.float32)))
    places = jnp.where(last, tokens, vocab + jnp.arange(len(tokens), dtype=tokens.dtype))  # others: outside, dropped
    return jnp.zeros((vocab, rows.shape[1]), jnp.float32).at[places].set(sums, mode="drop", unique_indices=True)
