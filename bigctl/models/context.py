"""Causal attention of texts that are cut over devices (`mesh.context`): each device has the queries of its own part.

Keys and values of all parts are looked at block by block with a running softmax (Milakov and Gimelshein 2018), so that
no device has the scores of more than its own queries and one block. Either those of a whole text are gathered, or each
device passes those that it has on to the next, around a ring (Liu et al. 2023). In order, what comes early in a text is
done early, and waits for the last part, which sees all; with `zigzag` (as in Brandon et al. 2023, by parts instead of
stripes) queries, keys and values are exchanged so that of 2n parts a device has one from the front and its counterpart
from the back, for attention alone: everything else is in the order of the text, with the same dropout and the same
capacity of experts as on one device.

The gradient makes the scores anew from their logarithmic sums (Dao et al. 2022). What a device finds for the keys of
others is added up on those, or travels with the keys around the ring.

Dimension names as in `attention`; own (places of a text that a device has), some (of a part of them), block (places
that are looked at at once), each (heads that share their keys and values).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Float, Int

from bigctl.config.schema import GATHER, ZIGZAG
from bigctl.parallel import mesh as meshes
from bigctl.parallel.axes import BATCH_AXES

S = TypeVar("S")
T = TypeVar("T")

CONTEXT = "context"
_MASKED = -1e30
_BLOCKS = 512, 128
"""Places of a block, at most and at least, where a part has a divisor among these."""


def cut(length: int) -> AbstractMesh | None:
    """The mesh that texts of so many tokens are cut over where a program is traced; None where they stay whole."""
    mesh = meshes.mesh_in_use()
    if mesh is None or mesh.shape[CONTEXT] == 1 or length % mesh.shape[CONTEXT]:
        return None
    return mesh


class _Kind(NamedTuple):
    """What is compiled: over which mesh, and by what way (`schema.Mesh.context_by`)."""

    mesh: AbstractMesh
    by: str


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
    by = meshes.context_by_in_use()
    if by == ZIGZAG and q.shape[1] % (2 * mesh.shape[CONTEXT]):
        by = "ring"
    told = "gathered over context" if by == GATHER else f"passed around a ring{', zigzag' if by == ZIGZAG else ''}"
    meshes.record_kernel("attention", f"blocks of keys {told}")
    return _attention(_Kind(mesh, by), q, k, v, segments)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(kind: _Kind, q: Array, k: Array, v: Array, segments: Array | None) -> Array:
    return _forward(kind, q, k, v, segments)[0]


def _forward(
    kind: _Kind, q: Array, k: Array, v: Array, segments: Array | None
) -> tuple[Array, tuple[Array | None, ...]]:
    wide, text = _specs(q, k, kind.mesh)
    given, kept = (wide, wide, wide, text), (wide, (wide, wide, wide, text, wide))
    shared = jax.shard_map(partial(_seen, kind), mesh=kind.mesh, in_specs=given, out_specs=kept, check_vma=False)
    out, saved = shared(q, k, v, segments)
    return out, (*saved, out)


def _backward(kind: _Kind, saved: tuple[Array | None, ...], grad: Array) -> tuple[Array | None, ...]:
    q, k, v, segments, sums, out = jax.lax.optimization_barrier(saved)  # else what was gathered would be kept for this
    wide, text = _specs(q, k, kind.mesh)
    given, found = (wide, wide, wide, text, wide, wide, wide), (wide, wide, wide)
    shared = jax.shard_map(
        partial(_seen_gradient, kind), mesh=kind.mesh, in_specs=given, out_specs=found, check_vma=False
    )
    return (*shared(q, k, v, segments, sums, out, grad), None)


_attention.defvjp(_forward, _backward)


def _specs(q: Array, k: Array, mesh: AbstractMesh) -> tuple[PartitionSpec, PartitionSpec]:
    """How a device is given its part of [batch, length, heads or groups, ...], and of [batch, length]. What batch or
    heads do not divide, each computes whole."""
    batch = BATCH_AXES if len(q) % meshes.batch_shards(mesh) == 0 else None
    head = None if k.shape[2] % mesh.shape["tensor"] else "tensor"
    return PartitionSpec(batch, CONTEXT, head), PartitionSpec(batch, CONTEXT)


# ------------------------------------------------------------------------------------------------ what a device does


class _Part(NamedTuple):
    """Arrays [batch, some, ...], numbers of the documents, and where the places are in their texts. Of queries, all
    three have the parts of a device as their first dimension, and the places of each lie one after the other."""

    arrays: tuple[Array, ...]
    segments: Array | None
    places: Int[Array, "*parts some"]

    def block(self, number: Array, size: int) -> _Part:
        """The places from number * size on, so many."""
        start = number * size
        arrays, segments = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, 1), (self.arrays, self.segments)
        )
        return _Part(arrays, segments, jax.lax.dynamic_slice_in_dim(self.places, start, size))


def _seen(
    kind: _Kind, q: Array, k: Array, v: Array, segments: Array | None
) -> tuple[Array, tuple[Array, Array, Array, Array | None, Array]]:
    """What the queries of this device see [batch, own, heads, depth]; and for the gradient queries, keys, values and
    segments as they were dealt, and the logarithms of the sums of scores [batch, own, groups, each]."""
    q, k, v, segments = dealt = _dealt(kind, (q, k, v, segments))
    queries = _queries(kind, (_grouped(q, k.shape[2]),), segments)

    def look(states: _Running, keys: _Part) -> _Running:
        def one(_: None, given: tuple[_Part, _Running]) -> tuple[None, _Running]:
            return None, _over_blocks(given[0], keys, _look, given[1])[0]

        found: _Running = jax.lax.scan(one, None, (queries, states))[1]
        return found

    states = jax.vmap(_Running.start)(queries.arrays[0])
    if kind.by == GATHER:
        states = look(states, _gathered((k, v), segments))
    else:

        def visit(states: _Running, block: _Block, holder: Array) -> tuple[_Running, _Block]:
            return look(states, _keys(kind, block, holder)), block

        states, _ = _around(kind, states, (k, v, segments), visit)
    out, sums = (_joined(each) for each in jax.vmap(_Running.found)(states))
    return _collected(kind, out.reshape(q.shape).astype(q.dtype)), (*dealt, sums)


def _seen_gradient(
    kind: _Kind, q: Array, k: Array, v: Array, segments: Array | None, sums: Array, out: Array, grad: Array
) -> tuple[Array, Array, Array]:
    """The gradients of the queries, keys and values of this device; all but `out` and `grad` as `_seen` dealt them."""
    groups = k.shape[2]
    inner = jnp.einsum("blhd,blhd->blh", out, grad, preferred_element_type=jnp.float32)
    grad, inner = _dealt(kind, (grad, inner))
    arrays = (_grouped(q, groups), _grouped(grad, groups), sums, inner.reshape(sums.shape))
    queries = _queries(kind, arrays, segments)

    def look(d_q: Array, added: tuple[Array, Array], keys: _Part) -> tuple[Array, tuple[Array, Array]]:
        def one(added: tuple[Array, Array], given: tuple[_Part, Array]) -> tuple[tuple[Array, Array], Array]:
            d_q, blocks = _over_blocks(given[0], keys, _look_back, given[1])
            more = (_joined(each) for each in blocks)
            d_k, d_v = (a + b for a, b in zip(added, more, strict=True))
            return (d_k, d_v), d_q

        added, d_q = jax.lax.scan(one, added, (queries, d_q))
        return d_q, added

    def zeros(x: Array) -> tuple[Array, Array]:
        return jnp.zeros(x.shape, jnp.float32), jnp.zeros(x.shape, jnp.float32)

    d_q = jnp.zeros(queries.arrays[0].shape, jnp.float32)
    if kind.by == GATHER:
        keys = _gathered((k, v), segments)
        d_q, added = look(d_q, zeros(keys.arrays[0]), keys)
        scattered = partial(jax.lax.psum_scatter, axis_name=CONTEXT, scatter_dimension=1, tiled=True)
        d_k, d_v = (scattered(each.astype(k.dtype)) for each in added)
    else:
        Travels = tuple[_Block, tuple[Array, Array]]

        def visit(d_q: Array, given: Travels, holder: Array) -> tuple[Array, Travels]:
            d_q, added = look(d_q, given[1], _keys(kind, given[0], holder))
            return d_q, (given[0], added)

        d_q, (_, added) = _around(kind, d_q, ((k, v, segments), zeros(k)), visit)
        d_k, d_v = (_passed(kind, each).astype(k.dtype) for each in added)
    whole = _joined(d_q).reshape(q.shape).astype(q.dtype)
    return _collected(kind, whole), _collected(kind, d_k), _collected(kind, d_v)


def _joined(parts: Float[Array, "parts batch some *rest"]) -> Float[Array, "batch places *rest"]:
    return jnp.moveaxis(parts, 0, 1).reshape(parts.shape[1], -1, *parts.shape[3:])


# ------------------------------------------------------------------------------------------ who has which part when


_Block = tuple[Array, Array, Array | None]
"""Keys, values and segments that one device had."""


def _places(kind: _Kind, own: int, holder: Array) -> Int[Array, "parts some"]:
    """What a device has of a text: its part, with zigzag two of them."""
    shards = kind.mesh.shape[CONTEXT]
    numbers = [holder, 2 * shards - 1 - holder] if kind.by == ZIGZAG else [holder]
    some = own // len(numbers)
    return jnp.stack([number * some + jnp.arange(some) for number in numbers])


def _queries(kind: _Kind, arrays: tuple[Array, ...], segments: Array | None) -> _Part:
    places = _places(kind, arrays[0].shape[1], jax.lax.axis_index(CONTEXT))
    arrays, segments = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(len(x), *places.shape, *x.shape[2:]), 1, 0), (arrays, segments)
    )
    return _Part(arrays, segments, places)


def _keys(kind: _Kind, block: _Block, holder: Array) -> _Part:
    return _Part(block[:2], block[2], _places(kind, block[0].shape[1], holder).reshape(-1))


def _gathered(arrays: tuple[Array, ...], segments: Array | None) -> _Part:
    whole, segments = jax.tree.map(lambda x: jax.lax.all_gather(x, CONTEXT, axis=1, tiled=True), (arrays, segments))
    return _Part(whole, segments, jnp.arange(whole[0].shape[1]))


def _around(kind: _Kind, state: S, block: T, visit: Callable[[S, T, Array], tuple[S, T]]) -> tuple[S, T]:
    """Visit the blocks of all devices, one's own first, each with the number of the device it came from."""
    shards, own = kind.mesh.shape[CONTEXT], jax.lax.axis_index(CONTEXT)

    def step(carry: tuple[S, T], number: Array) -> tuple[tuple[S, T], None]:
        state, block = visit(*carry, (own - number) % shards)
        return (state, jax.tree.map(partial(_passed, kind), block)), None

    (state, block), _ = jax.lax.scan(step, (state, block), jnp.arange(shards - 1))
    return visit(state, block, (own + 1) % shards)


