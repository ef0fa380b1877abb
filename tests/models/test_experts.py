"""Experts: what is computed for each token is what all of them together would give, weighted by its gates."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType

from bigctl.config import schema
from bigctl.models import grouped
from bigctl.models.architecture import decoder_architecture
from bigctl.models.attention import Rows
from bigctl.models.decoder import ACTIVATIONS
from bigctl.models.experts import EXPERT, TENSOR, Experts
from bigctl.parallel import axes
from tests.models import test_decoder as decoders

WIDTH, LENGTH = 12, 21
MODELS: dict[str, dict[str, Any]] = {
    "swiglu": {"experts": 5, "experts_per_token": 2},
    "one with biases": {"experts": 4, "experts_per_token": 1, "bias": True, "activation": "gelu_tanh"},
}


def build(**options: Any) -> Experts:
    """With weights large enough for every part to matter; made by numpy, which compiles nothing."""
    sizes = {"layers": 1, "width": WIDTH, "heads": 2, "context": 8, "intermediate": 20}
    config = decoder_architecture(schema.Llama(**sizes, **options), 5)
    activation = jax.nn.silu if config.gated else ACTIVATIONS[config.activation]

    def new() -> Experts:
        return Experts(config, activation, std=0.02, down_std=0.02, rngs=nnx.Rngs(params=jax.random.key(0)))

    model = nnx.eval_shape(new)
    draw = np.random.default_rng(0)
    structure, params = nnx.split(model)
    drawn = jax.tree.map(lambda p: jnp.asarray(0.5 * draw.normal(size=p.shape), jnp.float32), params)
    return nnx.merge(structure, drawn)


def texts() -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=(3, LENGTH, WIDTH)), jnp.float32)


def kept_by_hand(chosen: np.ndarray, experts: int, capacity: int) -> np.ndarray:
    """Which choices [batch, length, each] have room: all first ones are seen before any second one."""
    kept = np.zeros(chosen.shape, bool)
    for text in range(len(chosen)):
        room = [capacity] * experts
        for each in range(chosen.shape[2]):
            for place in range(chosen.shape[1]):
                expert = chosen[text, place, each]
                kept[text, place, each] = room[expert] > 0
                room[expert] -= 1
    return kept


def dense(model: Experts, x: jax.Array, keep: Any = None) -> jax.Array:
    """All experts on all tokens, weighted by the gates; `keep` are the choices that count."""
    _, gates, chosen = model.route(x)
    gates = gates if keep is None else gates * keep
    weights = jnp.sum(gates[..., None] * jax.nn.one_hot(chosen, model.experts), axis=-2)

    def each(number: int) -> jax.Array:
        def linear(stack: Any, x: jax.Array) -> jax.Array:
            y = x @ stack.kernel[...][number]
            return y if stack.bias is None else y + stack.bias[...][number]

        up = linear(model.up, x)
        wide = model.activation(up) if model.gate is None else model.activation(linear(model.gate, x)) * up
        return linear(model.down, wide)

    return sum(weights[..., i : i + 1] * each(i) for i in range(model.experts))


def computed(model: Experts, function: Any) -> Any:
    """Results, and gradients of all weights and of what comes in."""
    structure, params = nnx.split(model)
    slopes = jnp.asarray(np.random.default_rng(2).normal(size=(3, LENGTH, WIDTH)), jnp.float32)

    def loss(params: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        y, told = function(nnx.merge(structure, params), x)
        return jnp.sum(y * slopes), (y, told)

    (gradients, (y, told)) = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, texts())
    return (y, gradients), told


def assert_same(found: Any, expected: Any) -> None:
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.abs(theirs).max() > 1e-2
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("name", MODELS)
def test_experts_are_all_of_them_weighted_by_the_gates(name: str) -> None:
    """Dropless; and with a capacity, but for what comes too late. Inference drops nothing."""
    model = build(capacity_factor=0.7, **MODELS[name])
    chosen = jax.jit(lambda x: model.route(x)[2])(texts())
    capacity = model.capacity(LENGTH)
    assert capacity == math.ceil(0.7 * LENGTH * model.each / model.experts)
    keep = kept_by_hand(np.asarray(chosen), model.experts, capacity)
    assert 0.2 < 1 - keep.mean() < 0.8
    dropless, told = computed(model, lambda model, x: model(x))
    assert told.dropped == 0
    assert_same(dropless, computed(model, lambda model, x: (dense(model, x), ()))[0])
    limited, told = computed(model, lambda model, x: model(x, training=True))
    np.testing.assert_allclose(told.dropped, 1 - keep.mean(), rtol=1e-5)
    assert_same(limited, computed(model, lambda model, x: (dense(model, x, keep), ()))[0])


def test_tiles_and_ragged_dot_multiply_alike() -> None:
    """Also where an expert has no row, and rows that are nobody's."""
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.normal(size=(40, 6)), jnp.float32)
    kernels = jnp.asarray(draw.normal(size=(4, 6, 7)), jnp.float32)
    chosen = jnp.asarray(draw.choice([0, 1, 3, 4], size=(40, 2)), jnp.int32)  # 4 is none of them

    def mixed(kernel: grouped.Kernel, tile: int) -> Any:
        def loss(x: jax.Array, kernels: jax.Array) -> tuple[jax.Array, jax.Array]:
            layout = grouped.ordered(chosen, 4, tile)
            rows = grouped.product(grouped.dispatch(x, layout), kernels, layout, kernel)
            y = grouped.collect(rows, layout)
            return jnp.sum(jnp.sin(y)), y

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(x, kernels)

    expected = mixed("ragged_dot", 1)
    np.testing.assert_array_equal(np.asarray(expected[1])[np.asarray(chosen) == 4], 0)
    for tile in (1, 4, 16):
        for ours, theirs in zip(jax.tree.leaves(mixed("tiles", tile)), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_a_router_is_float32_whatever_the_rest_is() -> None:
    model = build(experts=4)
    logits, gates, _ = jax.eval_shape(model.route, texts().astype(jnp.bfloat16))
    assert logits.dtype == gates.dtype == jnp.float32


@pytest.mark.parametrize("axis", [EXPERT, TENSOR])
def test_on_a_mesh_that_does_not_divide_them_experts_are_computed_whole(axis: str) -> None:
    """As of a teacher, whose experts and width need not be those that the student's mesh is for."""
    model = build(experts=5)
    shape = tuple(8 if name == axis else 1 for name in axes.NAMES)
    mesh = AbstractMesh(shape, axes.NAMES, axis_types=(AxisType.Auto,) * len(shape))
    with jax.sharding.use_abstract_mesh(mesh):
        program = str(jax.make_jaxpr(lambda x: model(x)[0])(jnp.zeros((8, LENGTH, WIDTH))))
    assert "shard_map" not in program


def test_experts_write_with_a_cache_what_they_do_without() -> None:
    """Nine tokens at once, then one; that one row by row too."""
    model = decoders.build(decoders.MODELS["llama"], layers=1, experts=4, capacity_factor=0.5)
    text = decoders.tokens(3, 10)
    structure, params = nnx.split(model)

    def written(params: Any, text: jax.Array) -> Any:
        model = nnx.merge(structure, params)
        first, cache = model.extend(text[:, :9], model.cache(3, 12), jnp.zeros(3, jnp.int32))
        start = jnp.full(3, 9, jnp.int32)
        rows = Rows(jnp.arange(3, dtype=jnp.int32), jnp.int32(3))
        last, alone = (model.extend(text[:, 9:], cache, start, each)[0] for each in (None, rows))
        return model(text), jnp.concatenate([first, last], 1), alone

    whole, cached, alone = jax.jit(written)(params, text)
    np.testing.assert_allclose(cached, whole, atol=2e-4)
    np.testing.assert_allclose(alone, whole[:, 9:], atol=2e-4)
