"""Promises of `bigctl.optim.thawing`: groups of layers join from the head down, as if training them began there."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bigctl
from bigctl.config import schema
from bigctl.engine import experiment
from bigctl.errors import ConfigError
from bigctl.optim import masks, optimizers, thawing
from tests.optim.test_masks import DEEP, flat
from tests.optim.test_optimizers import numbers
from tests.training import steps

pytestmark = pytest.mark.fewer

LEVELS = (r"embeddings/", r"layers/(\d+)/")
BEGINS = [2, 3, 5]
"""The steps at which layers 10 and 9, layers 2 and 0, and the embeddings begin."""


def group_of(name: str) -> int:
    if name.startswith("head"):
        return 0
    return 3 if "embeddings" in name else 1 if name.split("/")[2] in ("9", "10") else 2


def config_of(optimizer: schema.Optimizer) -> schema.Config:
    config = bigctl.compose(["recipe=mlp_cls", "train.steps=10"])
    optimizer = dataclasses.replace(optimizer, unfreeze=list(map(float, BEGINS)))
    return dataclasses.replace(config, optimizer=optimizer)


def gradients(step: int) -> Any:
    rng = np.random.default_rng(step)
    return jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), DEEP)


@pytest.mark.parametrize(
    "optimizer",
    [
        schema.Sgd(lr=0.1, momentum=0.9, nesterov=True), schema.AdamW(weight_decay=0.1, clip=0.5),
        schema.Adagrad(weight_decay=0.1), schema.Lamb(), schema.Lion(weight_decay=0.1), schema.Muon(weight_decay=0.1),
        schema.AdamW(layer_decay=0.8, weight_decay=0.1),
    ],
    ids=["sgd", "adamw", "adagrad", "lamb", "lion", "muon", "layers"],
)  # fmt: skip
def test_a_group_is_trained_as_by_an_optimizer_of_its_own_that_begins_when_it_opens(
    optimizer: schema.Optimizer,
) -> None:
    config, values = config_of(optimizer), numbers(optimizer)
    everything = masks.trained(DEEP, [])

    @jax.jit
    def step(number: Any, params: Any, state: Any, grads: Any) -> Any:
        thaw = made(number)
        _, back = jax.vjp(lambda p: thawing.gated(p, thaw), params)
        rule = optimizers.update_rule(optimizer, values, trained=everything, levels=LEVELS, thaw=thaw)
        updates, state = rule.update(back(grads)[0], state, params)
        return optax.apply_updates(params, updates), state

    def made(number: Any) -> thawing.Thaw:
        groups = thawing.groups_of(everything, LEVELS, 3)
        return thawing.Thaw(groups, number >= jnp.array([0, *thawing.times(config, 10)]))

    params: Any = DEEP
    state = optimizers.update_rule(optimizer, values, trained=everything, levels=LEVELS, thaw=made(0)).init(DEEP)
    for number in range(7):
        params, state = step(jnp.int32(number), params, state, gradients(number))
    found, expected = flat(params), by_hand(optimizer, values)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def by_hand(optimizer: schema.Optimizer, values: Any) -> dict[str, np.ndarray]:
    """One optimizer a group; the gradient's norm is clipped over those that have begun."""
    below = masks.depths(DEEP, LEVELS)
    bare = dataclasses.replace(optimizer, clip=None, layer_decay=1.0)
    rule = optimizers.update_rule(bare, {k: v for k, v in values.items() if k != "optimizer.clip"})
    params: dict[str, Any] = flat(DEEP)
    states: dict[int, Any] = {}
    for number in range(7):
        grads = flat(gradients(number))
        open_groups = [group for group, begin in enumerate([0, *BEGINS]) if number >= begin]
        seen = {name: grad for name, grad in grads.items() if group_of(name) in open_groups}
        norm = float(np.sqrt(sum(np.square(grad).sum() for grad in seen.values())))
        share = 1.0 if optimizer.clip is None else min(1.0, optimizer.clip / norm)
        for group in open_groups:
            own = {name: params[name] for name in seen if group_of(name) == group}
            state = states.get(group) or rule.init(own)
            updates, states[group] = rule.update({name: seen[name] * share for name in own}, state, own)
            for name, update in updates.items():
                params[name] = params[name] + update * optimizer.layer_decay ** (below[name] or 0)
    return params


