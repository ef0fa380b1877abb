"""ResNets: their sizes, and what batch normalisation and stochastic depth promise."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bigctl.config import schema
from bigctl.config.compose import compose
from bigctl.errors import ConfigError
from bigctl.models.batch_norm import BatchNorm
from bigctl.models.layers import DropPath
from bigctl.models.resnet import Resnet

TINY = {"blocks": [1, 1], "width": 3}


def tiny(**options: Any) -> Any:
    """One whose parameters are made in one program."""
    return nnx.jit(lambda: Resnet(schema.Resnet(**{**TINY, **options}), (6, 6, 1), 2, rngs=nnx.Rngs(0)))()


def pictures(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(
    ("preset", "side", "classes", "parameters"),
    [
        ("resnet18", 224, 1000, 11_689_512), ("resnet34", 224, 1000, 21_797_672), ("resnet50", 224, 1000, 25_557_032),
        ("resnet20", 32, 10, 272_474),
    ],
)  # fmt: skip
def test_sizes_are_those_of_the_paper(preset: str, side: int, classes: int, parameters: int) -> None:
    """At 224 pixels those that torchvision counts; at 32 those of the usual networks for CIFAR, with projections."""
    config = compose([f"model={preset}"], partial=True).config.model
    model = nnx.eval_shape(lambda: config.build((side, side, 3), classes, rngs=nnx.Rngs(0)))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == parameters


def test_small_images_keep_their_size_and_photographs_do_not() -> None:
    def small(side: int, stem: str) -> bool:
        config = schema.Resnet(**TINY, stem=stem)
        return bool(nnx.eval_shape(lambda: Resnet(config, (side, side, 3), 2, rngs=nnx.Rngs(0))).small)

    assert [small(63, "auto"), small(64, "auto"), small(64, "cifar"), small(32, "imagenet")] == [
        True,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize(("options", "side"), [({"blocks": [1] * 4}, 7), ({"stem": "imagenet"}, 7)])
def test_images_used_up_by_stages_are_refused(options: dict[str, Any], side: int) -> None:
    with pytest.raises(ConfigError, match=f"images of {side}x{side} are used up") as error:
        Resnet(schema.Resnet(**{**TINY, **options}), (side, side, 1), 2, rngs=nnx.Rngs(0))
    assert error.value.hint and "model.stem=cifar" in error.value.hint


def test_batch_norm_leaves_examples_that_pad_out() -> None:
    layer, x = BatchNorm(3), np.random.default_rng(0).normal(50.0, 3.0, size=(16, 4, 4, 3)).astype(np.float32)
    given = np.concatenate([x, np.full((5, 4, 4, 3), np.nan, np.float32)])
    mask = jnp.asarray([1.0] * 16 + [0.0] * 5)
    wide = x.astype(np.float64)
    mean, var = wide.mean((0, 1, 2)), wide.var((0, 1, 2))
    y = layer(jnp.asarray(given), training=True, mask=mask)[:16]
    np.testing.assert_allclose(y, (wide - mean) / np.sqrt(var + 1e-5), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(layer.mean[...], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(layer.var[...], 0.9 + 0.1 * wide.var((0, 1, 2), ddof=1), rtol=1e-3)
    held = np.asarray(layer.mean[...])
    later = layer(jnp.asarray(x[:2]), training=False, mask=None)
    np.testing.assert_allclose(later, (x[:2] - held) / np.sqrt(layer.var[...] + 1e-5), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(layer.mean[...], held)


def test_a_block_begins_as_nothing_but_its_shortcut() -> None:
    model = tiny()
    assert not np.any(model.blocks[0].convs[-1].norm.scale[...]) and np.all(model.blocks[0].convs[0].norm.scale[...])


def test_what_is_computed_anew_is_the_same() -> None:
    """Gradients and running statistics with `remat` are those without it."""
    found, x = [], pictures(4, 6, 6, 1)
    for remat in ("none", "full"):
        structure, params, rest = nnx.split(tiny(blocks=[1], remat=remat, drop_path=0.3), nnx.Param, ...)

        def total(params: Any, rest: Any, structure: Any = structure) -> Any:
            model = nnx.merge(structure, params, rest)
            loss = jnp.square(model(x, key=jax.random.key(0), mask=jnp.ones(4))).sum()
            return loss, nnx.state(model, nnx.BatchStat)

        leaves = jax.tree.leaves(jax.jit(jax.grad(total, has_aux=True))(params, nnx.to_pure_dict(rest)))
        found.append(np.concatenate([np.ravel(leaf) for leaf in leaves]))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5, atol=1e-6)


def test_sixteen_bits_stay_sixteen_bits_and_statistics_are_float32() -> None:
    def run(x: jax.Array) -> Any:
        model = tiny(drop_path=0.3)
        nnx.update(model, jax.tree.map(lambda p: p.astype(jnp.bfloat16), nnx.state(model, nnx.Param)))
        return model(x, key=jax.random.key(0), mask=jnp.ones(4)), jax.tree.leaves(nnx.state(model, nnx.BatchStat))

    logits, statistics = jax.eval_shape(run, jax.ShapeDtypeStruct((4, 6, 6, 1), jnp.bfloat16))
    assert logits.dtype == jnp.bfloat16 and {leaf.dtype for leaf in statistics} == {jnp.dtype("float32")}


def test_stochastic_depth_leaves_whole_branches_out_and_keeps_the_expectation() -> None:
    layer, x = DropPath(0.4, 0.5), jnp.ones((5000, 2, 3))
    y = np.asarray(layer(x, jax.random.key(0)))
    kept = y[:, 0, 0] != 0
    assert kept.mean() == pytest.approx(0.8, abs=0.02)
    np.testing.assert_allclose(y, np.broadcast_to(kept[:, None, None] / 0.8, y.shape), rtol=1e-6)
    assert layer(x, None) is x and DropPath(0.4, 0.0).rate is None and DropPath(0.0, 1.0).rate is None


def test_frozen_statistics_are_used_and_kept_in_training():
    def statistics(model: Any) -> list[np.ndarray]:
        return [np.asarray(value) for value in jax.tree.leaves(nnx.state(model, nnx.BatchStat))]

    x, key = pictures(4, 6, 6, 1), jax.random.key(1)
    frozen, batch, before = tiny(norm="frozen"), tiny(), statistics(tiny())
    apply = nnx.jit(lambda model, x, key: model(x, key=key))
    inferred = apply(frozen, x, None)
    np.testing.assert_allclose(apply(frozen, x, key), inferred, rtol=1e-5)
    assert not np.allclose(apply(batch, x, key), inferred, rtol=1e-3)
    for now, new, then in zip(statistics(frozen), statistics(batch), before, strict=True):
        np.testing.assert_array_equal(now, then)
        assert not np.allclose(new, then)
