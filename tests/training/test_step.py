"""One training step is the plain one that anybody would write down, however its batch is cut, sent or grouped."""

from __future__ import annotations

import dataclasses
import functools
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import bigctl
from bigctl.data.layouts.layout import FixedPlan
from bigctl.data.layouts.rows import Rows
from bigctl.data.sampler import BatchPlan
from bigctl.engine import experiment
from bigctl.engine.experiment import Experiment
from bigctl.training import feed as feeds
from bigctl.training.checkpoints.arrays import flatten
from bigctl.training.programs import LARGEST_LOOP, Programs
from bigctl.training.state import TrainState

MLP = ("recipe=mlp_cls", "data=breast_cancer", "model.hidden=[8]", "train.batch_size=32", "schedule=constant")
CNN = (
    "recipe=cnn_cls", "data=digits", "model.channels=[3]", "model.hidden=[6]", "train.batch_size=32",
    "schedule=constant",
)  # fmt: skip
STILL = ("recipe.augment.rotate=0", "recipe.augment.scale=0", "recipe.augment.shift=0")
NO_DROPOUT = "model.dropout=0"


@functools.cache
def built(*overrides: str) -> Experiment:
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


# ------------------------------------------------------------------------------------------------- the plain step


def cross_entropy(logits: Any, labels: Any, smoothing: float, weights: Any) -> Any:
    """As torch's CrossEntropyLoss(weight, label_smoothing) has it, written with loops over classes in mind."""
    classes = logits.shape[-1]
    logp = logits - jax.nn.logsumexp(logits, -1, keepdims=True)
    picked = -jnp.take_along_axis(logp, labels[:, None], 1)[:, 0] * weights[labels]
    spread = -(logp * weights).sum(-1) / classes
    return ((1 - smoothing) * picked + smoothing * spread).sum() / weights[labels].sum()


def test_an_mlp_step_is_the_plain_one() -> None:
    """Class weights, label smoothing, clipping, decay and a schedule, all at once."""
    exp = built(
        *MLP, NO_DROPOUT, "recipe.class_weights=[1,3]", "recipe.label_smoothing=0.1", "optimizer.weight_decay=0.2",
        "optimizer.clip=0.5", "optimizer.lr=0.01", "schedule=cosine", "schedule.warmup=4",
    )  # fmt: skip
    batch = batch_of(exp, np.arange(32))
    state = start(exp)
    params, labels = state.params, batch["label"]

    def loss(params: Any) -> Any:
        layer, head = params["layers"][0], params["head"]
        hidden = jnp.maximum(batch["inputs"] @ layer["kernel"] + layer["bias"], 0)
        out = hidden @ head["kernel"] + head["bias"]
        return cross_entropy(jnp.concatenate([0 * out, out], 1), labels, 0.1, jnp.array([1.0, 3.0]))

    found, updates = state, None
    decayed = {"head": {"kernel": True, "bias": False}, "layers": {0: {"kernel": True, "bias": False}}}
    tx = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adamw(lambda n: 0.01 * jnp.minimum(1.0, (n + 1) / 4), weight_decay=0.2, mask=decayed),
    )
    opt_state = tx.init(params)
    for number in range(1, 4):
        before = {name: np.asarray(value) for name, value in found.sums.items()}
        found = step(exp, found, batch)
        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        assert_close(found.params, params)
        assert int(found.step) == number
        for name, expected in {
            "loss": value,
            "grad_norm": optax.global_norm(grads),
            "update_norm": optax.global_norm(updates),
        }.items():
            total, weight = np.asarray(found.sums[name]) - before[name]
            assert total / weight == pytest.approx(float(expected), rel=1e-4), name


