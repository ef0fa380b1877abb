"""Causal attention within documents on TPUs: the splash kernel of JAX (`jax.experimental.pallas`), which makes no mask
and leaves out what comes later. Dimension names as in `attention`.

No TPU has run it yet: its results are held against those of a mask by Pallas' interpreter, and it was compiled for v5e.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from bigctl.parallel import mesh as meshes
from bigctl.parallel.axes import BATCH_AXES

_LANES = 128
_BLOCKS = (512, 256, 128)
"""Places of a tile, the largest first that divides the length."""


def can(length: int) -> bool:
    """Whether texts of so many tokens can be cut into its tiles."""
    return length % _LANES == 0


def splash_attention(
    q: Float[Array, "batch length heads depth"],
    k: Float[Array, "batch length groups depth"],
    v: Float[Array, "batch length groups depth"],
    segments: Int[Array, "batch length"],
    *,
    interpret: bool = False,
) -> Float[Array, "batch length heads depth"]:
    """softmax(q k^T / sqrt(depth)) v, each place over those up to itself of its own document.

    A kernel is no program that XLA could share out: over the batch, and over heads where the mesh has `tensor`, each
    device is given its part.

    Args:
        q, k, v: queries, keys and values; `can(length)`.
        segments: numbers of the documents.
        interpret: compute it without a TPU, very slowly.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length = q.shape[1]
    tile = next(size for size in _BLOCKS if length % size == 0)
    sizes = kernels.BlockSizes(
        block_q=tile, block_kv=tile, block_kv_compute=tile, block_q_dkv=tile, block_kv_dkv=tile,
        block_kv_dkv_compute=tile, block_q_dq=tile, block_kv_dq=tile,
    )  # fmt: skip

    def attend(q: Array, k: Array, v: Array, segments: Array) -> Array:
        causal = masks.MultiHeadMask([masks.CausalMask((length, length))] * q.shape[2])
        kernel = kernels.make_splash_mha_single_device(causal, block_sizes=sizes, interpret=interpret)
        q, k, v = (x.swapaxes(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))
        each = jax.vmap(lambda q, k, v, own: kernel(q, k, v, segment_ids=kernels.SegmentIds(own, own)))
        return each(q, k, v, segments).swapaxes(1, 2).astype(v.dtype)

    segments = segments.astype(jnp.int32)
    mesh = meshes.mesh_in_use()
    if mesh is None:
        return attend(q, k, v, segments)
    heads = PartitionSpec(BATCH_AXES, None, "tensor")
    inside = (heads, heads, heads, PartitionSpec(BATCH_AXES))
    shared = jax.shard_map(attend, mesh=mesh, in_specs=inside, out_specs=heads, check_vma=False)
    return shared(q, k, v, segments)