def _passed(kind: _Kind, x: Array) -> Array:
    """What the device before had."""
    shards = kind.mesh.shape[CONTEXT]
    return jax.lax.ppermute(x, CONTEXT, [(i, (i + 1) % shards) for i in range(shards)])


def _moves(shards: int) -> list[list[tuple[int, int]]]:
    """Who sends to whom so that device i, which has parts 2i and 2i + 1 of a text, has parts i and 2n - 1 - i: first
    the even parts, then the odd ones; no two of either to one device."""
    return [
        [(i, part if part < shards else 2 * shards - 1 - part) for i in range(shards) for part in [2 * i + odd]]
        for odd in (0, 1)
    ]


def _dealt(kind: _Kind, tree: T) -> T:
    """Own parts [batch, own, ...] in the order of the text as the device has them in attention: with zigzag a part from
    the front, then its counterpart from the back."""
    if kind.by != ZIGZAG:
        return tree
    even_first = jax.lax.axis_index(CONTEXT) % 2 == 0

    def deal(x: Array) -> Array:
        halves, moves = jnp.split(x, 2, axis=1), _moves(kind.mesh.shape[CONTEXT])
        even, odd = (jax.lax.ppermute(half, CONTEXT, move) for half, move in zip(halves, moves, strict=True))
        return jnp.concatenate([jnp.where(even_first, even, odd), jnp.where(even_first, odd, even)], axis=1)

    dealt: T = jax.tree.map(deal, tree)
    return dealt