def test_a_cnn_step_is_the_plain_one() -> None:
    exp = built(*CNN, *STILL, "optimizer=sgd", "optimizer.nesterov=true", "optimizer.lr=0.1")
    batch = batch_of(exp, np.arange(32))
    state = start(exp)
    mean, std = exp.dataset.features.mean[0], exp.dataset.features.std[0]

    def loss(params: Any) -> Any:
        conv, layer, head = params["convs"][0], params["layers"][0], params["head"]
        x = (batch["inputs"] / 255 - mean) / std
        x = lax.conv_general_dilated(x, conv["kernel"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jax.nn.relu(x + conv["bias"])
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID").reshape(32, -1)
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
        return cross_entropy(x @ head["kernel"] + head["bias"], batch["label"], 0.0, jnp.ones(10))

    value, grads = jax.jit(jax.value_and_grad(loss))(state.params)
    tx = optax.sgd(0.1, momentum=0.9, nesterov=True)
    updates, _ = tx.update(grads, tx.init(state.params))
    found = step(exp, state, batch)
    assert mean_of(found, "loss") == pytest.approx(float(value), rel=1e-5)
    assert_close(found.params, optax.apply_updates(state.params, updates), rtol=1e-4)


# ------------------------------------------------------------------------------------------------ masks and parts


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_padding_changes_nothing(norm: str) -> None:
    """Neither loss nor update nor batch statistics see what the mask hides."""
    exp = built(*MLP, NO_DROPOUT, f"model.norm={norm}", "optimizer=sgd", "recipe.class_weights=balanced")
    plain = step(exp, start(exp), batch_of(exp, np.arange(24)))
    batch = batch_of(exp, np.arange(32), [1.0] * 24 + [0.0] * 8)
    batch["inputs"] = batch["inputs"].at[24:].set(1e3)
    padded = step(exp, start(exp), batch)
    assert_close(dataclasses.asdict(padded), dataclasses.asdict(plain), rtol=2e-5)
    assert float(padded.sums["accuracy"][1]) == 24
    if norm == "batch":
        assert np.any(flatten(plain.variables)["norms/0/norm/mean"])  # there were statistics to spoil


MASKS = {
    "whole": np.ones(32),
    "uneven": np.repeat([1.0, 0, 1, 0, 1, 1, 0, 1], [8, 5, 3, 8, 1, 4, 2, 1]),  # one part has nothing at all
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("weights", ["none", "[1,5]"])
def test_four_parts_are_the_whole_batch(weights: str, mask: str) -> None:
    overrides = [*MLP, NO_DROPOUT, "optimizer=sgd", "optimizer.lr=0.5", f"recipe.class_weights={weights}"]
    whole, parts = built(*overrides), built(*overrides, "train.accumulate=4")
    assert MASKS["uneven"].shape == (32,) and min(MASKS["uneven"].reshape(4, 8).sum(1)) == 0
    states = []
    for exp in (whole, parts):
        state = start(exp)
        for first in (0, 32):
            state = step(exp, state, batch_of(exp, np.arange(first, first + 32), MASKS[mask]))
        states.append(state)
    assert_close(dataclasses.asdict(states[1]), dataclasses.asdict(states[0]), rtol=2e-5)
    assert float(states[1].sums["accuracy"][1]) == 2 * MASKS[mask].sum()


# --------------------------------------------------------------------------------------------------------- averages


def test_averaged_weights_follow_the_formula_and_are_what_is_evaluated() -> None:
    exp = built(*MLP, NO_DROPOUT, "train.ema=0.2", "optimizer.lr=0.05")
    state = start(exp)
    expected = jax.tree.map(lambda p: np.asarray(p, np.float64), state.params)
    assert_same_bits(state.ema, state.params)
    for number in range(4):
        state = step(exp, state, batch_of(exp, np.arange(32 * number, 32 * number + 32)))
        decay = min(0.2, (1 + number) / (10 + number))  # in the first steps less
        expected = jax.tree.map(
            lambda e, p, d=decay: d * e + (1 - d) * np.asarray(p, np.float64), expected, state.params
        )
    assert_close(state.ema, expected)
    assert not np.allclose(flatten(state.ema)["head/kernel"], flatten(state.params)["head/kernel"], atol=1e-3)
    assert exp.programs.evaluation_weights(state) is state.ema


def test_without_averaging_there_is_no_second_copy() -> None:
    exp = built(*MLP, NO_DROPOUT)
    state = start(exp)
    assert not jax.tree.leaves(state.ema)
    assert exp.programs.evaluation_weights(state) is state.params


# ------------------------------------------------------------------------------------------ dispatches and programs


def run_grouped(exp: Experiment, groups: list[int]) -> TrainState:
    """A loop feed whose dispatches are of these sizes."""
    plan = FixedPlan(BatchPlan(exp.dataset.size("train"), exp.config.seed), exp.config.train.batch_size)
    feed = feeds.LoopFeed(exp.programs, Rows(), arrays_of(exp), plan, exp.config)
    feed._length = feed.largest
    state, done = start(exp), 0
    for size in groups:
        state, count = feed.advance(state, done * exp.config.train.batch_size, size)
        assert count == size
        done += count
    assert int(state.step) == done
    return state


def arrays_of(exp: Experiment) -> dict[str, jax.Array]:
    return feeds.place_columns(exp.programs.mesh, exp.dataset.splits["train"])


@pytest.mark.parametrize(
    "overrides",
    [(*MLP, "model.norm=batch", "train.ema=0.9"), (*CNN, "model.dropout=0.3", "train.accumulate=2")],
    ids=["mlp", "cnn"],
)
def test_grouping_steps_into_dispatches_changes_no_bit(overrides: tuple[str, ...]) -> None:
    exp = built(*overrides)
    one_by_one = run_grouped(exp, [1] * 15)
    for groups in ([15], [2] * 7 + [1], [3] * 5, [5] * 3, [1, 13, 1], [4, 11]):
        assert_same_bits(run_grouped(exp, groups), one_by_one)
    assert exp.programs.steps_resident._cache_size() == 1


def test_a_dispatch_never_passes_the_limit_and_short_ones_come_first() -> None:
    exp = built(*MLP, "model.norm=batch", "train.ema=0.9")
    plan = FixedPlan(BatchPlan(exp.dataset.size("train"), 0), 32)
    feed = feeds.LoopFeed(exp.programs, Rows(), arrays_of(exp), plan, exp.config)
    state, counts = start(exp), list[int]()
    for _ in range(4):
        state, count = feed.advance(state, sum(counts) * 32, 7)
        counts.append(count)
    assert counts[:2] == [1, 1] and max(counts) <= 7


NUMBERS = {"optimizer.lr": 0.05, "optimizer.weight_decay": 5.0, "model.dropout": 0.9, "recipe.label_smoothing": 0.4}


def test_other_numbers_need_no_new_program() -> None:
    exp = built(*MLP, "model.norm=batch", "train.ema=0.9")
    programs, indices = exp.programs, np.arange(32, dtype=np.int32)
    assert set(NUMBERS) <= set(programs.hparams)
    arrays = arrays_of(exp)
    results = [programs.step_resident(start(exp), arrays, indices, programs.hparams, Rows(), None).params]
    for name, value in NUMBERS.items():
        hparams = {**programs.hparams, name: jnp.float32(value)}
        results.append(programs.step_resident(start(exp), arrays, indices, hparams, Rows(), None).params)
    assert programs.step_resident._cache_size() == 1
    kernels = [np.asarray(flatten(params)["layers/0/kernel"]).tobytes() for params in results]
    assert len(set(kernels)) == len(kernels)  # every one of them is really used


FEEDS = {
    "resident": (feeds.ResidentFeed, "train", {"steps_per_dispatch": 1}),
    "loop": (feeds.LoopFeed, "train", {"steps_per_dispatch": 6}),
    "sent": (feeds.SentFeed, "data", {"resident_mib": 0}),
}


@pytest.mark.parametrize("overrides", [MLP, CNN], ids=["mlp", "cnn"])
def test_every_feed_gives_the_same_parameters(overrides: tuple[str, ...]) -> None:
    """Dropout and augmentation included. Each feed has a program of its own, so XLA may round differently between
    them, by the last bits; within one program there is no difference at all."""
    states, exp = {}, built(*overrides)
    for name, (kind, group, keys) in FEEDS.items():
        changed: Any = {group: dataclasses.replace(getattr(exp.config, group), **keys)}
        for attempt in ("first", "second"):
            feed = feeds.make_feed(
                exp.programs,
                exp.dataset.batches,
                exp.dataset.splits["train"],
                dataclasses.replace(exp.config, **changed),
            )
            assert type(feed) is kind
            state, done = start(exp), 0
            while done < 20:
                state, count = feed.advance(state, done * 32, 20 - done)
                done += count
            feed.close()
            states[name, attempt] = state
        assert_same_bits(states[name, "first"], states[name, "second"])
        assert feed.program()._cache_size() == 1
    for name in ("loop", "sent"):
        assert_close(states[name, "first"].params, states["resident", "first"].params, rtol=1e-4, atol=1e-5)


# ----------------------------------------------------------------------------------------- which examples, and when


def prefetchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


class Recorded:
    """Programs that only take note of the examples of each step."""

    def __init__(self, exp: Experiment):
        self.mesh, self.hparams = exp.programs.mesh, exp.programs.hparams
        self.seen: list[list[int]] = []

    def step_resident(self, state: Any, arrays: Any, indices: Any, hparams: Any, layout: Any, length: Any) -> Any:
        self.seen.append(indices.tolist())
        return state

    def steps_resident(
        self, state: Any, arrays: Any, indices: Any, count: int, hparams: Any, layout: Any, length: Any
    ) -> Any:
        self.seen += indices[:count].tolist()
        return state

    def step_sent(self, state: Any, batch: Any, hparams: Any) -> Any:
        self.seen.append(np.asarray(batch["label"]).tolist())
        return state


def sent_feed(columns: Any = None) -> tuple[Recorded, feeds.SentFeed, BatchPlan]:
    exp = built(*MLP)
    plan = BatchPlan(100, 0)
    programs = Recorded(exp)
    columns = {"label": np.arange(100)} if columns is None else columns
    batches = FixedPlan(plan, exp.config.train.batch_size)
    return programs, feeds.SentFeed(programs, Rows(), columns, batches, exp.config), plan  # type: ignore[arg-type]


def test_sent_batches_follow_the_plan_also_after_a_jump() -> None:
    programs, feed, plan = sent_feed()
    positions = [0, 32, 64, 640, 672, 0]
    for position in positions:
        feed.advance(None, position, 5)  # type: ignore[arg-type]
    feed.close()
    assert programs.seen == [plan.indices(position, 32).tolist() for position in positions]
    assert feed.waited > 0


@pytest.mark.parametrize("kind", [feeds.ResidentFeed, feeds.LoopFeed])
def test_resident_batches_follow_the_plan_through_blocks_and_jumps(kind: Any) -> None:
    exp = built(*MLP)
    programs, plan = Recorded(exp), BatchPlan(1000, 0)
    options = (exp.config,) if kind is feeds.LoopFeed else ()
    feed = kind(programs, Rows(), {}, FixedPlan(plan, 32), *options)
    feed._length = 9000
    starts = [0, *range(16_000, 17_600, 32), 64, 50_000]
    for position in starts:
        assert feed.advance(None, position, 1)[1] == 1
    if kind is feeds.LoopFeed:
        assert feed.advance(None, 70_000, 9000)[1] == LARGEST_LOOP
        starts += range(70_000, 70_000 + LARGEST_LOOP * 32, 32)
    assert programs.seen == [plan.indices(position, 32).tolist() for position in starts]


@pytest.mark.parametrize("keys", [keys for _, *keys in FEEDS.values()], ids=FEEDS)
def test_an_observer_is_told_what_each_step_is_given(keys: Any) -> None:
    exp, (group, changed), told = built(*MLP), keys, list[Any]()
    config = dataclasses.replace(exp.config, **{group: dataclasses.replace(getattr(exp.config, group), **changed)})
    columns = exp.dataset.splits["train"]
    feed = feeds.make_feed(exp.programs, exp.dataset.batches, columns, config, told.append)
    state, done = start(exp), 0
    while done < 4:
        state, count = feed.advance(state, done * 32, 4 - done)
        done += count
    feed.close()
    plan = BatchPlan(exp.dataset.size("train"), exp.config.seed)
    assert len(told) == 4
    for number, given in enumerate(told):
        indices = plan.indices(number * 32, 32)
        np.testing.assert_array_equal(given.get("indices", indices), indices)
        np.testing.assert_array_equal(given["inputs"], columns["inputs"][indices])
        np.testing.assert_array_equal(given["label"], columns["label"][indices])


def test_closing_ends_the_thread_even_when_it_is_far_ahead() -> None:
    before = prefetchers()
    _, feed, _ = sent_feed()
    feed.advance(None, 0, 1)  # type: ignore[arg-type]
    assert len(prefetchers()) == len(before) + 1
    while not feed._queue.full():  # it now waits for room
        pass
    feed.close()
    assert prefetchers() == before
    feed.close()  # twice does no harm


def test_an_error_of_the_thread_reaches_the_caller() -> None:
    class Broken:
        def take(self, *given: Any, **options: Any) -> Any:
            raise OSError("the disk is gone")

    _, feed, _ = sent_feed({"label": Broken()})
    with pytest.raises(OSError, match="the disk is gone"):
        feed.advance(None, 0, 1)  # type: ignore[arg-type]
    feed.close()
    assert not prefetchers()


# -------------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize(
    "overrides",
    [
        (*MLP, NO_DROPOUT, "model.norm=batch"),
        (*CNN, *STILL, "model.channels=[3,4]", "model.hidden=[]", "model.norm=batch"),
    ],
    ids=["mlp", "cnn"],
)
def test_bfloat16_computes_in_half_and_keeps_float32_weights(overrides: tuple[str, ...]) -> None:
    full, half = built(*overrides), built(*overrides, "train.precision=bfloat16")
    losses = {}
    for exp in (full, half):
        state = step(exp, start(full), batch_of(exp, np.arange(32)))
        for name, leaf in flatten(state).items():
            assert leaf.dtype in (jnp.float32, jnp.int32), name
        losses[exp.config.train.precision] = mean_of(state, "loss")
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)
    batch = batch_of(half, np.arange(32))
    program = str(jax.make_jaxpr(half.programs.step.train)(start(full), batch, half.programs.hparams))
    products = [line for line in program.splitlines() if "dot_general[" in line or "conv_general_dilated[" in line]
    assert products and all("bf16" in line.split("=")[0] for line in products), products


# --------------------------------------------------------------------------------------------------- going wrong


def test_one_batch_can_be_learnt_by_heart() -> None:
    exp = built(*MLP, NO_DROPOUT, "train.overfit_one_batch=true", "optimizer.lr=0.03")
    feed = feeds.make_feed(exp.programs, exp.dataset.batches, exp.dataset.splits["train"], exp.config)
    state, done = start(exp), 0
    while done < 200:
        state, count = feed.advance(state, done * 32, 200 - done)
        done += count
    batch = batch_of(exp, BatchPlan(exp.dataset.size("train"), 0).indices(0, 32))
    sums = exp.programs.task.loss(
        exp.programs.merge(state.params, state.variables, exp.programs.hparams),
        batch, jax.random.key(0), jax.random.key(0), exp.programs.hparams,
    )  # fmt: skip
    assert float(sums["loss"][0] / sums["loss"][1]) < 5e-3
    assert float(sums["accuracy"][0]) == 32


def test_the_first_step_without_a_finite_loss_is_kept() -> None:
    exp = built(*MLP, NO_DROPOUT)
    good = batch_of(exp, np.arange(32))
    bad = {**good, "inputs": good["inputs"].at[3, 0].set(jnp.nan)}
    state, seen = start(exp), []
    for batch in (good, good, bad, good, bad):
        state = step(exp, state, batch)
        seen.append(int(state.bad_step))
    assert seen == [-1, -1, 3, 3, 3]
