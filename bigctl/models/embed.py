"""Rows of a table of tokens, with a gradient that is quick on a CPU and cheap to add up over devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bigctl.parallel import mesh as meshes

_ONE_HOT = 1024  # tokens; the gradient of a smaller embedding is a product with one-hot rows


@jax.custom_vjp
def embed(table: Float[Array, "vocab width"], tokens: Int[Array, "*dims"]) -> Float[Array, "*dims width"]:
    """Rows of a table; the gradient of a small one is a product of matrices: to add row by row is slow on CPU."""
    return table[tokens]


def _embed_forward(table: Array, tokens: Array) -> tuple[Array, tuple[Array, Array]]:
    return table[tokens], (table, tokens)


def _embed_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, None]:
    table, tokens = saved
    rows = dy.reshape(-1, dy.shape[-1])
    if len(table) <= _ONE_HOT:
        hot = jax.nn.one_hot(tokens.reshape(-1), len(table), dtype=dy.dtype)
        return jax.lax.dot_general(hot, rows, (((0,), (0,)), ((), ()))).astype(table.dtype), None
    shards = meshes.shards_in_use()
    if shards == 1 or len(tokens) % shards:
        wide = jnp.zeros(table.shape, jnp.float32).at[tokens.reshape(-1)].add(rows.astype(jnp.float32))
        return wide.astype(table.dtype), None

    def of_shard(tokens: Array, rows: Array) -> Array:
        return jnp.zeros(table.shape, jnp.float32).at[tokens].add(rows.astype(jnp.float32))

    # Each part of the batch has a sum of its own, so that what devices add up is of the table's type.
    parts = jax.vmap(of_shard)(tokens.reshape(shards, -1), rows.reshape(shards, -1, rows.shape[-1]))
    return meshes.summed(meshes.placed(parts.astype(table.dtype), "batch", None, "tensor")), None


embed.defvjp(_embed_forward, _embed_backward)
