"""ConvNeXt: its sizes, and what does not fit."""

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
from bigctl.models.convnext import Convnext


def make(side: int = 4, **options: Any) -> Any:
    config = schema.Convnext(**{"patch": 1, "blocks": [1, 1], "widths": [4, 8], "layer_scale": 1.0, **options})
    return nnx.jit(lambda: Convnext(config, (side, side, 1), 3, rngs=nnx.Rngs(0)))()


@pytest.mark.parametrize(("preset", "parameters"), [("convnext_t", 28_589_128), ("convnext_s", 50_223_688)])
def test_sizes_are_those_of_the_paper(preset: str, parameters: int) -> None:
    """Those that torchvision counts, with 1000 classes."""
    config = compose([f"model={preset}"], partial=True).config.model
    model = nnx.eval_shape(lambda: config.build((224, 224, 3), 1000, rngs=nnx.Rngs(0)))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == parameters


def test_what_is_computed_anew_is_the_same() -> None:
    """Gradients with `remat` are those without it; branches are left out alike."""
    found, x = [], jnp.asarray(np.random.default_rng(0).normal(size=(4, 4, 4, 1)), jnp.float32)
    for remat in ("none", "full"):
        structure, state = nnx.split(make(remat=remat, drop_path=0.5, blocks=[1], widths=[4]))

        def total(state: Any, structure: Any = structure) -> Any:
            return jnp.square(nnx.merge(structure, state)(x, key=jax.random.key(0))).sum()

        leaves = jax.tree.leaves(jax.jit(jax.grad(total))(state))
        found.append(np.concatenate([np.ravel(leaf) for leaf in leaves]))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5, atol=1e-6)
    assert np.abs(found[0]).max() > 0


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="images of 4x4 are used up before the last of 2 stages") as error:
        make(patch=4)
    assert error.value.hint and "images of 8x8 or more" in error.value.hint
    with pytest.raises(ConfigError, match=r"model.blocks tells of 1 stages, model.widths of 4"):
        compose(["recipe=vit_cls", "model=convnext_t", "model.blocks=[2]"])
