"""What of a checkpoint is read: a state whose parts were turned on or off since, and the weights alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore

from bigctl.errors import RunError
from bigctl.training.checkpoints.arrays import shapes
from bigctl.training.checkpoints.store import Checkpoints
from bigctl.training.state import Progress, TrainState, Weights


@pytest.fixture
def store(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints")


# --- Optimizers whose parts are turned on and off ---------------------------------------------------------------------


def kept(store: Checkpoints, optimizer: Any, wanted: Any) -> Any:
    """The state of one optimizer, saved, and restored as that of another."""
    state = {"params": jnp.arange(3.0), "opt_state": optimizer}
    store.save(state, Progress(step=1), {"shapes": shapes(state), "data": "none"})  # type: ignore[arg-type]
    store.wait(last=True)
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
        {"params": state["params"], "opt_state": wanted},
    )
    restored = store.restore(store.find("last"), abstract)  # type: ignore[arg-type]
    return restored["opt_state"]  # type: ignore[index]


OFF: tuple[()] = ()
MOMENTS = {"count": jnp.int32(7), "mu": jnp.array([1.0, 2.0, 3.0])}


@pytest.mark.parametrize("inner", [lambda chain: chain, lambda chain: {"inner_state": chain}], ids=["all", "frozen"])
@pytest.mark.parametrize("before", [(MOMENTS, OFF), (OFF, MOMENTS, OFF)], ids=["older", "clipped"])
def test_state_of_an_optimizer_is_found_with_and_without_a_place_for_clipping(store, before, inner) -> None:
    zeros = jax.tree.map(jnp.zeros_like, MOMENTS)
    found = kept(store, inner(before), inner((OFF, zeros, OFF, OFF)))
    assert jax.tree.map(lambda leaf: leaf.tolist(), found) == inner(
        (OFF, {"count": 7, "mu": [1.0, 2.0, 3.0]}, OFF, OFF)
    )


def test_momentum_that_is_turned_on_begins_with_zeros_and_can_be_turned_off(store: Checkpoints) -> None:
    trace = {"trace": {"kernel": jnp.array([4.0, 5.0])}}
    on = kept(store, (OFF, OFF), (OFF, trace, OFF))
    assert on[1]["trace"]["kernel"].tolist() == [0.0, 0.0]
    other = Checkpoints(store.folder.with_name("others"))
    assert jax.tree.leaves(kept(other, (trace, OFF), (OFF, OFF, OFF))) == []


def test_a_metric_that_is_told_since_begins_with_zeros_and_one_that_is_not_any_more_is_left_out(store) -> None:
    def sums(**told: Any) -> TrainState:
        others = {"variables": {}, "opt_state": (), "ema": {}, "bad_step": jnp.int32(-1), "anomaly_state": {}}
        return TrainState(step=jnp.int32(3), params={"w": jnp.arange(3.0)}, sums=told, **others)

    loss, norm = jnp.array([4.0, 2.0]), jnp.array([0.5, 2.0])
    for number, (saved, wanted, found) in enumerate(
        (
            (sums(loss=loss), sums(loss=loss, update_norm=norm), {"loss": [4.0, 2.0], "update_norm": [0.0, 0.0]}),
            (sums(loss=loss, update_norm=norm), sums(loss=loss), {"loss": [4.0, 2.0]}),
        )
    ):
        folder = Checkpoints(store.folder.with_name(f"others{number}"))
        folder.save(saved, Progress(step=3), {"shapes": shapes(saved)})
        folder.wait(last=True)
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), wanted)
        restored = folder.restore(folder.find("last"), abstract)
        assert {name: value.tolist() for name, value in restored.sums.items()} == found
        assert restored.params["w"].tolist() == [0.0, 1.0, 2.0]


def test_state_of_another_optimizer_is_refused(store: Checkpoints) -> None:
    with pytest.raises(RunError, match=r"opt_state/1/nu is missing in the checkpoint"):
        kept(store, (OFF, MOMENTS), (OFF, {**MOMENTS, "nu": MOMENTS["mu"]}))


# --- The weights alone ------------------------------------------------------------------------------------------------


def bytes_read() -> int:
    found = tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
    return sum(int(value["value"]) for metric in found for value in metric["values"])


@pytest.mark.parametrize("averaged", [False, True])
def test_weights_are_restored_without_reading_the_optimizer_state(store: Checkpoints, averaged: bool) -> None:
    large = jnp.asarray(np.random.default_rng(0).normal(size=2**19), jnp.float32)  # 2 MiB, which nothing compresses
    params, mean = {"b": jnp.arange(3.0), "a": {"kernel": jnp.ones((2, 2))}}, {"norm": {"mean": jnp.full(3, 7.0)}}
    ema = jax.tree.map(lambda leaf: leaf + 0.25, params)
    state = {"params": params, "ema": ema, "variables": mean, "opt_state": {"mu": large}}
    store.save(state, Progress(step=1), {"shapes": shapes(state)})  # type: ignore[arg-type]
    store.wait(last=True)
    wanted = Weights(ema if averaged else params, mean)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), wanted)
    saved, before = store.find("last"), bytes_read()
    found = store.restore_weights(saved, abstract, averaged=averaged)
    assert 0 < bytes_read() - before < large.nbytes / 8
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype and bool((a == b).all()), found, wanted))
    kind, other = "ema" if averaged else "params", jax.ShapeDtypeStruct((4,), jnp.float32)
    for changed, said in (
        (Weights({**abstract.params, "b": other}, mean), rf"{kind}/b is \[3\] in the checkpoint and \[4\] in this"),
        (Weights(abstract.params, {"norm": {"var": other}}), r"variables/norm/var is missing in the checkpoint"),
        (Weights({"b": abstract.params["b"]}, mean), rf"{kind}/a/kernel is \[2, 2\] in the checkpoint and nothing in"),
    ):
        with pytest.raises(RunError, match=said):
            store.restore_weights(saved, changed, averaged=averaged)
