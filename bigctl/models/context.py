"""Causal attention of texts that are cut over devices (`mesh.context`): each device has the queries of its own part.

Keys and values of all parts are gathered, and looked at block by block with a running softmax (Milakov and Gimelshein
2018), so that no device has the scores of more than its own queries and one block. The gradient makes the scores anew
from their logarithmic sums (Dao et al. 2022), and adds what each device found for the keys of the others up on those.

Dimension names as in `attention`; own (places of a text that a device has), block (places that are looked at at once).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Float, Int

from bigctl.parallel import mesh as meshes
from bigctl.parallel.axes import BATCH_AXES

S = TypeVar("S")
T = TypeVar("T")

CONTEXT = "context"
_MASKED = -1e30
_LARGEST_BLOCK = 512


def cut(length: int) -> AbstractMesh | None:
    """The mesh that texts of so many tokens are cut over where a program is traced; None where they stay whole."""
    mesh = meshes.mesh_in_use()
    if mesh is None or mesh.shape[CONTEXT] == 1 or length % mesh.shape[CONTEXT]:
        return None
    return mesh


def cut_attention(
    q: Float[Array, "batch length heads depth"],
    k: Float[Array, "batch length groups depth"],
    v: Float[Array, "batch length groups depth"],
    segments: Int[Array, "batch length"] | None,
    mesh: AbstractMesh,
) -> Float[Array, "batch length heads depth"]:
    """softmax(q k^T / sqrt(depth)) v, each place over those up to itself; with `segments` over those of its own.

    Args:
        q, k, v: queries, keys and values, of which devices have parts along the length, and over batch and heads.
        segments: numbers of the documents.
        mesh: from `cut`.
    """
    meshes.record_kernel("attention", "blocks of keys gathered over context")
    return _attention(mesh, q, k, v, segments)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(mesh: AbstractMesh, q: Array, k: Array, v: Array, segments: Array | None) -> Array:
    return _forward(mesh, q, k, v, segments)[0]


def _forward(
    mesh: AbstractMesh, q: Array, k: Array, v: Array, segments: Array | None
) -> tuple[Array, tuple[Array | None, ...]]:
    places = _Specs.of(q, k, mesh)
    inside = (places.wide, places.wide, places.wide, places.text)
    shared = jax.shard_map(_seen, mesh=mesh, in_specs=inside, out_specs=(places.wide, places.sums), check_vma=False)
    out, sums = shared(q, k, v, segments)
    return out, (q, k, v, segments, out, sums)


def _backward(mesh: AbstractMesh, saved: tuple[Array | None, ...], grad: Array) -> tuple[Array | None, ...]:
    q, k, v, segments, out, sums = jax.lax.optimization_barrier(saved)  # else what was gathered would be kept for this
    places = _Specs.of(q, k, mesh)
    wide, text = places.wide, places.text
    inside, results = (wide, wide, wide, text, wide, places.sums, wide), (wide, wide, wide)
    shared = jax.shard_map(_seen_gradient, mesh=mesh, in_specs=inside, out_specs=results, check_vma=False)
    return (*shared(q, k, v, segments, out, sums, grad), None)


_attention.defvjp(_forward, _backward)


class _Specs(NamedTuple):
    """How a device is given its part: of [batch, length, heads, depth], [batch, length] and [batch, groups, heads of
    a group, length]. What batch or heads do not divide, each computes whole."""

    wide: PartitionSpec
    text: PartitionSpec
    sums: PartitionSpec

    @classmethod
    def of(cls, q: Array, k: Array, mesh: AbstractMesh) -> _Specs:
        batch = BATCH_AXES if len(q) % meshes.batch_shards(mesh) == 0 else None
        head = None if k.shape[2] % mesh.shape["tensor"] else "tensor"
        of_text = PartitionSpec(batch, CONTEXT)
        return cls(PartitionSpec(batch, CONTEXT, head), of_text, PartitionSpec(batch, head, None, CONTEXT))


# ------------------------------------------------------------------------------------------------ what a device does


class _Part(NamedTuple):
    """Places of texts that lie one after the other: arrays [batch, some, ...], and where they are in their texts."""

    arrays: tuple[Array, ...]
    segments: Array | None
    places: Int[Array, " some"]

    def block(self, number: Array, size: int) -> _Part:
        """The places from number * size on, so many."""
        start = number * size
        arrays, segments = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, 1), (self.arrays, self.segments)
        )
        return _Part(arrays, segments, jax.lax.dynamic_slice_in_dim(self.places, start, size))


def _seen(q: Array, k: Array, v: Array, segments: Array | None) -> tuple[Array, Array]:
    """What the queries of this device see [batch, own, heads, depth], and the logarithms of the sums of their scores
    [batch, groups, heads of a group, own]."""
    queries, keys = _own((_grouped(q, k.shape[2]),), segments), _gathered((k, v), segments)
    (grouped,) = queries.arrays
    shape = grouped.shape[:1] + grouped.shape[2:4] + grouped.shape[1:2]
    start = jnp.full(shape, _MASKED), jnp.zeros(shape), jnp.zeros((*shape, q.shape[-1]))
    top, total, mixed = _over_blocks(queries, keys, _look, start)[0]
    out = (mixed / total[..., None]).astype(q.dtype)
    return jnp.moveaxis(out, 3, 1).reshape(q.shape), top + jnp.log(total)


def _seen_gradient(
    q: Array, k: Array, v: Array, segments: Array | None, out: Array, sums: Array, grad: Array
) -> tuple[Array, Array, Array]:
    """The gradients of the queries, keys and values of this device."""
    groups = k.shape[2]
    inner = jnp.einsum("blhd,blhd->blh", out, grad, preferred_element_type=jnp.float32)
    inner = jnp.moveaxis(inner.reshape(*inner.shape[:2], groups, -1), 1, 3)
    queries = _own((_grouped(q, groups), _grouped(grad, groups)), segments)
    keys = _gathered((k, v), segments)
    d_q, parts = _over_blocks(
        queries,
        keys,
        lambda d_q, queries, block: _look_back(d_q, queries, block, sums, inner),
        jnp.zeros(queries.arrays[0].shape, jnp.float32),
    )
    d_k, d_v = (jnp.moveaxis(part, 0, 1).reshape(len(k), -1, *k.shape[2:]).astype(k.dtype) for part in parts)
    scattered = partial(jax.lax.psum_scatter, axis_name=CONTEXT, scatter_dimension=1, tiled=True)
    return d_q.reshape(q.shape).astype(q.dtype), scattered(d_k), scattered(d_v)


def _own(arrays: tuple[Array, ...], segments: Array | None) -> _Part:
    own = arrays[0].shape[1]
    return _Part(arrays, segments, jax.lax.axis_index(CONTEXT) * own + jnp.arange(own))


def _gathered(arrays: tuple[Array, ...], segments: Array | None) -> _Part:
    whole, segments = jax.tree.map(lambda x: jax.lax.all_gather(x, CONTEXT, axis=1, tiled=True), (arrays, segments))
    return _Part(whole, segments, jnp.arange(whole[0].shape[1]))


def _grouped(x: Array, groups: int) -> Float[Array, "batch own groups each depth"]:
    return x.reshape(*x.shape[:2], groups, -1, x.shape[-1])


def _over_blocks(queries: _Part, keys: _Part, look: Callable[[S, _Part, _Part], tuple[S, T]], start: S) -> tuple[S, T]:
    """A scan of `look` over blocks of keys; those that all queries come before are left out, and give zeros."""
    length = len(keys.places)
    size = next(size for size in range(min(length, _LARGEST_BLOCK), 0, -1) if length % size == 0)

    def step(state: S, number: Array) -> tuple[S, T]:
        block = keys.block(number, size)
        found = jax.eval_shape(look, state, queries, block)[1]
        seen: tuple[S, T] = jax.lax.cond(
            block.places[0] <= queries.places[-1],
            lambda state: look(state, queries, block),
            lambda state: (state, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), found)),
            state,
        )
        return seen

    all_seen: tuple[S, T] = jax.lax.scan(step, start, jnp.arange(length // size))
    return all_seen


def _scores(q: Array, k: Array, queries: _Part, block: _Part) -> Float[Array, "batch groups each own block"]:
    """Scaled products in float32, those that are not seen `_MASKED`."""
    scores = jnp.einsum("blghd,brgd->bghlr", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    visible = block.places <= queries.places[:, None]
    if queries.segments is None or block.segments is None:
        return jnp.where(visible, scores, _MASKED)
    visible &= block.segments[:, None, :] == queries.segments[:, :, None]
    return jnp.where(visible[:, None, None], scores, _MASKED)


def _look(state: tuple[Array, Array, Array], queries: _Part, block: _Part) -> tuple[tuple[Array, Array, Array], None]:
    """The largest score so far, the sum of their exponentials less it, and the values weighed by those."""
    top, total, mixed = state
    (q,), (k, v) = queries.arrays, block.arrays
    scores = _scores(q, k, queries, block)
    highest = jnp.maximum(top, scores.max(-1))
    weights = jnp.where(scores == _MASKED, 0.0, jnp.exp(scores - highest[..., None]))
    less = jnp.exp(top - highest)
    added = jnp.einsum("bghlr,brgd->bghld", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (highest, total * less + weights.sum(-1), mixed * less[..., None] + added), None


def _look_back(
    d_q: Array, queries: _Part, block: _Part, sums: Array, inner: Array
) -> tuple[Array, tuple[Array, Array]]:
    """The gradient of the queries so far, and those of this block's keys and values; `inner` is that of the sums."""
    (q, grad), (k, v) = queries.arrays, block.arrays
    scores = _scores(q, k, queries, block)
    weights = jnp.where(scores == _MASKED, 0.0, jnp.exp(scores - sums[..., None]))
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    d_v = product("bghlr,blghd->brgd", weights.astype(v.dtype), grad)
    slopes = weights * (product("blghd,brgd->bghlr", grad, v) - inner[..., None])
    slopes = (slopes * q.shape[-1] ** -0.5).astype(q.dtype)
    d_q = d_q + product("bghlr,brgd->blghd", slopes, k)
    return d_q, (product("bghlr,blghd->brgd", slopes, q), d_v)
