"""Attention by cuDNN's fused kernels, on NVIDIA GPUs and in 16 bits. Dimension names as in `attention`.

`jax.nn.dot_product_attention` calls the same kernels, but no deterministic gradient of it can be had in a model of
several layers: XLA writes `force_deterministic` into the first of equal calls while it compiles it, and finds no
compiled kernel for the others when the program runs (an IndexError, `raw_hash_map<>::at`; seen with jax 0.11.2 on an
H100). Here each call says from the start what its program is compiled for. The targets, operands and layouts are those
of XLA's `CudnnfMHABackendConfig`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Float

from bigctl.parallel import mesh as meshes
from bigctl.parallel.axes import BATCH_AXES

_TYPES = {jnp.dtype(jnp.bfloat16): "BF16", jnp.dtype(jnp.float16): "F16"}
_HEADS_OUTSIDE = (0, 2, 1, 3)
"""Of [batch, heads, length, depth], major to minor: stored as [batch, length, heads, depth]."""
_PRODUCTS = {  # what left and right contract, and their dimensions of the batch
    "bmm1_dot_dimension_numbers": (3, 3, (0, 2), (0, 2)),
    "bmm2_dot_dimension_numbers": (3, 1, (0, 1), (0, 2)),
    "bmm1_grad_gemm1_dot_dimension_numbers": (2, 1, (0, 1), (0, 2)),
    "bmm1_grad_gemm2_dot_dimension_numbers": (3, 1, (0, 1), (0, 2)),
    "bmm2_grad_gemm1_dot_dimension_numbers": (2, 1, (0, 1), (0, 2)),
    "bmm2_grad_gemm2_dot_dimension_numbers": (3, 3, (0, 2), (0, 2)),
}


@dataclass(frozen=True)
class _Kind:
    """What is compiled: whether each place sees only those up to itself, whether its gradient is added up in a fixed
    order, and the mesh that it is shared out over."""

    causal: bool
    deterministic: bool
    mesh: AbstractMesh | None


def can(length: int, depth: int, heads: int, groups: int) -> bool:
    """Whether cuDNN has forward and backward kernels: even lengths, features a multiple of 8 and at most 128."""
    return length % 2 == 0 and depth % 8 == 0 and depth <= 128 and heads % groups == 0


def cudnn_attention(
    q: Float[Array, "batch length heads depth"],
    k: Float[Array, "batch length groups depth"],
    v: Float[Array, "batch length groups depth"],
    *,
    causal: bool,
) -> Float[Array, "batch length heads depth"]:
    """softmax(q k^T / sqrt(depth)) v, each place over all, or with `causal` over those up to itself.

    A kernel is no program that XLA could share out: over the batch, and over heads where the mesh has `tensor`, each
    device is given its part; what does not divide, each computes whole.
    """
    return _attention(_Kind(causal, meshes.deterministic_in_use(), meshes.mesh_in_use()), q, k, v)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(kind: _Kind, q: Array, k: Array, v: Array) -> Array:
    return _forward(kind, q, k, v)[0]


def _forward(kind: _Kind, q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, ...]]:
    def call(q: Array, k: Array, v: Array) -> tuple[Array, ...]:
        batch, length, heads, depth = q.shape
        stored, sums = _turned(q), jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)
        config = _config(kind, q, k, backward=False)
        out, log_sums = _call("__cudnn$fmhaSoftmax", config, [stored, sums])(q, k, v)
        return out.swapaxes(1, 2), log_sums

    out, log_sums = _batched(_shared_out(call, (4, 3), kind.mesh))(q, k, v)
    return out, (q, k, v, log_sums, out)


def _backward(kind: _Kind, saved: tuple[Array, ...], grad: Array) -> tuple[Array, ...]:
    def call(q: Array, k: Array, v: Array, log_sums: Array, out: Array, grad: Array) -> tuple[Array, ...]:
        config = _config(kind, q, k, backward=True)
        target = _call("__cudnn$fmhaSoftmaxBackward", config, [_turned(q), _turned(k), _turned(v)])
        return tuple(x.swapaxes(1, 2) for x in target(q, k, v, log_sums, grad, out))

    return _batched(_shared_out(call, (4, 4, 4), kind.mesh))(*saved, grad)


_attention.defvjp(_forward, _backward)


def _turned(x: Array) -> jax.ShapeDtypeStruct:
    batch, length, heads, depth = x.shape
    return jax.ShapeDtypeStruct((batch, heads, length, depth), x.dtype)


def _call(target: str, config: str, results: list[jax.ShapeDtypeStruct]) -> Callable[..., list[Array]]:
    """The kernel: operands as they are stored by rows, results of four dimensions with heads outside of places."""
    workspace = jax.ShapeDtypeStruct((0,), jnp.uint8)  # XLA makes it as large as it needs to be
    layouts = [_HEADS_OUTSIDE if len(result.shape) == 4 else tuple(range(len(result.shape))) for result in results]
    called = jax.ffi.ffi_call(
        target,
        [*results, workspace],
        output_layouts=[*layouts, (0,)],
        custom_call_api_version=2,
        legacy_backend_config=config,
        vmap_method="sequential",
    )
    return lambda *operands: list(called(*operands))[:-1]


def _shared_out(
    call: Callable[..., tuple[Array, ...]], dimensions: tuple[int, ...], mesh: AbstractMesh | None
) -> Callable[..., tuple[Array, ...]]:
    """The same over a mesh. Arrays of four dimensions are [batch, length, heads, depth], of three [batch, heads,
    length]; `dimensions` are those of the results."""
    if mesh is None:
        return call

    def shared(*operands: Array) -> tuple[Array, ...]:
        (size, _, heads, _), groups, tensor = operands[0].shape, operands[1].shape[2], mesh.shape["tensor"]
        batch = BATCH_AXES if size % meshes.batch_shards(mesh) == 0 else None
        head = "tensor" if heads % tensor == 0 and groups % tensor == 0 else None
        specs = {4: PartitionSpec(batch, None, head), 3: PartitionSpec(batch, head)}
        given, results = tuple(specs[x.ndim] for x in operands), tuple(specs[count] for count in dimensions)
        found: tuple[Array, ...] = jax.shard_map(call, mesh=mesh, in_specs=given, out_specs=results, check_vma=False)(
            *operands
        )
        return found

    return shared


def _batched(call: Callable[..., tuple[Array, ...]]) -> Callable[..., tuple[Array, ...]]:
    """The same where it is mapped over: what it is mapped over becomes a part of the batch."""
    batched = jax.custom_batching.custom_vmap(call)

    @batched.def_vmap
    def rule(size: int, mapped: list[bool], *operands: Array) -> tuple[tuple[Array, ...], tuple[bool, ...]]:
        whole = [
            x if is_mapped else jnp.broadcast_to(x, (size, *x.shape))
            for x, is_mapped in zip(operands, mapped, strict=True)
        ]
        results = _batched(call)(*(x.reshape(-1, *x.shape[2:]) for x in whole))
        return tuple(x.reshape(size, -1, *x.shape[1:]) for x in results), (True,) * len(results)

    return batched


def _config(kind: _Kind, q: Array, k: Array, *, backward: bool) -> str:
    (batch, length, heads, depth), keys = q.shape, k.shape[1]
    scores = {
        "element_type": _TYPES[jnp.dtype(q.dtype)],
        "dimensions": [str(size) for size in (batch, heads, length, keys)],
        "layout": {"minor_to_major": ["3", "2", "1", "0"]},
        "is_dynamic_dimension": [False] * 4,
    }
    fused: dict[str, Any] = {
        "algorithm": {
            "algo_id": "0",
            "math_type": "TENSOR_OP_MATH",
            "tuning_knobs": {"17": "1", "24": "0"},
            "is_cudnn_frontend": True,
            "workspace_size": "0",
        },
        "fmha_scale": 1 / math.sqrt(depth),
        "intermediate_tensor_shape": scores,
        "is_flash_attention": True,
        "mask_type": "CAUSAL" if kind.causal else "NO_MASK",
        "dropout_rate": 0.0,
        "seed": 0,
        "sliding_window_length": 0,
        "max_seg_per_batch": 1,
        "is_paged_attention": False,
    }
    if backward:
        fused["force_deterministic"] = kind.deterministic
    for name, (left, right, left_batch, right_batch) in _PRODUCTS.items():
        if ("grad" in name) == backward:
            fused[name] = {
                "lhs_contracting_dimensions": [str(left)],
                "rhs_contracting_dimensions": [str(right)],
                "lhs_batch_dimensions": [str(i) for i in left_batch],
                "rhs_batch_dimensions": [str(i) for i in right_batch],
            }
    return json.dumps({"operation_queue_id": "0", "cudnn_fmha_backend_config": fused})