def _collected(kind: _Kind, x: Array) -> Array:
    """What `_dealt` has dealt, in the order of the text again."""
    if kind.by != ZIGZAG:
        return x
    first, second = jnp.split(x, 2, axis=1)
    even_first = jax.lax.axis_index(CONTEXT) % 2 == 0
    halves = jnp.where(even_first, first, second), jnp.where(even_first, second, first)
    back = [[(there, here) for here, there in move] for move in _moves(kind.mesh.shape[CONTEXT])]
    parts = [jax.lax.ppermute(half, CONTEXT, move) for half, move in zip(halves, back, strict=True)]
    return jnp.concatenate(parts, axis=1)


# ----------------------------------------------------------------------------------------------- block by block


class _Running(NamedTuple):
    """The largest score so far, the sum of their exponentials less it, both [batch, groups, each, some], and the values
    weighed by those [batch, groups, each, some, depth]."""

    top: Array
    total: Array
    mixed: Array

    @classmethod
    def start(cls, q: Float[Array, "batch some groups each depth"]) -> _Running:
        batch, some, groups, each, depth = q.shape
        shape = batch, groups, each, some
        return cls(jnp.full(shape, _MASKED), jnp.zeros(shape), jnp.zeros((*shape, depth)))

    def found(self) -> tuple[Float[Array, "batch some groups each depth"], Float[Array, "batch some groups each"]]:
        """The mean of the values, and the logarithm of the sum of exponentials."""
        mean, sums = self.mixed / self.total[..., None], self.top + jnp.log(self.total)
        return jnp.moveaxis(mean, 3, 1), jnp.moveaxis(sums, 3, 1)


