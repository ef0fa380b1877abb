"""Which kernel computes attention follows from the mesh that a program is traced for, and is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh

import bigctl
from bigctl.engine import dry_run
from bigctl.models import attention
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

    monkeypatch.setattr(jax.nn, "dot_product_attention", called)
    heads = jax.ShapeDtypeStruct((2, 5, 4, 8), dtype)
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
