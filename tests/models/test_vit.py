"""Vision transformers: their sizes, and what pooling, places and registers promise."""

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
from bigctl.models.vit import Vit, sincos


def make(**options: Any) -> Any:
    config = schema.Vit(**{"patch": 2, "layers": 1, "width": 8, "heads": 2, "intermediate": 8, **options})
    return nnx.jit(lambda: Vit(config, (6, 4, 1), 3, rngs=nnx.Rngs(0)))()


@pytest.mark.parametrize(
    ("preset", "parameters"), [("vit_ti", 5_717_416), ("vit_s", 22_050_664), ("vit_b", 86_567_656)]
)
def test_sizes_are_those_of_the_papers(preset: str, parameters: int) -> None:
    """Those that timm counts, with 1000 classes at 224 pixels."""
    config = compose([f"model={preset}"], partial=True).config.model
    model = nnx.eval_shape(lambda: config.build((224, 224, 3), 1000, rngs=nnx.Rngs(0)))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == parameters


@pytest.mark.parametrize(("pool", "position"), [("cls", "learned"), ("mean", "sincos")])
def test_images_are_told_apart_by_where_things_are(pool: str, position: str) -> None:
    """Each pooling knows the places of patches, with registers too; what is computed anew is the same."""
    model = make(pool=pool, position=position, registers=2)
    model.head.kernel[...] = model.head.kernel[...] * 50
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 4, 1)), jnp.float32)
    run = nnx.jit(lambda model, x: model(x))
    logits = np.asarray(run(model, x))
    assert logits.shape == (2, 3)
    assert not np.allclose(logits, run(model, jnp.roll(x, 2, axis=1)), atol=1e-5)  # by one patch
    model.remat = "full"
    np.testing.assert_allclose(run(model, x), logits, rtol=1e-5, atol=1e-6)


def test_fixed_places_all_differ() -> None:
    table = sincos(3, 5, 16)
    assert table.shape == (15, 16) and table.dtype == np.float32
    assert len(np.unique(table.round(4), axis=0)) == 15
    np.testing.assert_allclose(np.square(table).sum(1), 8, rtol=1e-5)


@pytest.mark.parametrize(("pool", "position"), [("cls", "learned"), ("mean", "sincos")])
def test_smaller_images_have_the_places_between_those_of_whole_ones(pool: str, position: str) -> None:
    model = make(pool=pool, position=position)
    grid, first = (3, 2), int(pool == "cls")
    table = sincos(*grid, 8) if model.position is None else np.asarray(model.position[...])[first:]
    run = nnx.jit(lambda model, x: model._tokens(x)[:, first:])
    seen = np.asarray(run(model, jnp.zeros((1, 4, 2, 1))) - model.embed(jnp.zeros((1, 1, 4))))[0]
    torch = pytest.importorskip("torch")
    whole = torch.tensor(table.reshape(1, *grid, 8)).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(whole, (2, 1), mode="bicubic", antialias=True)  # as timm does it
    np.testing.assert_allclose(seen, expected.permute(0, 2, 3, 1).reshape(2, 8).numpy(), rtol=1e-5, atol=1e-6)
    again = np.asarray(run(model, jnp.zeros((1, 6, 4, 1))) - model.embed(jnp.zeros((1, 1, 4))))[0]
    np.testing.assert_allclose(again, table, atol=1e-6)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="no whole number of patches of 16x16") as error:
        nnx.eval_shape(lambda: Vit(schema.Vit(), (8, 8, 1), 3, rngs=nnx.Rngs(0)))
    assert error.value.hint and "such as 4" in error.value.hint  # 8 would be one patch
    with pytest.raises(ConfigError, match="images of 6x4 are no whole number of patches of 4x4") as error:
        make(patch=4)
    assert error.value.hint and "such as 2" in error.value.hint
    with pytest.raises(ConfigError, match=r"model.width=8 is not divisible by model.heads=3"):
        compose(["recipe=vit_cls", "model.width=8", "model.heads=3"])
