"""Gradual unfreezing here and by torch's `requires_grad`, on the same network, gradients and optimizer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigctl.config import schema
from bigctl.optim import optimizers, thawing
from tests.optim.test_optimizers import numbers

torch = pytest.importorskip("torch")

BEGINS = {"head": 0, "layers/1": 3, "layers/0": 5}
STEPS = 9


@pytest.mark.parametrize("optimizer", [schema.AdamW(weight_decay=0.1, clip=0.3), schema.Sgd(lr=0.2, clip=0.3)])
def test_layers_join_as_where_torch_begins_to_give_them_gradients(optimizer: schema.Optimizer) -> None:
    rng = np.random.default_rng(0)
    sizes = {"layers/0": (5, 7), "layers/1": (7, 6), "head": (6, 3)}
    start = {name: rng.normal(size=shape).astype(np.float32) * 0.5 for name, shape in sizes.items()}
    inputs = rng.normal(size=(STEPS, 8, 5)).astype(np.float32)
    labels = rng.integers(0, 3, (STEPS, 8))
    found, expected = ours(optimizer, start, inputs, labels), theirs(optimizer, start, inputs, labels)
    for name in sizes:
        assert not np.allclose(expected[name], start[name], atol=1e-3)
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


def ours(optimizer: schema.Optimizer, start: Any, inputs: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    params = {"layers": {str(i): {"kernel": start[f"layers/{i}"]} for i in (0, 1)}, "head": {"kernel": start["head"]}}
    groups = thawing.groups_of(jax.tree.map(lambda _: True, params), (r"^layers/(\d+)/",), 2)

    def thaw(number: Any) -> thawing.Thaw:
        return thawing.Thaw(groups, number >= jnp.array(sorted(BEGINS.values())))

    def loss(params: Any, number: Any, x: Any, y: Any) -> Any:
        params = thawing.gated(params, thaw(number))
        for layer in ("0", "1"):
            x = jnp.tanh(x @ params["layers"][layer]["kernel"])
        logits = jax.nn.log_softmax(x @ params["head"]["kernel"])
        return -jnp.take_along_axis(logits, y[:, None], 1).mean()

    @jax.jit
    def step(params: Any, state: Any, number: Any, x: Any, y: Any) -> Any:
        rule = optimizers.update_rule(optimizer, numbers(optimizer), thaw=thaw(number))
        updates, state = rule.update(jax.grad(loss)(params, number, x, y), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizers.update_rule(optimizer, numbers(optimizer), thaw=thaw(0)).init(params)
    for number in range(STEPS):
        params, state = step(params, state, jnp.int32(number), inputs[number], labels[number])
    return {**{f"layers/{i}": params["layers"][i]["kernel"] for i in ("0", "1")}, "head": params["head"]["kernel"]}


def theirs(optimizer: schema.Optimizer, start: Any, inputs: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    net = {name: torch.tensor(value, requires_grad=BEGINS[name] == 0) for name, value in start.items()}
    if isinstance(optimizer, schema.AdamW):
        rule = torch.optim.AdamW(net.values(), lr=optimizer.lr, weight_decay=optimizer.weight_decay)
    else:
        rule = torch.optim.SGD(net.values(), lr=optimizer.lr, momentum=0.9)
    for number in range(STEPS):
        for name, value in net.items():
            value.requires_grad_(number >= BEGINS[name])
        rule.zero_grad()
        x = torch.from_numpy(inputs[number])
        for layer in ("layers/0", "layers/1"):
            x = torch.tanh(x @ net[layer])
        torch.nn.functional.cross_entropy(x @ net["head"], torch.from_numpy(labels[number])).backward()
        torch.nn.utils.clip_grad_norm_([value for value in net.values() if value.grad is not None], optimizer.clip)
        rule.step()
    return {name: value.detach().numpy() for name, value in net.items()}
