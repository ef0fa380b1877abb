"""Which kernel computes attention follows from the mesh that a program is traced for, and is told."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import bigctl
from bigctl.engine import dry_run
from bigctl.models import attention, cudnn, splash
from bigctl.parallel import mesh as meshes


def mesh_of(platform: str) -> Mesh:
    """As much as a program looks at of a mesh of one device, which is not on this machine."""
    device = SimpleNamespace(platform=platform)
    return cast(Mesh, SimpleNamespace(devices=SimpleNamespace(flat=[device]), size=1))


@pytest.mark.parametrize(
    ("platform", "dtype", "kernel"),
    [
        ("cpu", jnp.float32, "einsum"),
        ("cpu", jnp.bfloat16, "einsum"),
        ("gpu", jnp.bfloat16, "cudnn"),
        ("gpu", jnp.float32, "xla"),
        ("tpu", jnp.bfloat16, "xla"),
        (None, jnp.bfloat16, "einsum"),
    ],
)
def test_the_kernel_is_that_of_the_devices_of_the_mesh(
    monkeypatch: pytest.MonkeyPatch, platform: str | None, dtype: jnp.dtype, kernel: str
) -> None:
    used: list[str] = []

    def called(q: jax.Array, k: jax.Array, v: jax.Array, *, is_causal: bool, implementation: str) -> jax.Array:
        used.append(implementation)
        return q

    def fused(q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool) -> jax.Array:
        return called(q, k, v, is_causal=causal, implementation="cudnn")

    monkeypatch.setattr(jax.nn, "dot_product_attention", called)
    monkeypatch.setattr(cudnn, "cudnn_attention", fused)
    heads = jax.ShapeDtypeStruct((2, 6, 4, 8), dtype)
    with meshes.recorded_kernels() as kernels:
        if platform is None:
            jax.eval_shape(lambda x: attention.causal_attention(x, x, x), heads)
        else:
            with meshes.used(mesh_of(platform)):
                jax.eval_shape(lambda x: attention.causal_attention(x, x, x), heads)
    assert kernels == {"attention": kernel}
    assert used == ([] if kernel == "einsum" else [kernel])


def test_a_dry_run_tells_the_kernels(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 100)
    small = ["model=gpt_nano", "model.layers=1", "model.width=16", "model.heads=2", "recipe.block=16"]
    data = ["data=text", f"data.path={tmp_path / 'text.txt'}", "train.steps=1", "train.batch_size=8"]
    report = dry_run.report(bigctl.compose(["recipe=gpt_lm", *small, *data]))
    assert report["kernels"] == {"attention": "einsum"}
    assert "kernels: attention by einsum" in dry_run.text(report).splitlines()
    plain = dry_run.report(bigctl.compose(["recipe=mlp_cls", "train.steps=1"]))
    assert plain["kernels"] == {} and "kernels" not in dry_run.text(plain)


@pytest.mark.parametrize(
    ("platform", "length", "kernel"),
    [("cpu", 128, "einsum"), (None, 128, "einsum"), ("gpu", 128, "xla"), ("tpu", 128, "splash"), ("tpu", 96, "xla")],
)
def test_what_keeps_documents_apart_is_told(
    monkeypatch: pytest.MonkeyPatch, platform: str | None, length: int, kernel: str
) -> None:
    monkeypatch.setattr(splash, "splash_attention", lambda q, k, v, segments: q)
    heads, segments = jax.ShapeDtypeStruct((2, length, 4, 8), jnp.bfloat16), jnp.zeros((2, length), jnp.int32)
    with meshes.recorded_kernels() as kernels, meshes.used(mesh_of(platform)) if platform else nullcontext():
        shape = jax.eval_shape(lambda x: attention.causal_attention(x, x, x, segments), heads)
    assert kernels == {"attention": kernel if kernel == "splash" else f"{kernel} with a mask of documents"}
    assert shape.shape == heads.shape


def documents(length: int) -> tuple[list[jax.Array], jax.Array, jax.Array]:
    """Queries of 4 heads, keys and values of 2; segments, some of them padding; and what each place sees."""
    rng = np.random.default_rng(0)
    parts = [jnp.asarray(rng.normal(size=(2, length, heads, 64)), jnp.float32) for heads in (4, 2, 2)]
    segments = np.sort(rng.integers(1, 6, (2, length)), 1)
    segments[:, -9:] = 0
    places = np.arange(length)
    visible = (places <= places[:, None]) & (segments[:, None, :] == segments[:, :, None])
    return parts, jnp.asarray(segments), jnp.asarray(visible)


def test_jax_own_attention_with_a_mask_is_the_same() -> None:
    (q, k, v), segments, visible = documents(24)
    with meshes.used(mesh_of("gpu")):
        found = jax.jit(attention.causal_attention)(q, k, v, segments)
    expected = attention.cached_attention(q, k.swapaxes(1, 2), v.swapaxes(1, 2), visible)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_kernel_of_tpus_and_its_gradient_are_those_of_a_mask() -> None:
    parts, segments, visible = documents(128)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=parts[0].shape))

    def masked(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return (weights * attention.cached_attention(q, k.swapaxes(1, 2), v.swapaxes(1, 2), visible)).sum()

    def fused(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return (weights * splash.splash_attention(q, k, v, segments, interpret=True)).sum()

    found, expected = (jax.value_and_grad(each, (0, 1, 2))(*parts) for each in (fused, masked))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
