"""Causal attention, its kernels, and rotary positions.

Dimension names: batch, length (tokens in), heads, groups (heads of keys and values), depth (features of a head), room
(places in the cache).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bigctl.models import context, cudnn, splash
from bigctl.parallel import mesh as meshes

MASKED = -1e30
"""A score, or a logit, that counts for nothing; finite, so that it gives no NaN."""

_FEW = 16  # texts
_WINDOWS = tuple(2**power for power in range(7, 24, 2))  # places of the cache that a text is computed over

Kernel = Literal["einsum", "cudnn", "xla"]
DocumentKernel = Literal["einsum", "splash", "xla"]


class Documents(NamedTuple):
    """Which tokens belong together where a text is several documents, one after the other.

    Attributes:
        segments: numbers of the documents; equal ones lie next to each other.
        positions: places of tokens in their documents, from 0 on.
    """

    segments: Int[Array, "batch length"]
    positions: Int[Array, "batch length"]


class Rows(NamedTuple):
    """Texts of which one token each is computed.

    Attributes:
        slots: the row of the cache that is each text's; the cache may have more rows.
        used: how many of them there are; what comes behind fills the program.
    """

    slots: Int[Array, " batch"]
    used: Int[Array, ""]


def causal_attention(
    q: Float[Array, "batch length heads depth"],
    k: Float[Array, "batch length groups depth"],
    v: Float[Array, "batch length groups depth"],
    segments: Int[Array, "batch length"] | None = None,
) -> Float[Array, "batch length heads depth"]:
    """softmax(q k^T / sqrt(depth)) v, each place over those up to itself; with `segments` over those of its own."""
    mesh = context.cut(q.shape[1])
    if mesh is not None:
        return context.cut_attention(q, k, v, segments, mesh)
    if segments is not None:
        return _document_attention(q, k, v, segments)
    kernel = _kernel(q, k)
    if kernel == "cudnn":
        return cudnn.cudnn_attention(q, k, v, causal=True)
    if kernel == "xla":
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="xla")
    places = jnp.arange(q.shape[1])
    visible = places <= places[:, None]
    return cached_attention(q, k.swapaxes(1, 2), v.swapaxes(1, 2), visible)


def full_attention(
    q: Float[Array, "batch length heads depth"],
    k: Float[Array, "batch length heads depth"],
    v: Float[Array, "batch length heads depth"],
) -> Float[Array, "batch length heads depth"]:
    """softmax(q k^T / sqrt(depth)) v, each place over all of them."""
    kernel = _kernel(q, k)
    if kernel == "cudnn":
        return cudnn.cudnn_attention(q, k, v, causal=False)
    if kernel == "xla":
        return jax.nn.dot_product_attention(q, k, v, implementation="xla")
    length = q.shape[1]
    return cached_attention(q, k.swapaxes(1, 2), v.swapaxes(1, 2), jnp.ones((length, length), bool))


def _kernel(q: Array, k: Array) -> Kernel:
    kernel = attention_kernel(meshes.platform_in_use(), q.dtype)
    if kernel == "cudnn" and not cudnn.can(q.shape[1], q.shape[3], q.shape[2], k.shape[2]):
        kernel = "xla"
    meshes.record_kernel("attention", kernel)
    return kernel


def _document_attention(q: Array, k: Array, v: Array, segments: Array) -> Array:
    """Attention within documents: by a kernel that knows them, or with a mask [batch, length, length] between them."""
    kernel = document_kernel(meshes.platform_in_use(), q.shape[1])
    told = kernel if kernel == "splash" else f"{kernel} with a mask of documents"
    meshes.record_kernel("attention", told)
    if kernel == "splash":
        return splash.splash_attention(q, k, v, segments)
    places = jnp.arange(q.shape[1])
    visible = (places <= places[:, None]) & (segments[:, None, :] == segments[:, :, None])
    if kernel == "xla":
        return jax.nn.dot_product_attention(q, k, v, mask=visible[:, None], implementation="xla")
    return cached_attention(q, k.swapaxes(1, 2), v.swapaxes(1, 2), visible)


def document_kernel(platform: str | None, length: int) -> DocumentKernel:
    """What computes attention within documents: "splash" (fused, on TPUs), "xla" or "einsum", which need a mask.

    On GPUs cuDNN is not among them: jax.nn.dot_product_attention gives it documents as a mask only, with which its
    gradient is wrong for some lengths.

    Args:
        platform: as for `attention_kernel`.
        length: of the windows [tokens].
    """
    if platform in (None, "cpu"):
        return "einsum"
    return "splash" if platform == "tpu" and splash.can(length) else "xla"


def attention_kernel(platform: str | None, dtype: jnp.dtype) -> Kernel:
    """What computes causal attention: "cudnn" (fused, on GPUs in 16 bits), "xla" (what XLA makes of jax's own), or
    "einsum" (`cached_attention`, the quickest on CPUs).

    Args:
        platform: of the devices that the program is for, from `mesh.platform_in_use`; None, outside of any mesh, takes
            what runs everywhere.
        dtype: of queries, keys and values.
    """
    if platform in (None, "cpu"):
        return "einsum"
    return "cudnn" if platform == "gpu" and dtype in (jnp.bfloat16, jnp.float16) else "xla"


def cached_attention(
    q: Float[Array, "batch length heads depth"],
    k: Float[Array, "batch groups room depth"],
    v: Float[Array, "batch groups room depth"],
    visible: Bool[Array, "*batch length room"],
) -> Float[Array, "batch length heads depth"]:
    """Attention over those places that each token may see; the softmax in float32.

    Queries are put in the order of the products first, and those of a group one behind the other: XLA on a CPU computes
    the same from other orders by gradients that take half as long again.
    """
    batch, length, heads, depth = q.shape
    groups, room = k.shape[1:3]
    q = q.swapaxes(1, 2).reshape(batch, groups, heads // groups * length, depth)
    scores = jnp.einsum("bgqd,bgrd->bgqr", q, k).astype(jnp.float32) * depth**-0.5
    scores = scores.reshape(batch, heads, length, room)
    scores = jnp.where(visible[..., None, :, :], scores, MASKED)
    weights = jax.nn.softmax(scores).astype(q.dtype).reshape(batch, groups, heads // groups * length, room)
    mixed = jnp.einsum("bgqr,bgrd->bgqd", weights, v)
    return mixed.reshape(batch, heads, length, depth).swapaxes(1, 2)


def attention_row_by_row(
    q: Float[Array, "batch 1 heads depth"],
    k: Float[Array, "slots groups room depth"],
    v: Float[Array, "slots groups room depth"],
    places: Int[Array, " batch"],
    rows: Rows,
) -> Float[Array, "batch 1 heads depth"]:
    """Attention of one token of each text over the cache of its slot, up to its own place; zeros in rows not in use.

    One text after the other, in shapes that depend on its own place alone: the bits of a text are the same whatever is
    in the other rows, however many they are, and whatever room the cache has.
    """
    _, groups, room, depth = k.shape
    windows = [*(size for size in _WINDOWS if size < room), room]

    def over(window: int) -> Callable[[Array], Array]:
        def attend(row: Array) -> Array:
            part = (1, groups, window, depth)
            keys, values = (jax.lax.dynamic_slice(each, (rows.slots[row], 0, 0, 0), part) for each in (k, v))
            visible = jnp.arange(window) <= places[row]
            return cached_attention(jax.lax.dynamic_slice_in_dim(q, row, 1), keys, values, visible[None, None])

        return attend

    def write(row: Array, out: Array) -> Array:
        which = jnp.searchsorted(jnp.array(windows), places[row] + 1)
        return jax.lax.dynamic_update_slice_in_dim(out, jax.lax.switch(which, branches, row), row, 0)

    branches = [over(window) for window in windows]
    return jax.lax.fori_loop(0, rows.used, write, jnp.zeros_like(q))


def window_of(end: int, room: int) -> int:
    """Places that are looked at where the first `end` of them are in use."""
    return next((size for size in _WINDOWS if end <= size < room), room)


def write_to_slots(
    stored: Float[Array, "slots groups room depth"],
    new: Float[Array, "batch 1 groups depth"],
    start: Int[Array, " batch"],
    slots: Int[Array, " batch"],
) -> Float[Array, "slots groups room depth"]:
    """The cache with one entry more in each of these slots."""
    rows = new.swapaxes(1, 2).astype(stored.dtype)
    for i in range(len(rows)):
        stored = jax.lax.dynamic_update_slice(stored, rows[i : i + 1], (slots[i], 0, start[i], 0))
    return stored


def places_after(cache: dict[str, Array], length: int, start: Array | None) -> Int[Array, "*batch length"]:
    """The places of tokens that come after what is in the cache: `start` of each text, or all of it."""
    begin = cache["key"].shape[2] if start is None else start[:, None]
    return begin + jnp.arange(length)


def write_to_cache(
    stored: Float[Array, "batch groups room depth"],
    new: Float[Array, "batch length groups depth"],
    start: Int[Array, " batch"] | None,
) -> Float[Array, "batch groups room2 depth"]:
    """The cache with new entries from `start` on, or longer by them where that is None; of a few texts row by row, as a
    scatter is slow on CPU."""
    rows = new.swapaxes(1, 2).astype(stored.dtype)
    if start is None:
        return jnp.concatenate([stored, rows], axis=2)
    if len(rows) > _FEW:
        return jax.vmap(lambda old, row, at: jax.lax.dynamic_update_slice(old, row, (0, at, 0)))(stored, rows, start)
    for i in range(len(rows)):
        stored = jax.lax.dynamic_update_slice(stored, rows[i : i + 1], (i, 0, start[i], 0))
    return stored


def rotated(
    x: Float[Array, "batch length heads depth"], places: Int[Array, "*batch length"], theta: float
) -> Float[Array, "batch length heads depth"]:
    """Rotary positions (Su et al. 2021): feature i and i + depth / 2 are turned by place / theta^(2i / depth)."""
    half = x.shape[-1] // 2
    angles = places[..., None, None] * theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
