"""Promises of `bigctl.optim.masks`: which parameters are trained, and how much slower each layer is."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
import pytest

from bigctl.config import schema
from bigctl.optim import masks, optimizers
from bigctl.parallel.partition import path_name
from tests.optim.test_optimizers import numbers

DEEP: dict[str, Any] = {
    "encoder": {
        "embeddings": {"token": {"embedding": np.ones((5, 3), np.float32)}, "norm": {"scale": np.ones(3, np.float32)}},
        "layers": {
            str(i): {"up": {"kernel": np.full((3, 3), 1.0 + i, np.float32), "bias": np.zeros(3, np.float32)}}
            for i in (0, 2, 9, 10)
        },
    },
    "head": {"kernel": np.ones((3, 2), np.float32), "bias": np.zeros(2, np.float32)},
}


def flat(tree: Any) -> dict[str, np.ndarray]:
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def one_step(config: schema.Optimizer, frozen: list[str] | None = None) -> tuple[dict[str, np.ndarray], Any]:
    """DEEP after an update by gradients of ones, and the optimizer's state."""
    trained = masks.trained(DEEP, frozen or [])
    rule = optimizers.update_rule(config, numbers(config), trained=trained)
    grads = jax.tree.map(lambda p, t: np.ones_like(p) if t else np.zeros_like(p), DEEP, trained)
    state = rule.init(DEEP)
    updates, state = jax.jit(rule.update)(grads, state, DEEP)
    return flat(optax.apply_updates(DEEP, updates)), state


@pytest.mark.parametrize(
    "config",
    [schema.Sgd(lr=0.5), schema.AdamW(weight_decay=0.1), schema.Muon(), schema.Lion(lr=0.1)],
    ids=lambda config: config.kind,
)
def test_each_layer_is_trained_slower_than_the_one_above(config):
    before = flat(DEEP)
    plain = {name: value - before[name] for name, value in one_step(config)[0].items()}
    slower = schema.dataclasses.replace(config, layer_decay=0.8)
    for name, value in one_step(slower)[0].items():
        if name.startswith("head"):
            below = 0
        elif "embeddings" in name:
            below = 12  # beneath layers 0 to 10
        else:
            below = 11 - int(name.split("/")[2])  # by number: 10 is above 9, and above 2
        np.testing.assert_allclose(value - before[name], plain[name] * 0.8**below, rtol=2e-3, atol=1e-7, err_msg=name)


@pytest.mark.parametrize(
    "config",
    [
        schema.Sgd(), schema.Adagrad(weight_decay=0.1), schema.AdamW(weight_decay=0.1, clip=1.0), schema.Lion(),
        schema.Muon(weight_decay=0.1), schema.AdamW(layer_decay=0.9, weight_decay=0.1),
    ],
    ids=["sgd", "adagrad", "adamw", "lion", "muon", "layers"],
)  # fmt: skip
def test_what_is_frozen_keeps_its_bits_and_has_no_optimizer_state(config):
    frozen = ["embeddings", r"layers/[0-9]/"]
    after, state = one_step(config, frozen)
    before = flat(DEEP)
    moved = {name for name in after if not np.array_equal(after[name], before[name])}
    assert moved == {name for name in before if name.startswith("head") or "layers/10/" in name}
    for name in before.keys() - moved:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    small = sum(leaf.size for leaf in jax.tree.leaves(state) if np.ndim(leaf))
    whole = sum(leaf.size for leaf in jax.tree.leaves(one_step(config)[1]) if np.ndim(leaf))
    share = sum(before[name].size for name in moved) / sum(leaf.size for leaf in before.values())
    assert small <= 1.5 * share * whole


def test_the_norm_that_is_clipped_is_that_of_what_is_trained():
    config = schema.Sgd(lr=1.0, momentum=0.0, clip=1.0)
    after, _ = one_step(config, ["encoder/"])
    step = np.concatenate([(flat(DEEP)[name] - after[name]).ravel() for name in ("head/kernel", "head/bias")])
    np.testing.assert_allclose(np.linalg.norm(step), 1.0, rtol=1e-6)
    np.testing.assert_allclose(step, 1 / np.sqrt(8), rtol=1e-6)


def test_patterns_are_searched_for_in_paths():
    found = flat(masks.trained(DEEP, [r"layers/2/", "bias$"]))
    assert {name for name, trained in found.items() if not trained} == {
        "encoder/layers/2/up/kernel",
        "head/bias",
        *(f"encoder/layers/{i}/up/bias" for i in (0, 2, 9, 10)),
    }
    assert all(jax.tree.leaves(masks.trained(DEEP, [])))


def test_the_decay_of_layers_is_a_number_like_others():
    config = schema.Sgd(layer_decay=0.9)

    @jax.jit
    def step(values: Any) -> Any:
        rule = optimizers.update_rule(config, values)
        return rule.update(DEEP, rule.init(DEEP), DEEP)[0]

    first, second = step(numbers(config)), step({**numbers(config), "optimizer.layer_decay": np.float32(0.5)})
    token = lambda updates: float(updates["encoder"]["embeddings"]["token"]["embedding"][0, 0])  # noqa: E731
    assert step._cache_size() == 1 and token(first) / token(second) == pytest.approx((0.9 / 0.5) ** 12, rel=1e-4)  # type: ignore[attr-defined]


CNN = [
    "convs/0/kernel",
    "convs/0/norm/norm/scale",
    "convs/1/kernel",
    "layers/0/kernel",
    "norms/0/norm/scale",
    "head/bias",
]


@pytest.mark.parametrize(
    ("model", "paths", "expected"),
    [
        (schema.Cnn(), CNN, [3, 3, 2, 1, 1, None]),
        (schema.Mlp(), ["layers/0/kernel", "norms/0/norm/bias", "layers/1/bias", "head/kernel"], [2, 2, 1, None]),
        (schema.Lstm(), ["embedding/embedding", "layers/0/forward/bias", "head/kernel"], [2, 1, None]),
        (
            schema.Bert(),
            ["encoder/embeddings/token/embedding", "encoder/layers/0/up/kernel", "encoder/layers/1/up/bias",
             "pooler/kernel", "decoder_bias"],
            [3, 2, 1, None, None],
        ),
        (
            schema.Gpt(),
            ["token/embedding", "position/embedding", "layers/0/up/kernel", "layers/10/up/kernel", "final_norm/scale"],
            [12, 12, 11, 1, None],
        ),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)  # fmt: skip
def test_each_model_tells_which_layers_are_below_which(model, paths, expected):
    tree: dict[str, Any] = {}
    for path in paths:
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = np.ones(1)
    assert masks.depths(tree, model.levels) == dict(zip(paths, expected, strict=True))