def test_what_waits_keeps_its_bits_and_has_no_moments() -> None:
    optimizer = schema.AdamW(weight_decay=0.5)
    thaw = thawing.Thaw(thawing.groups_of(masks.trained(DEEP, []), LEVELS, 2), jnp.array([True, True, False]))
    rule = optimizers.update_rule(optimizer, numbers(optimizer), thaw=thaw)
    updates, state = jax.jit(rule.update)(gradients(0), rule.init(DEEP), DEEP)
    after = flat(optax.apply_updates(DEEP, updates))
    same = {name for name, value in flat(DEEP).items() if np.array_equal(after[name], value)}
    assert same == {name for name, group in thaw.groups.items() if group == 2} and same
    counts = [int(s.count) for s in jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu")]
    assert counts == [1, 1, 0]


def test_layers_are_divided_from_the_top_and_what_is_frozen_for_good_is_in_no_group() -> None:
    groups = thawing.groups_of(masks.trained(DEEP, []), LEVELS, 3)
    assert groups == {name: group_of(name) for name in flat(DEEP)}
    fewer = thawing.groups_of(masks.trained(DEEP, ["embeddings", "layers/0/"]), LEVELS, 3)
    assert {name.split("/")[2]: group for name, group in fewer.items() if group} == {"10": 1, "9": 2, "2": 3}
    assert not any("embeddings" in name for name in fewer)


CNN = [
    "recipe=cnn_cls", "data=digits", "model.channels=[3]", "model.hidden=[6]", "train.batch_size=32", "optimizer=adamw",
    "mesh=single", "train.steps=8",
]  # fmt: skip


def test_a_training_thaws_at_the_steps_that_it_tells_and_goes_on_from_any_of_them() -> None:
    exp = experiment.build(bigctl.compose([*CNN, "optimizer.unfreeze=[0.25,5]", "schedule.horizon=12"]))
    programs = exp.programs
    params = programs.abstract_state.params
    assert thawing.told(exp.config, programs.trained(params), 8) == [
        "optimizer.unfreeze: what is above all layers is trained from the start",
        "optimizer.unfreeze: from step 3 on layers/0",  # a quarter of 12
        "optimizer.unfreeze: from step 5 on convs/0",
    ]
    state, seen, norms = steps.start(exp), [], []
    for number in range(7):
        before = flat(jax.device_get(state.params))
        state = steps.step(exp, state, steps.batch_of(exp, np.arange(32 * number, 32 * number + 32)))
        after = flat(jax.device_get(state.params))
        seen.append({name.split("/")[0] for name in after if not np.array_equal(after[name], before[name])})
        norms.append(steps.mean_of(state, "grad_norm"))
    assert seen == [{"head"}] * 3 + [{"head", "layers"}] * 2 + [{"head", "layers", "convs"}] * 2
    again = steps.start(exp)
    for number in range(7):  # the state goes through the host each time, as it does through a checkpoint
        again = jax.device_put(jax.device_get(again), programs.state_shardings)
        again = steps.step(exp, again, steps.batch_of(exp, np.arange(32 * number, 32 * number + 32)))
    steps.assert_same_bits(state, again)


@pytest.mark.parametrize(
    "noisy",
    [
        ["train.federated.clients=4", "train.federated.server=adam", "train.federated.fraction=0.5"],
        ["train.privacy.epsilon=3", "train.privacy.delta=1e-3"],
    ],
    ids=["federated", "private"],
)
def test_what_waits_is_not_moved_by_clients_and_noise_either(noisy: list[str]) -> None:
    exp = experiment.build(bigctl.compose([*CNN, "optimizer.unfreeze=[2,3]", *noisy]))
    feed, state, position = exp.feed(), steps.start(exp), 0
    before = flat(jax.device_get(state.params))
    for _ in range(2):
        state, _ = feed.advance(state, position, 1)
        position += 32
    after = flat(jax.device_get(state.params))
    assert {name.split("/")[0] for name in after if not np.array_equal(after[name], before[name])} == {"head"}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["optimizer.unfreeze=[0.2,0.1]"], "a lower group of layers cannot begin at 0.1"),
        (["optimizer.unfreeze=[4,4]"], "a lower group of layers cannot begin at 4"),
        (["optimizer.unfreeze=[-1]"], "optimizer.unfreeze"),
        (["optimizer.unfreeze=[0.5,2]"], "begin at steps 4, 2, each below the one before"),
        (["optimizer.unfreeze=[0.1,0.11]"], "begin at steps 1, 1, each below the one before"),
        (["optimizer.unfreeze=[0.1,0.3,0.5]"], "names 3 times, of model=cnn 2 layers below its head can be trained"),
        (
            ["optimizer.unfreeze=[0.1,0.3]", "optimizer.freeze=[convs]"],
            "names 2 times, of model=cnn 1 layer below",
        ),
        (["optimizer.unfreeze=[8]"], "the last group of layers begins at step 8, training has 8"),
        (["recipe=probe", "model=lite0_pretrained", "optimizer.unfreeze=[0.1]"], "recipe=probe trains the head alone"),
    ],
)
def test_what_cannot_be_is_a_config_error(keys: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        experiment.build(bigctl.compose([*CNN, *keys] if keys[0] != "recipe=probe" else keys))
    assert said in str(caught.value)
