"""Promises of EfficientNet-Lite and of depthwise convolution."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from bigctl.config import schema
from bigctl.errors import ConfigError
from bigctl.models.depthwise import depthwise_conv2d, same_pads
from bigctl.models.efficientnet import EfficientNet, stages


@pytest.mark.parametrize(
    "size, stride, sides", [(3, 1, (7, 6)), (3, 2, (8, 7)), (5, 1, (4, 5)), (5, 2, (9, 8)), (5, 2, (2, 1))]
)
def test_depthwise_convolution_and_its_gradients_are_those_of_xla(size, stride, sides):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, *sides, 4)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(size, size, 1, 4)), jnp.float32)

    def plain(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=4
        )

    def ours(x, kernel):
        return depthwise_conv2d(x, kernel, stride, same_pads(sides, size, stride))

    shape = jax.eval_shape(plain, x, kernel).shape
    dy = jnp.asarray(rng.normal(size=shape), jnp.float32)

    @jax.jit
    def both(x, kernel, dy):
        made = [jax.vjp(function, x, kernel) for function in (ours, plain)]
        return [(value, *pull(dy)) for value, pull in made]

    for found, expected in zip(*both(x, kernel, dy), strict=True):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-5)


FAMILY = [(1.0, 1.0, 4652008), (1.0, 1.1, 5416680), (1.1, 1.2, 6092072), (1.2, 1.4, 8197096), (1.4, 1.8, 13006568)]


@pytest.mark.parametrize("width, depth, parameters", FAMILY)
def test_multipliers_make_the_models_of_the_family(width, depth, parameters):
    """Lite0 to Lite4, with the number of parameters that timm's have."""
    config = schema.EfficientNet(width=width, depth=depth)
    model = nnx.eval_shape(lambda: EfficientNet(config, (64, 64, 3), 1000, rngs=nnx.Rngs(0)))
    assert sum(value.size for value in jax.tree.leaves(nnx.state(model, nnx.Param))) == parameters


def test_frozen_normalisation_is_that_of_inference():
    tiny = {"width": 0.1, "depth": 0.2}
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)
    models = {
        n: nnx.jit(
            lambda n: EfficientNet(schema.EfficientNet(norm=n, **tiny), (32, 32, 3), 3, rngs=nnx.Rngs(0)),
            static_argnums=0,
        )(n)
        for n in ("frozen", "batch")
    }
    apply = nnx.jit(lambda model, x, key: model(x, key=key))
    trained, inferred = (apply(models["frozen"], x, key) for key in (jax.random.key(0), None))
    np.testing.assert_allclose(trained, inferred, rtol=1e-5)
    assert not np.allclose(apply(models["batch"], x, jax.random.key(0)), inferred, rtol=1e-3)
    assert float(jnp.abs(models["frozen"].stem.norm.mean[...]).max()) == 0
    assert float(jnp.abs(models["batch"].stem.norm.mean[...]).max()) > 0
    assert len(stages(schema.EfficientNet(**tiny))) == 7


def test_images_of_which_nothing_is_left_are_a_config_error() -> None:
    def built(side: int) -> None:
        nnx.eval_shape(lambda: EfficientNet(schema.EfficientNet(), (side, 40, 3), 2, rngs=nnx.Rngs(0)))

    built(17)
    with pytest.raises(ConfigError, match="16x40 are used up before the last of 7 stages"):
        built(16)
