"""Transformers as a loop over their layers, and what of a layer is kept for the backward pass, change no number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bigctl.config import schema
from bigctl.models.bert import BertClassifier
from bigctl.models.decoder import Decoder
from bigctl.models.vit import Vit

LAYERS = 3
SIZES: dict[str, Any] = {"layers": LAYERS, "width": 32, "heads": 2, "intermediate": 128, "dropout": 0.2}


def tokens() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(1, 23, (16, 32)))


def bert(**options: Any) -> nnx.Module:
    sizes = {**SIZES, **{name: options.pop(name) for name in SIZES if name in options}}
    config = schema.Bert(**sizes, positions=32, lora=schema.Lora(rank=2), **options)
    return BertClassifier(config, 23, 3, rngs=nnx.Rngs(0))


def vit(**options: Any) -> nnx.Module:
    return Vit(schema.Vit(**SIZES, patch=2, drop_path=0.5, **options), (16, 8, 1), 3, rngs=nnx.Rngs(0))


def gpt(**options: Any) -> nnx.Module:
    return Decoder(schema.Gpt(**SIZES, context=32, **options), 23, rngs=nnx.Rngs(0))


BUILD: dict[str, Callable[..., Any]] = {"bert": bert, "vit": vit, "gpt": gpt}


def inputs(name: str) -> tuple[jax.Array, ...]:
    if name == "vit":
        return (jax.random.normal(jax.random.key(1), (16, 16, 8, 1)),)
    return (tokens(), jnp.full(16, 30), jnp.full(16, 30)) if name == "bert" else (tokens(),)


def loss_of(name: str, **options: Any) -> tuple[Any, Any]:
    """(a loss of parameters, these)."""
    structure, params, rest = nnx.split(nnx.jit(lambda: BUILD[name](**options))(), nnx.Param, ...)
    params = nnx.to_pure_dict(params)
    if name == "bert":  # else the gradient of one half of what is adapted is nothing
        params = jax.tree.map(lambda p: p + 0.05, params)

    def loss(params: Any) -> jax.Array:
        found = nnx.merge(structure, params, rest)(*inputs(name), key=jax.random.key(3))
        return jnp.sum(jnp.sin(found.astype(jnp.float32)))

    return loss, params


@pytest.fixture(scope="module")
def plain() -> Callable[[str], tuple[Any, Any]]:
    found: dict[str, Any] = {}

    def of(name: str) -> tuple[Any, Any]:
        if name not in found:
            loss, params = loss_of(name)
            found[name] = params, jax.jit(jax.value_and_grad(loss))(params)
        return found[name]

    return of


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bert", {"scan": True}),
        ("bert", {"remat": "names"}),
        ("vit", {"scan": True, "remat": "offload"}),
        ("gpt", {"scan": True, "remat": "names"}),
    ],
)
def test_loops_and_remat_change_no_number(name: str, options: dict[str, Any], plain: Any) -> None:
    """Dropout, stochastic depth and low-rank adaptation among them."""
    params, (expected, slopes) = plain(name)
    value, grads = jax.jit(jax.value_and_grad(loss_of(name, **options)[0]))(params)
    np.testing.assert_allclose(value, expected, rtol=2e-6)
    assert all(float(np.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(slopes))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * max(np.abs(b).max(), 1)), grads, slopes)


def test_each_policy_keeps_less_than_the_one_before() -> None:
    def kept(remat: str) -> int:
        """Bytes for the backward pass besides what layers read."""
        loss, params = loss_of("gpt", remat=remat, scan=True)
        leaves = jax.tree.leaves(jax.eval_shape(lambda p: jax.vjp(loss, p)[1], params))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    sizes = [kept(remat) for remat in ("none", "dots", "names", "full")]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4, sizes
    array = LAYERS * 16 * 32 * 32 * 4
    # Three projected, one attended, one read by the feed-forward part; less what those stand for.
    assert sizes[2] - sizes[3] == pytest.approx(5 * array, rel=0.01)


def test_a_loop_has_one_layer_whatever_their_number() -> None:
    def equations(layers: int) -> int:
        structure, state = nnx.split(nnx.eval_shape(lambda: bert(layers=layers, scan=True)))
        return str(jax.make_jaxpr(lambda s: nnx.merge(structure, s)(*inputs("bert")))(state)).count("dot_general")

    assert equations(2) == equations(5)
