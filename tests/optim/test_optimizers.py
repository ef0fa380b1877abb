"""Promises of `bigctl.optim.optimizers`: optax by name, decay on matrices only, traced numbers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import muon

from bigctl.config import schema
from bigctl.errors import ConfigError
from bigctl.optim import optimizers
from bigctl.optim.lamb import scale_by_trust_ratio
from bigctl.parallel.partition import path_name
from bigctl.training.checkpoints.arrays import flatten

PARAMS: dict[str, Any] = {
    "dense": {
        "kernel": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3),
        "bias": np.array([0.5, -0.5, 0.25], np.float32),
    },
    "conv": {"kernel": np.linspace(0.5, -0.5, 16, dtype=np.float32).reshape(2, 2, 2, 2)},
    "scale": np.ones((4,), np.float32),
}


def gradients(step: int) -> Any:
    rng = np.random.default_rng(step)
    return jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), PARAMS)


def numbers(config: schema.Optimizer) -> dict[str, Any]:
    traced = {f.name for f in schema.dataclasses.fields(config) if f.metadata["traced"]}
    values = {name: getattr(config, name) for name in traced}
    return {f"optimizer.{name}": np.float32(value) for name, value in values.items() if value is not None}


def updated(rule: optax.GradientTransformation, steps: int = 5, scale: float = 1.0) -> Any:
    """PARAMS after some updates."""

    @jax.jit
    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = rule.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, jax.jit(rule.init)(PARAMS)
    for number in range(steps):
        params, state = step(params, state, jax.tree.map(lambda g: g * np.float32(scale), gradients(number)))
    return params


def equal(a: Any, b: Any) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-6, atol=1e-7)


def mask(params: Any) -> Any:
    return {"dense": {"kernel": True, "bias": False}, "conv": {"kernel": True}, "scale": False}


def with_trust_ratio(lr: float, ratio: optax.GradientTransformation) -> optax.GradientTransformation:
    decay = optax.add_decayed_weights(0.02, mask)
    return optax.chain(optax.scale_by_adam(eps=1e-6), decay, optax.masked(ratio, mask), optax.scale(-lr))


RULES = {
    "adamw": (schema.AdamW(lr=0.01, weight_decay=0.1), optax.adamw(0.01, weight_decay=0.1, mask=mask)),
    "adamw's numbers": (
        schema.AdamW(b1=0.8, b2=0.9, eps=1e-3), optax.adamw(1e-3, 0.8, 0.9, 1e-3, weight_decay=0.01, mask=mask)
    ),
    "adam": (schema.Adam(lr=0.01), optax.adam(0.01)),
    "sgd": (schema.Sgd(momentum=0.0), optax.sgd(0.1)),
    "momentum": (schema.Sgd(lr=0.05), optax.sgd(0.05, momentum=0.9)),
    "nesterov": (schema.Sgd(momentum=0.8, nesterov=True), optax.sgd(0.1, momentum=0.8, nesterov=True)),
    "adagrad": (schema.Adagrad(), optax.adagrad(1e-2, initial_accumulator_value=0.1, eps=1e-14)),
    "lamb": (schema.Lamb(lr=0.01), with_trust_ratio(0.01, optax.scale_by_trust_ratio())),
    "lion": (schema.Lion(weight_decay=0.3), optax.lion(1e-4, 0.9, 0.99, weight_decay=0.3, mask=mask)),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_five_updates_are_those_of_plain_optax(name):
    config, reference = RULES[name]
    equal(updated(optimizers.update_rule(config, numbers(config))), updated(reference))


def test_biases_of_norms_have_a_rate_of_their_own() -> None:
    params = {"first_norm": {"bias": np.ones(2, np.float32), "scale": np.ones(2, np.float32)},
              "norm": {"norm": {"bias": np.ones(2, np.float32)}}, "head": {"bias": np.ones(2, np.float32)}}  # fmt: skip
    config = schema.Sgd(lr=0.1, momentum=0.0, norm_bias_factor=8)
    rule = optimizers.update_rule(config, numbers(config))
    after = rule.update(params, rule.init(params), params)[0]
    assert {name: round(float(leaf[0]), 4) for name, leaf in flatten(after).items()} == {
        "first_norm/bias": -0.8, "first_norm/scale": -0.1, "norm/norm/bias": -0.8, "head/bias": -0.1,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["sgd", "adamw", "adagrad"])
def test_the_gradient_is_clipped_by_its_global_norm_first(name):
    config, reference = RULES[name]
    clipped = schema.dataclasses.replace(config, clip=0.5)
    after = updated(optimizers.update_rule(clipped, numbers(clipped)))
    equal(after, updated(optax.chain(optax.clip_by_global_norm(0.5), reference)))
    if name == "sgd":
        assert not np.allclose(after["dense"]["kernel"], updated(reference)["dense"]["kernel"])


@pytest.mark.parametrize("seldom", [None, (r"^conv/kernel$", 0.2)], ids=["all", "rows apart"])
@pytest.mark.parametrize("clip", [None, 0.5, 1e3])
def test_a_share_of_the_gradient_is_taken_before_it_is_clipped(clip, seldom):
    """As if each of its numbers had been multiplied by it, but for rounding."""
    config = schema.Sgd(lr=0.1, clip=clip)
    of_all = optimizers.update_rule(config, numbers(config), seldom=seldom)
    of_share = optimizers.update_rule(config, numbers(config), seldom=seldom, share=jnp.float32(0.3))
    states = [rule.init(PARAMS) for rule in (of_all, of_share)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])  # so that older runs are resumed
    for number in range(3):
        grads = gradients(number)
        wanted, states[0] = of_all.update(jax.tree.map(lambda g: g * np.float32(0.3), grads), states[0], PARAMS)
        found, states[1] = of_share.update(grads, states[1], PARAMS)
        equal(found, wanted)


@pytest.mark.parametrize(
    "config",
    [schema.Sgd(), schema.Adagrad(), schema.Adam(), schema.AdamW(weight_decay=0.0), schema.Lion(), schema.Muon()],
    ids=lambda config: config.kind,
)
def test_weight_decay_shrinks_matrices_and_kernels_and_no_vectors(config):
    decayed = schema.dataclasses.replace(config, weight_decay=0.5)
    after = updated(optimizers.update_rule(decayed, numbers(decayed)), steps=1, scale=0.0)
    for layer in ("dense", "conv"):
        np.testing.assert_allclose(after[layer]["kernel"], PARAMS[layer]["kernel"] * (1 - config.lr * 0.5), rtol=1e-5)
    assert np.array_equal(after["dense"]["bias"], PARAMS["dense"]["bias"])
    assert np.array_equal(after["scale"], PARAMS["scale"])


@pytest.mark.parametrize("gradient", [0.0, 1e-2, 1e-5, 1e-9])
def test_eps_of_adagrad_is_added_to_the_denominator_as_in_torch(gradient):
    config = schema.Adagrad(lr=1.0, initial_accumulator=0.0, eps=1e-7)
    rule, params = optimizers.update_rule(config, numbers(config)), {"bias": np.zeros(1, np.float32)}
    updates, _ = rule.update({"bias": np.array([gradient], np.float32)}, rule.init(params), params)
    assert float(updates["bias"][0]) == pytest.approx(-gradient / (gradient + 1e-7), rel=1e-5)


@pytest.mark.parametrize(
    "config", [schema.Sgd(), schema.Adagrad(), schema.AdamW(), schema.Lion(), schema.Lamb(), schema.Muon()]
)
def test_what_is_turned_on_or_off_leaves_the_state_of_the_others_in_its_place(config):
    plain = {path_name(p) for p, _ in jax.tree_util.tree_flatten_with_path(state_of(config))[0]}
    for keys in ({"clip": 1.0}, {"layer_decay": 0.5}, {"clip": 1.0, "layer_decay": 0.5}):
        with_more = state_of(schema.dataclasses.replace(config, **keys))
        assert {path_name(p) for p, _ in jax.tree_util.tree_flatten_with_path(with_more)[0]} == plain


def state_of(config: schema.Optimizer) -> Any:
    return optimizers.update_rule(config, numbers(config)).init(PARAMS)


def test_rows_that_are_seldom_seen_are_trained_by_adagrad_and_the_others_as_without_them() -> None:
    """Their gradient has no part in the norm that is clipped, and they do not decay."""
    config, seen = schema.AdamW(lr=0.01, weight_decay=0.1, clip=0.5), {"dense": PARAMS["dense"]}
    rule = optimizers.update_rule(config, numbers(config), 0.5, seldom=(r"^conv/kernel$", 0.2))
    expected = optax.chain(
        optax.clip_by_global_norm(0.5), optax.adamw(0.005, weight_decay=0.1, mask=lambda p: {"dense": mask(p)["dense"]})
    )
    adagrad = optimizers.scale_by_root(1e-6, 1e-7)
    state, others, sums = rule.init(PARAMS), expected.init(seen), adagrad.init(PARAMS["conv"])
    for number in range(3):
        grads = {**gradients(number), "scale": np.zeros(4, np.float32)}
        updates, state = rule.update(grads, state, PARAMS)
        wanted, others = expected.update({"dense": grads["dense"]}, others, seen)
        rows, sums = adagrad.update(grads["conv"], sums)
        equal(updates["dense"], wanted["dense"])
        equal(updates["conv"], jax.tree.map(lambda g: -0.1 * g, rows))


def test_the_schedule_multiplies_the_rate():
    config = schema.AdamW(weight_decay=0.1)
    half = optimizers.update_rule(config, numbers(config), 0.5)
    equal(updated(half), updated(optax.adamw(0.5e-3, weight_decay=0.1, mask=mask)))


def test_muon_is_that_of_optax_for_matrices_and_adam_for_the_rest():
    config = schema.Muon(lr=0.02, adam_lr=0.003, weight_decay=0.1)
    after = updated(optimizers.update_rule(config, numbers(config)))
    reference = updated(muon(0.02, weight_decay=0.1, adam_learning_rate=0.003))
    equal(after["dense"], reference["dense"])
    equal(after["scale"], updated(optax.adam(0.003, nesterov=True))["scale"])
    assert not np.allclose(after["conv"]["kernel"], reference["conv"]["kernel"])  # which leaves kernels to Adam


@pytest.mark.parametrize(("shape", "factor"), [((8, 8), 1.0), ((8, 32), 2.0), ((2, 2, 8, 8), 1.0)])
def test_muon_makes_updates_orthogonal_and_larger_where_outputs_are_more(shape, factor):
    config = schema.Muon(lr=1.0)
    rule = optimizers.update_rule(config, numbers(config))
    params = {"w": np.zeros(shape, np.float32)}
    gradient = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    updates, _ = jax.jit(rule.update)({"w": gradient}, jax.jit(rule.init)(params), params)
    singular = np.linalg.svd(np.asarray(updates["w"]).reshape(-1, shape[-1]), compute_uv=False)
    before = np.linalg.svd(gradient.reshape(-1, shape[-1]), compute_uv=False)
    assert before.max() > 2 * before.min()
    assert 0.6 * factor < singular.min() and singular.max() < 1.3 * factor


def test_muon_treats_each_matrix_of_a_stack_as_if_it_were_alone():
    rng = np.random.default_rng(0)
    config = schema.Muon(weight_decay=0.1)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    stack = {
        "layers": {"up": draw(3, 8, 4), "experts": {"up": draw(3, 2, 4, 8)}, "bias": draw(3, 4)},
        "conv": draw(2, 2, 3, 5),
    }
    grads = jax.tree.map(lambda leaf: draw(*leaf.shape), stack)

    def alone(tree: Any) -> Any:
        layers = [jax.tree.map(lambda leaf, i=i: leaf[i], tree["layers"]) for i in range(3)]
        each = [
            {"up": layer["up"], "bias": layer["bias"], **{f"up{e}": layer["experts"]["up"][e] for e in range(2)}}
            for layer in layers
        ]
        return {"layers": {str(i): layer for i, layer in enumerate(each)}, "conv": tree["conv"]}

    def after(params: Any, grads: Any, stacked: tuple[str, ...]) -> Any:
        rule = optimizers.update_rule(config, numbers(config), stacked=stacked)
        return jax.jit(rule.update)(grads, jax.jit(rule.init)(params), params)[0]

    expected = after(alone(stack), alone(grads), ())
    together = after(stack, grads, ("^layers/", "(^|/)experts/"))
    equal(alone(together), expected)
    flattened = after(stack, grads, ())
    assert not np.allclose(flattened["layers"]["up"], together["layers"]["up"], rtol=0.1)
    assert np.array_equal(flattened["conv"], together["conv"])  # a kernel is one matrix


@pytest.mark.parametrize("config", [schema.AdamW(), schema.Sgd(), schema.Muon()], ids=lambda config: config.kind)
def test_stacked_biases_do_not_decay(config):
    decayed = schema.dataclasses.replace(config, weight_decay=0.5)
    rule = optimizers.update_rule(decayed, numbers(decayed), stacked=("^layers/",))
    params = {"layers": {"kernel": np.ones((2, 3, 3), np.float32), "bias": np.ones((2, 3), np.float32)}}
    updates, _ = rule.update(jax.tree.map(np.zeros_like, params), rule.init(params), params)
    assert np.all(updates["layers"]["bias"] == 0) and np.all(updates["layers"]["kernel"] < 0)


def test_muon_finds_the_minimum_of_a_quadratic():
    config = schema.Muon(lr=0.05, adam_lr=0.05)
    target = jax.tree.map(lambda p: p[::-1] * 0.5, PARAMS)

    def loss(params: Any) -> Any:
        return sum(jnp.sum((p - t) ** 2) for p, t in zip(jax.tree.leaves(params), jax.tree.leaves(target), strict=True))

    @jax.jit
    def step(params: Any, state: Any, factor: Any) -> Any:
        rule = optimizers.update_rule(config, numbers(config), factor)
        updates, state = rule.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, jax.jit(optimizers.update_rule(config, numbers(config)).init)(PARAMS)
    for i in range(200):
        params, state = step(params, state, 1 - i / 200)
    assert loss(params) < 1e-3 * loss(PARAMS)


@pytest.mark.parametrize(
    "config",
    [schema.Sgd(clip=1.0), schema.Adagrad(), schema.AdamW(), schema.Lion(), schema.Muon(clip=1.0)],
    ids=lambda config: config.kind,
)
def test_another_number_needs_no_new_program(config):
    @jax.jit
    def step(params: Any, state: Any, values: Any, factor: Any) -> Any:
        updates, state = optimizers.update_rule(config, values, factor).update(gradients(0), state, params)
        return optax.apply_updates(params, updates), state

    values, state = numbers(config), jax.jit(optimizers.update_rule(config, numbers(config)).init)(PARAMS)
    first, _ = step(PARAMS, state, values, jnp.float32(1.0))
    left_out = {f"optimizer.{name}" for name in ("layer_decay", "bias_factor", "norm_bias_factor", "bias_decay")}
    for name in values.keys() - left_out:
        changed = {**values, name: values[name] * 0.5 + 0.013}
        other, after = step(PARAMS, state, changed, jnp.float32(1.0))
        assert str(jax.tree.structure(after)) == str(jax.tree.structure(state))
        assert any(
            not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True)
        ), name
    step(PARAMS, state, values, jnp.float32(0.3))
    assert step._cache_size() == 1  # type: ignore[attr-defined]


def test_an_unknown_optimizer_without_a_rule_is_a_type_error():
    with pytest.raises(ConfigError, match="no method `build"):
        optimizers.update_rule(schema.Optimizer(kind="own"), numbers(schema.Optimizer()))


def test_a_rule_that_is_none_is_refused_by_name():
    class Own(schema.Optimizer):
        def build(self, hparams: Any, factor: Any, stacked: Any = ()) -> Any:
            return lambda grads: grads

    with pytest.raises(ConfigError, match="optimizer 'own' must build an optax.GradientTransformation, not function"):
        optimizers.update_rule(Own(kind="own"), numbers(schema.Optimizer()))


def test_a_plugin_builds_its_own_rule():
    class Own(schema.Optimizer):
        def build(self, values: Any, factor: Any) -> optax.GradientTransformation:
            return optax.sgd(values["optimizer.lr"] * factor)

    own = Own(kind="own", lr=0.2)
    equal(updated(optimizers.update_rule(own, numbers(own), 0.5)), updated(optax.sgd(0.1)))


def test_the_trust_ratio_of_stacked_layers_is_each_layers_own():
    rng = np.random.default_rng(0)
    weights, updates = (rng.normal(size=(3, 4, 5)).astype(np.float32) for _ in range(2))
    weights *= np.array([1, 10, 100], np.float32)[:, None, None]
    rule = scale_by_trust_ratio(("layers",))
    found = rule.update({"layers": {"kernel": updates}}, rule.init(None), {"layers": {"kernel": weights}})[0]
    plain = optax.scale_by_trust_ratio()
    for number in range(3):
        expected = plain.update([updates[number]], plain.init(None), [weights[number]])[0][0]
        np.testing.assert_allclose(found["layers"]["kernel"][number], expected, rtol=1e-5)


@pytest.mark.parametrize("clip", [None, 1.0])
def test_lamb_is_that_of_timm(clip):
    """Which has the second by default; the gradients here are longer."""
    torch, reference = pytest.importorskip("torch"), pytest.importorskip("timm.optim")
    config = schema.Lamb(lr=0.01, weight_decay=0.1, clip=clip)
    weights = [torch.nn.Parameter(torch.tensor(leaf)) for leaf in jax.tree.leaves(PARAMS)]
    groups = [{"params": [w], "weight_decay": 0.1 if w.ndim > 1 else 0.0} for w in weights]
    rule = reference.Lamb(groups, lr=0.01, max_grad_norm=clip)
    for number in range(5):
        for weight, gradient in zip(weights, jax.tree.leaves(gradients(number)), strict=True):
            weight.grad = torch.tensor(gradient)
        rule.step()
    found = jax.tree.leaves(updated(optimizers.update_rule(config, numbers(config))))
    for ours, theirs in zip(found, weights, strict=True):
        np.testing.assert_allclose(ours, theirs.detach(), rtol=1e-5, atol=1e-6)