def _grouped(x: Array, groups: int) -> Float[Array, "batch own groups each depth"]:
    return x.reshape(*x.shape[:2], groups, -1, x.shape[-1])


def _over_blocks(queries: _Part, keys: _Part, look: Callable[[S, _Part, _Part], tuple[S, T]], start: S) -> tuple[S, T]:
    """A scan of `look` over blocks of keys; those that all queries come before are left out, and give zeros."""
    some, (most, least) = len(queries.places), _BLOCKS  # and so many keys lie one after the other
    size = next((size for size in range(min(some, most), least - 1, -1) if some % size == 0), some)

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

    all_seen: tuple[S, T] = jax.lax.scan(step, start, jnp.arange(len(keys.places) // size))
    return all_seen


def _scores(q: Array, k: Array, queries: _Part, block: _Part) -> Float[Array, "batch groups each some block"]:
    """Scaled products in float32, those that are not seen `_MASKED`."""
    scores = jnp.einsum("blghd,brgd->bghlr", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    visible = block.places <= queries.places[:, None]
    if queries.segments is None or block.segments is None:
        return jnp.where(visible, scores, _MASKED)
    visible &= block.segments[:, None, :] == queries.segments[:, :, None]
    return jnp.where(visible[:, None, None], scores, _MASKED)


def _look(state: _Running, queries: _Part, block: _Part) -> tuple[_Running, None]:
    (q,), (k, v) = queries.arrays, block.arrays
    scores = _scores(q, k, queries, block)
    highest = jnp.maximum(state.top, scores.max(-1))
    weights = jnp.where(scores == _MASKED, 0.0, jnp.exp(scores - highest[..., None]))
    less = jnp.exp(state.top - highest)
    added = jnp.einsum("bghlr,brgd->bghld", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return _Running(highest, state.total * less + weights.sum(-1), state.mixed * less[..., None] + added), None


def _look_back(d_q: Array, queries: _Part, block: _Part) -> tuple[Array, tuple[Array, Array]]:
    """The gradient of the queries so far, and those of this block's keys and values."""
    (q, grad, sums, inner), (k, v) = queries.arrays, block.arrays
    sums, inner = (jnp.moveaxis(each, 1, 3)[..., None] for each in (sums, inner))
    scores = _scores(q, k, queries, block)
    weights = jnp.where(scores == _MASKED, 0.0, jnp.exp(scores - sums))
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    d_v = product("bghlr,blghd->brgd", weights.astype(v.dtype), grad)
    slopes = weights * (product("blghd,brgd->bghlr", grad, v) - inner) * q.shape[-1] ** -0.5
    slopes = slopes.astype(q.dtype)
    return d_q + product("bghlr,brgd->blghd", slopes, k), (product("bghlr,blghd->brgd", slopes, q), d_v)
