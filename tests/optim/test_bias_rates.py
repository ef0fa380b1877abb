"""Promises of the keys of biases: groups of parameters as torch has them, of every optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import pytest

from bigctl.config import schema
from bigctl.optim import optimizers
from bigctl.training.checkpoints.arrays import flatten
from tests.optim.test_optimizers import numbers

KEYS: dict[str, Any] = {"weight_decay": 0.1, "bias_factor": 3.0, "norm_bias_factor": 4.0, "bias_decay": 0.03}
DRAW = np.random.default_rng(0)
PARAMS: dict[str, Any] = {
    "conv": {"kernel": DRAW.normal(size=(3, 3, 2, 4)).astype(np.float32), "bias": np.full(4, 0.3, np.float32)},
    "conv_norm": {"scale": np.full(4, 0.8, np.float32), "bias": np.full(4, -0.2, np.float32)},
    "decoder_bias": np.full(3, 0.5, np.float32),
    "head": {"kernel": DRAW.normal(size=(4, 3)).astype(np.float32)},
}
RATES = {"conv/bias": 3.0, "conv_norm/bias": 12.0, "decoder_bias": 3.0}
STEPS = [jax.tree.map(lambda p: DRAW.normal(size=p.shape).astype(np.float32), PARAMS) for _ in range(4)]


def trained(config: schema.Optimizer, gradients: list[Any] = STEPS) -> dict[str, np.ndarray]:
    """PARAMS by path, after a step for each of the gradients, at half the rate."""
    rule = optimizers.update_rule(config, numbers(config), 0.5)
    params, state = PARAMS, rule.init(PARAMS)
    for each in gradients:
        updates, state = jax.jit(rule.update)(each, state, params)
        params = optax.apply_updates(params, updates)
    return flatten(params)


def in_groups(make: Callable[[list[dict[str, Any]]], Any], lr: float) -> dict[str, np.ndarray]:
    """The same in torch, by an optimizer of four groups without decay, each decayed by hand before its step."""
    torch = pytest.importorskip("torch")
    weights = {name: torch.tensor(np.array(value)) for name, value in flatten(PARAMS).items()}
    groups = [{"params": [weight], "lr": lr * RATES.get(name, 1.0)} for name, weight in weights.items()]
    rule = make(groups)
    for gradients in STEPS:
        for (name, weight), group in zip(weights.items(), groups, strict=True):
            weight.grad = torch.tensor(np.array(flatten(gradients)[name]))
            weight *= 1 - group["lr"] * (0.1 if name.endswith("kernel") else 0.03)
        rule.step()
    return {name: weight.numpy() for name, weight in weights.items()}


def test_groups_of_nesterov_adam_and_adagrad_are_those_of_torch() -> None:
    optim = pytest.importorskip("torch.optim")
    cases = [
        (schema.Sgd(lr=0.1, momentum=0.8, nesterov=True, **KEYS),
         lambda groups: optim.SGD(groups, momentum=0.8, nesterov=True)),
        (schema.AdamW(lr=0.02, **KEYS), lambda groups: optim.AdamW(groups, weight_decay=0.0)),
        (schema.Adagrad(lr=0.02, **KEYS), 
         lambda groups: optim.Adagrad(groups, initial_accumulator_value=0.1, eps=1e-7)),
    ]  # fmt: skip
    for config, make in cases:
        expected = in_groups(make, config.lr / 2)
        for name, value in trained(config).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=5e-6, err_msg=f"{config.kind} {name}")


def test_groups_of_lamb_are_those_of_its_authors() -> None:
    config = schema.Lamb(lr=0.02, **KEYS)
    expected = {name: np.array(value, np.float64) for name, value in flatten(PARAMS).items()}
    first, second = ({name: np.zeros_like(value) for name, value in expected.items()} for _ in range(2))
    for step, gradients in enumerate(STEPS, 1):
        for name, gradient in flatten(gradients).items():
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient**2
            change = first[name] / (1 - 0.9**step) / (np.sqrt(second[name] / (1 - 0.999**step)) + 1e-6)
            change = change + (0.1 if name.endswith("kernel") else 0.03) * expected[name]
            trust = np.linalg.norm(expected[name]) / np.linalg.norm(change)  # also of vectors, as they decay
            expected[name] = expected[name] - 0.01 * RATES.get(name, 1.0) * trust * change
    for name, value in trained(config).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("config", [schema.Adam(), schema.Lion(), schema.Muon(), schema.Muon(adam_lr=0.1)])
def test_a_step_of_biases_is_so_much_longer_and_decays_by_its_own_rate(config: schema.Optimizer) -> None:
    before = flatten(PARAMS)
    plain = trained(schema.dataclasses.replace(config, weight_decay=0.0), STEPS[:1])
    faster = trained(schema.dataclasses.replace(config, **{**KEYS, "weight_decay": 0.0}), STEPS[:1])
    for name, value in faster.items():
        rate = getattr(config, "adam_lr", config.lr) / 2 * 0.03 * (not name.endswith("kernel"))
        expected = before[name] + RATES.get(name, 1.0) * (plain[name] - before[name] - rate * before[name])
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_another_factor_needs_no_new_program() -> None:
    config = schema.Lamb(**KEYS)
    state = optimizers.update_rule(config, numbers(config)).init(PARAMS)

    @jax.jit
    def step(values: Any) -> Any:
        return optimizers.update_rule(config, values).update(STEPS[0], state, PARAMS)[0]

    first = flatten(step(numbers(config)))
    for name in ("bias_factor", "norm_bias_factor", "bias_decay"):
        other = flatten(step({**numbers(config), f"optimizer.{name}": np.float32(0.5)}))
        moved = {path for path in first if not np.array_equal(first[path], other[path])}
        named = {"bias_factor": set(RATES), "norm_bias_factor": {"conv_norm/bias"}}
        assert moved == named.get(name, {*RATES, "conv_norm/scale"})
    assert step._cache_size() == 1
