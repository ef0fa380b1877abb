"""Attention by cuDNN: what is asked of the kernels. Their results were held against `cached_attention` on an H100, by
forward and gradient, with grouped heads, mapped over, with and without a fixed order; here they are only lowered."""

from __future__ import annotations

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bigctl.models import attention, cudnn
from bigctl.parallel import axes
from bigctl.parallel import mesh as meshes
from bigctl.planning import devices

SHAPE = (2, 16, 4, 8)


def lowered(monkeypatch: pytest.MonkeyPatch, *, exact: bool, mapped: bool = False, layers: int = 3) -> str:
    """The program of some layers of causal attention and their gradient, for an NVIDIA GPU that is not here."""
    monkeypatch.setattr(attention.meshes, "platform_in_use", lambda: "gpu")

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        with meshes.used(Mesh(np.array(jax.devices()[:1]), ("data",)), deterministic=exact):
            for _ in range(layers):
                q = attention.causal_attention(q, k, v)
        return q.astype(jnp.float32).sum()

    q = jnp.zeros((3, *SHAPE) if mapped else SHAPE, jnp.bfloat16)
    k = jnp.zeros(q.shape[:-2] + (2, 8), jnp.bfloat16)
    gradient = jax.grad(loss, (0, 1, 2))
    traced = jax.jit(jax.vmap(gradient) if mapped else gradient).trace(q, k, k)
    return str(traced.lower(lowering_platforms=("cuda",)).as_text())


def configs(text: str, target: str) -> list[dict[str, object]]:
    found = re.findall(rf"@{re.escape(target)}\(.*?backend_config = \"(.*?)\"(?:,|}})", text)
    return [json.loads(each.replace("\\22", '"'))["cudnn_fmha_backend_config"] for each in found]


@pytest.mark.parametrize("exact", [True, False])
def test_every_layer_says_from_the_start_whether_its_gradient_has_a_fixed_order(
    monkeypatch: pytest.MonkeyPatch, exact: bool
) -> None:
    """XLA knows a kernel by what the first of equal calls says once it is compiled; others must say the same."""
    text = lowered(monkeypatch, exact=exact)
    backward = configs(text, "__cudnn$fmhaSoftmaxBackward")
    assert len(backward) == 3 and len(configs(text, "__cudnn$fmhaSoftmax")) == 3
    assert [each["force_deterministic"] for each in backward] == [exact] * 3
    assert {each["mask_type"] for each in backward} == {"CAUSAL"}


def test_what_is_mapped_over_becomes_a_part_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    (config,) = configs(lowered(monkeypatch, exact=True, mapped=True, layers=1), "__cudnn$fmhaSoftmaxBackward")
    shape = config["intermediate_tensor_shape"]
    assert isinstance(shape, dict) and shape["dimensions"] == ["6", "4", "16", "16"]


@pytest.mark.parametrize(
    ("batch", "groups", "mapped", "each"),
    [(4, 4, 0, (2, 2)), (3, 4, 0, (3, 2)), (4, 1, 0, (2, 4)), (1, 4, 6, (3, 2))],
)
def test_each_device_computes_its_part_or_the_whole_where_it_does_not_divide(
    monkeypatch: pytest.MonkeyPatch, batch: int, groups: int, mapped: int, each: tuple[int, int]
) -> None:
    """Also of examples that are mapped over one by one, as private training has them."""
    monkeypatch.setattr(attention.meshes, "platform_in_use", lambda: "gpu")
    sizes = {**dict.fromkeys(axes.NAMES, 1), "data": 2, "tensor": 2}
    kinds = (AxisType.Auto,) * len(sizes)
    mesh = Mesh(np.array(devices.simulated(4)).reshape(*sizes.values()), axes.NAMES, axis_types=kinds)
    whole = NamedSharding(mesh, PartitionSpec())
    outside = (mapped,) if mapped else ()
    q, k = (
        jax.ShapeDtypeStruct((*outside, batch, 16, heads, 8), jnp.bfloat16, sharding=whole) for heads in (4, groups)
    )

    def loss(q: jax.Array, k: jax.Array) -> jax.Array:
        with meshes.used(mesh):
            return attention.causal_attention(q, k, k).astype(jnp.float32).sum()

    gradient = jax.grad(loss, (0, 1))
    traced = jax.jit(jax.vmap(gradient) if mapped else gradient).trace(q, k)
    text = str(traced.lower(lowering_platforms=("cuda",)).as_text())
    for target in ("__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"):
        (config,) = configs(text, target)
        shape = config["intermediate_tensor_shape"]
        assert isinstance(shape, dict) and shape["dimensions"][:2] == [str(size) for size in each], target


@pytest.mark.parametrize(
    ("length", "depth", "heads", "groups", "can"),
    [(16, 64, 4, 4, True), (16, 64, 4, 2, True), (15, 64, 4, 4, False), (16, 60, 4, 4, False), (16, 256, 4, 4, False)],
)
def test_other_shapes_are_left_to_xla(length: int, depth: int, heads: int, groups: int, can: bool) -> None:
    assert cudnn.can(length, depth, heads, groups) is can
