"""CNN and MLP: their documented layouts, and what their layers promise."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bigctl.config import schema
from bigctl.errors import ConfigError
from bigctl.models.cnn import CNN
from bigctl.models.layers import ACTIVATIONS, Conv, Dropout, Hyperparameter, Norm
from bigctl.models.mlp import MLP


def rngs() -> nnx.Rngs:
    return nnx.Rngs(params=jax.random.key(0))


def shapes(model: nnx.Module) -> dict[str, tuple[int, ...]]:
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {"/".join(map(str, path)): value.shape for path, value in flat}


def count(model: nnx.Module) -> int:
    return sum(math.prod(shape) for shape in shapes(model).values())


def output_shape(model: nnx.Module, *inputs: int) -> tuple[int, ...]:
    graphdef, state = nnx.split(model)
    return jax.eval_shape(lambda s, x: nnx.merge(graphdef, s)(x), state, jax.ShapeDtypeStruct(inputs, "float32")).shape


def pictures(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


# ---------------------------------------------------------------------------------------------------------- layouts


def test_default_cnn_on_28x28_is_the_classic_network() -> None:
    """Conv 32 3x3, pool, conv 64 3x3, pool, dense 128, 10 outputs; without padding, as in the usual tutorials."""
    model = nnx.eval_shape(lambda: CNN(schema.Cnn(), (28, 28, 1), 10, rngs=rngs()))
    assert shapes(model) == {
        "convs/0/kernel": (3, 3, 1, 32), "convs/0/bias": (32,),
        "convs/1/kernel": (3, 3, 32, 64), "convs/1/bias": (64,),
        "layers/0/kernel": (5 * 5 * 64, 128), "layers/0/bias": (128,),
        "head/kernel": (128, 10), "head/bias": (10,),
    }  # fmt: skip
    assert count(model) == 225_034
    assert [conv.padding for conv in model.convs] == ["valid", "valid"]
    assert output_shape(model, 2, 28, 28, 1) == (2, 10)


def test_images_too_small_for_that_are_padded() -> None:
    model = nnx.eval_shape(lambda: CNN(schema.Cnn(), (8, 8, 1), 10, rngs=rngs()))
    assert [conv.padding for conv in model.convs] == ["same", "same"]
    assert shapes(model)["layers/0/kernel"] == (2 * 2 * 64, 128)
    assert count(model) == 53_002
    assert output_shape(model, 2, 8, 8, 1) == (2, 10)


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"padding": "valid"}, (8, 8, 1)),
        ({}, (2, 2, 3)),
        ({"channels": [4, 4, 4, 4]}, (8, 8, 1)),
        ({"channels": [4], "pool": 9}, (8, 8, 1)),
        ({}, (28, 3, 1)),
    ],
)
def test_images_used_up_by_pools_are_refused(options: dict[str, Any], shape: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match=f"images of {shape[0]}x{shape[1]} are used up by convolution") as error:
        CNN(schema.Cnn(**options), shape, 10, rngs=rngs())
    assert error.value.hint and "model.padding=same" in error.value.hint


def test_every_number_of_the_layout_can_be_set() -> None:
    config = schema.Cnn(channels=[4, 6, 8], kernel_size=5, pool=1, padding="same", hidden=[16, 12], norm="batch")
    model = nnx.eval_shape(lambda: CNN(config, (6, 7, 3), 5, rngs=rngs()))
    found = shapes(model)
    assert found["convs/2/kernel"] == (5, 5, 6, 8)
    assert found["layers/0/kernel"] == (6 * 7 * 8, 16) and found["layers/1/kernel"] == (16, 12)
    assert found["norms/1/norm/scale"] == (12,) and found["convs/0/norm/norm/scale"] == (4,)
    assert found["head/kernel"] == (12, 5)


def test_no_dense_layers_connect_the_output_to_the_last_pool() -> None:
    model = nnx.eval_shape(lambda: CNN(schema.Cnn(channels=[4], hidden=[]), (8, 8, 1), 3, rngs=rngs()))
    assert shapes(model)["head/kernel"] == (3 * 3 * 4, 3)


def test_default_mlp_layout() -> None:
    model: Any = MLP(schema.Mlp(), (30,), 1, rngs=rngs())
    assert shapes(model) == {
        "layers/0/kernel": (30, 64), "layers/0/bias": (64,),
        "layers/1/kernel": (64, 32), "layers/1/bias": (32,),
        "head/kernel": (32, 1), "head/bias": (1,),
    }  # fmt: skip
    assert count(model) == 30 * 64 + 64 + 64 * 32 + 32 + 32 + 1
    assert float(model.dropout.rate[...]) == 0.5


def test_mlp_is_dense_activation_dense_and_flattens_images() -> None:
    model: Any = MLP(schema.Mlp(hidden=[7], activation="tanh"), (4, 4, 2), 3, rngs=rngs())
    x = pictures(5, 4, 4, 2)
    hidden = np.tanh(x.reshape(5, 32) @ model.layers[0].kernel[...] + model.layers[0].bias[...])
    expected = hidden @ model.head.kernel[...] + model.head.bias[...]
    np.testing.assert_allclose(model(x), expected, rtol=1e-5, atol=1e-6)


def test_initialisation_follows_the_key_and_he() -> None:
    wide = MLP(schema.Mlp(hidden=[512]), (1024,), 2, rngs=rngs())
    again = MLP(schema.Mlp(hidden=[512]), (1024,), 2, rngs=rngs())
    other = MLP(schema.Mlp(hidden=[512]), (1024,), 2, rngs=nnx.Rngs(params=jax.random.key(1)))
    kernel = wide.layers[0].kernel[...]
    np.testing.assert_array_equal(kernel, again.layers[0].kernel[...])
    assert not np.array_equal(kernel, other.layers[0].kernel[...])
    assert float(kernel.std()) == pytest.approx(math.sqrt(2 / 1024), rel=0.02)
    conv = Conv(16, schema.Cnn(kernel_size=3), 256, padding="same", rngs=rngs())
    assert float(conv.kernel[...].std()) == pytest.approx(math.sqrt(2 / (9 * 16)), rel=0.02)
    assert not np.any(conv.bias[...])


# ----------------------------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize("activation", schema.ACTIVATIONS)
def test_pooling_first_changes_no_value(activation: str) -> None:
    conv = Conv(2, schema.Cnn(activation=activation), 4, padding="same", rngs=rngs())
    conv.bias[...] = jnp.asarray([-1.0, 0.0, 0.3, 2.0])
    x = pictures(2, 9, 8, 2)
    found = conv(x, training=False, mask=None)
    assert found.shape == (2, 4, 4, 4)
    monotone = np.all(np.diff(np.asarray(ACTIVATIONS[activation](jnp.linspace(-6, 6, 999)))) >= 0)
    assert conv.pool_first == monotone
    conv.pool_first = False
    np.testing.assert_allclose(found, conv(x, training=False, mask=None), rtol=1e-6, atol=1e-6)


def test_normalisation_comes_before_activation_and_pool() -> None:
    conv = Conv(2, schema.Cnn(norm="batch"), 4, padding="same", rngs=rngs())
    assert not conv.pool_first


def test_dropout_zeroes_a_share_and_keeps_the_expectation() -> None:
    layer, x = Dropout(0.3), jnp.full((400, 500), 2.0)
    y = np.asarray(layer(x, jax.random.key(0)))
    dropped = (y == 0).mean()
    assert dropped == pytest.approx(0.3, abs=0.005)
    np.testing.assert_allclose(y[y != 0], 2.0 / 0.7, rtol=1e-6)
    assert y.mean() == pytest.approx(2.0, abs=0.02)
    assert not np.array_equal(y, layer(x, jax.random.key(1)))
    np.testing.assert_array_equal(y, layer(x, jax.random.key(0)))


def test_without_a_key_nothing_is_dropped() -> None:
    x = jnp.ones((10, 10))
    assert Dropout(0.9)(x, None) is x
    model = MLP(schema.Mlp(dropout=0.5), (30,), 2, rngs=rngs())
    inputs = pictures(4, 30)
    np.testing.assert_array_equal(model(inputs), model(inputs))
    trained = model(inputs, key=jax.random.key(0))
    assert not np.allclose(model(inputs), trained)
    assert not np.allclose(trained, model(inputs, key=jax.random.key(1)))


def test_a_dropout_of_zero_is_no_layer() -> None:
    assert Dropout(0.0).rate is None
    hyper = nnx.to_flat_state(nnx.state(MLP(schema.Mlp(dropout=0.0), (30,), 2, rngs=rngs()), Hyperparameter))
    assert not list(hyper)


@pytest.mark.parametrize("padded", [False, True])
def test_batch_norm_uses_the_batch_in_training_and_running_statistics_after(padded: bool) -> None:
    layer = Norm("batch", 3, rngs=rngs())
    x = np.random.default_rng(0).normal(2.0, 3.0, size=(16, 4, 4, 3)).astype(np.float32)
    given, mask = x, None
    if padded:
        given = np.concatenate([x, np.full((5, 4, 4, 3), 1e3, np.float32)])
        mask = jnp.asarray([1.0] * 16 + [0.0] * 5)
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    y = layer(jnp.asarray(given), training=True, mask=mask)[:16]
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(layer.norm.mean[...], 0.1 * mean, rtol=1e-4)
    np.testing.assert_allclose(layer.norm.var[...], 0.9 + 0.1 * var, rtol=1e-4)
    running_mean, running_var = np.asarray(layer.norm.mean[...]), np.asarray(layer.norm.var[...])
    later = layer(jnp.asarray(x[:2]), training=False, mask=None)
    np.testing.assert_allclose(later, (x[:2] - running_mean) / np.sqrt(running_var + 1e-5), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(layer.norm.mean[...], running_mean)  # inference changes nothing


def test_layer_norm_sees_one_example_only() -> None:
    layer = Norm("layer", 8, rngs=rngs())
    x = np.random.default_rng(0).normal(2.0, 3.0, size=(4, 8)).astype(np.float32)
    expected = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
    for training in (True, False):
        y = layer(jnp.asarray(x), training=training, mask=jnp.asarray([1.0, 0.0, 1.0, 1.0]))
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", schema.NORMS)
@pytest.mark.parametrize("kind", ["cnn", "mlp"])
def test_models_train_and_infer_with_every_norm(kind: str, norm: str) -> None:
    model: Any
    if kind == "cnn":
        model = CNN(schema.Cnn(channels=[3, 4], hidden=[6], norm=norm), (8, 8, 1), 2, rngs=rngs())
    else:
        model = MLP(schema.Mlp(hidden=[6], norm=norm, dropout=0.0), (8, 8, 1), 2, rngs=rngs())
    x = pictures(6, 8, 8, 1)
    before, training = model(x), model(x, key=jax.random.key(0))
    after = model(x)
    assert np.isfinite(after).all() and before.shape == training.shape == (6, 2)
    coupled = norm == "batch"
    assert np.allclose(before, training, atol=1e-5) == (not coupled)
    assert np.array_equal(before, after) == (not coupled)  # the running statistics have moved
    alone = model(x.at[1:].set(7.0))[:1]
    np.testing.assert_allclose(alone, after[:1], rtol=1e-4, atol=1e-5)  # inference never looks at the neighbours


FORMULAS: dict[str, Any] = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "elu": lambda x: np.where(x > 0, x, np.exp(x) - 1),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}


@pytest.mark.parametrize("name", schema.ACTIVATIONS)
def test_activations_by_name(name: str) -> None:
    x = np.linspace(-4, 4, 41)
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x, jnp.float32)), FORMULAS[name](x), rtol=1e-5, atol=1e-6)
    model: Any = MLP(schema.Mlp(hidden=[5], activation=name), (3,), 2, rngs=rngs())
    inputs = pictures(4, 3)
    hidden = FORMULAS[name](np.asarray(model.layers[0](inputs), np.float64))
    expected = hidden @ np.asarray(model.head.kernel[...]) + np.asarray(model.head.bias[...])
    np.testing.assert_allclose(model(inputs), expected, rtol=1e-4, atol=1e-5)


def test_the_schema_offers_exactly_the_activations_there_are() -> None:
    assert set(ACTIVATIONS) == set(schema.ACTIVATIONS)
