"""Small experiments and steps of them, for tests of what a step computes, is given, and does when it goes wrong."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bigctl
from bigctl.engine import experiment
from bigctl.engine.experiment import Experiment
from bigctl.training import feed as feeds
from bigctl.training.checkpoints.arrays import flatten
from bigctl.training.programs import Programs
from bigctl.training.state import TrainState

MLP = ("recipe=mlp_cls", "data=breast_cancer", "model.hidden=[8]", "train.batch_size=32", "schedule=constant")
CNN = (
    "recipe=cnn_cls", "data=digits", "model.channels=[3]", "model.hidden=[6]", "train.batch_size=32",
    "schedule=constant",
)  # fmt: skip
STILL = ("recipe.augment.rotate=0", "recipe.augment.scale=0", "recipe.augment.shift=0")
NO_DROPOUT = "model.dropout=0"


def built(*overrides: str) -> Experiment:
    """Shared by all tests that are compiled by as many optimizations, as it keeps its programs."""
    return _built(jax.config.read("jax_disable_most_optimizations"), *overrides)


@functools.cache
def _built(fewer: bool, *overrides: str) -> Experiment:
    return experiment.build(bigctl.compose([*overrides, "mesh=single", "train.steps=100"]))


@functools.cache
def step_of(programs: Programs) -> Any:
    """The step on a batch with a mask, compiled, and without donation."""
    return jax.jit(programs.step.train)


@functools.cache
def start_of(programs: Programs) -> Any:
    return jax.device_get(programs.initialise())


def start(exp: Experiment) -> TrainState:
    """A new state that may be donated; compiled once an experiment."""
    return jax.device_put(jax.tree.map(np.array, start_of(exp.programs)), exp.programs.state_shardings, may_alias=False)


def batch_of(exp: Experiment, indices: Any, mask: Any = None) -> dict[str, jax.Array]:
    columns = exp.dataset.splits["train"]
    n = len(indices)
    return {
        **{name: jnp.asarray(values[indices]) for name, values in columns.items()},
        "mask": jnp.ones(n) if mask is None else jnp.asarray(mask, jnp.float32),
        "number": jnp.arange(n, dtype=jnp.int32),
    }


def step(exp: Experiment, state: TrainState, batch: Any, **numbers: float) -> TrainState:
    changed = {name.replace("__", "."): jnp.float32(value) for name, value in numbers.items()}
    return step_of(exp.programs)(state, batch, {**exp.programs.hparams, **changed})


def mean_of(state: TrainState, name: str) -> float:
    total, weight = np.asarray(state.sums[name], np.float64)
    return float(total / weight)


def assert_close(a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    a, b = flatten(a), flatten(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=rtol, atol=atol, err_msg=name)


def assert_same_bits(a: Any, b: Any) -> None:
    a, b = flatten(a), flatten(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(np.asarray(a[name]), np.asarray(b[name]), err_msg=name)


def arrays_of(exp: Experiment) -> dict[str, jax.Array]:
    return feeds.place_columns(exp.programs.mesh, exp.dataset.splits["train"])
