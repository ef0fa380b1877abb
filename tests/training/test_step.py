"""One training step is the plain one that anybody would write down, however its batch is cut."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.extend.backend import get_backend
from jaxlib import version as jaxlib_version

from bigctl.data.layouts.rows import Rows
from bigctl.data.sampler import BatchPlan
from bigctl.parallel import accelerators
from bigctl.runs import provenance
from bigctl.training import feed as feeds
from bigctl.training.checkpoints.arrays import flatten
from bigctl.training.programs import _are_known, _known, compiler_options, options_of_use
from tests.training.steps import (
    CNN,
    MLP,
    NO_DROPOUT,
    STILL,
    arrays_of,
    assert_close,
    assert_same_bits,
    batch_of,
    built,
    mean_of,
    start,
    step,
)

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
        "optimizer.clip=0.5", "optimizer.lr=0.01", "schedule=cosine", "schedule.warmup=4", "train.update_norm=true",
    )  # fmt: skip
    batch = batch_of(exp, np.arange(32))
    state = start(exp)
    params, labels = state.params, batch["label"]

    def loss(params: Any) -> Any:
        layer, head = params["layers"][0], params["head"]
        hidden = jnp.maximum(batch["inputs"] @ layer["kernel"] + layer["bias"], 0)
        out = hidden @ head["kernel"] + head["bias"]
        return cross_entropy(jnp.concatenate([0 * out, out], 1), labels, 0.1, jnp.array([1.0, 3.0]))

    found = state
    decayed = {"head": {"kernel": True, "bias": False}, "layers": {0: {"kernel": True, "bias": False}}}
    tx = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adamw(lambda n: 0.01 * jnp.minimum(1.0, (n + 1) / 4), weight_decay=0.2, mask=decayed),
    )

    @jax.jit
    def plain(params: Any, opt_state: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        norms = {"grad_norm": optax.global_norm(grads), "update_norm": optax.global_norm(updates)}
        return optax.apply_updates(params, updates), opt_state, {"loss": value, **norms}

    opt_state = jax.jit(tx.init)(params)
    for number in range(1, 4):
        before = {name: np.asarray(value) for name, value in found.sums.items()}
        found = step(exp, found, batch)
        params, opt_state, told = plain(params, opt_state)
        assert_close(found.params, params)
        assert int(found.step) == number
        for name, expected in told.items():
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

    @jax.jit
    def plain(params: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params)
        tx = optax.sgd(0.1, momentum=0.9, nesterov=True)
        return value, optax.apply_updates(params, tx.update(grads, tx.init(params))[0])

    value, params = plain(state.params)
    found = step(exp, state, batch)
    assert mean_of(found, "loss") == pytest.approx(float(value), rel=1e-5)
    assert_close(found.params, params, rtol=1e-4)


# ------------------------------------------------------------------------------------------------ masks and parts


def test_padding_changes_nothing() -> None:
    """Neither loss nor update nor batch statistics see what the mask hides."""
    exp = built(*MLP, NO_DROPOUT, "model.norm=batch", "optimizer=sgd", "recipe.class_weights=balanced")
    plain = step(exp, start(exp), batch_of(exp, np.arange(24)))
    batch = batch_of(exp, np.arange(32), [1.0] * 24 + [0.0] * 8)
    batch["inputs"] = batch["inputs"].at[24:].set(1e3)
    padded = step(exp, start(exp), batch)
    assert_close(dataclasses.asdict(padded), dataclasses.asdict(plain), rtol=2e-5)
    assert float(padded.sums["accuracy"][1]) == 24
    assert np.any(flatten(plain.variables)["norms/0/norm/mean"])  # there were statistics to spoil


MASKS = {
    "whole": np.ones(32),
    "uneven": np.repeat([1.0, 0, 1, 0, 1, 1, 0, 1], [8, 5, 3, 8, 1, 4, 2, 1]),  # one part has nothing at all
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("weights", [pytest.param("none", marks=pytest.mark.slow), "[1,5]"])
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


# ------------------------------------------------------------------------------------------------- programs


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


def test_an_option_that_this_xla_does_not_have_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(platform: str, **_: Any) -> accelerators.Options:
        return {"xla_cpu_no_such_option": 1, "xla_cpu_scheduler_type": 1}

    monkeypatch.setattr(accelerators, "compiler_options", asked)
    assert compiler_options(built(*MLP).programs.step) == {"xla_cpu_scheduler_type": 1}


def test_what_xla_knows_is_asked_once_where_programs_are_kept(tmp_path: Path) -> None:
    known, unknown = ("xla_cpu_scheduler_type", 1), ("xla_cpu_no_such_option", 1)
    before = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    try:
        jax.config.update("jax_compilation_cache_dir", str(tmp_path))
        _are_known.cache_clear()
        assert _are_known((known,)) and not _are_known((unknown,))
        [said] = tmp_path.glob("options-*")
        assert said.stat().st_size == 0
        _are_known.cache_clear()
        of = jaxlib_version.__version__, get_backend().platform_version, (unknown,)
        said.rename(tmp_path / f"options-{provenance.digest(repr(of))}")
        assert _are_known((unknown,))  # as the file says it, which is not asked again
        jax.config.update("jax_compilation_cache_dir", str(tmp_path / "gone"))
        _are_known.cache_clear()
        assert _are_known((known,)) and not (tmp_path / "gone").exists()
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        _are_known.cache_clear()


def test_programs_of_few_parameters_and_of_no_pictures_are_compiled_the_way_that_is_quick_for_them(
    tmp_path: Path,
) -> None:
    together = "xla_cpu_use_fusion_emitters"  # not where XLA has no other way any more
    in_one_part = {"xla_cpu_parallel_codegen_split_count": 1}
    quick = _known({together: False, "xla_backend_optimization_level": 1, **in_one_part})
    mlp = built(*MLP).programs.step
    assert compiler_options(mlp).items() >= quick.items() and options_of_use(mlp).items() <= quick.items()
    assert together in quick or tuple(map(int, jax.__version__.split(".")[:2])) > (0, 10)
    deep = built(*MLP, "model.hidden=[4,4,4,4,4,4,4,4]").programs.step  # 18 arrays
    pictures = built("recipe=cnn_cls", "data=digits", "model.channels=[4]").programs.step
    rows = tmp_path / "rows.tsv"
    rows.write_text("text\tlabel\n" + "".join(f"{'up' if n % 2 else 'down'} {n}\t{n % 2}\n" for n in range(40)))
    own = ("data=tsv", f"data.path={rows}", "data.text=text", "data.label=label", "recipe.tokenizer.type=words")
    texts = built("recipe=lstm_cls", "model=lstm", "recipe.label_smoothing=0", *own).programs.step
    for each in (deep, pictures, texts):
        assert not quick.keys() & {**compiler_options(each), **options_of_use(each)}.keys()


def test_few_examples_are_scored_by_what_is_compiled_soonest_and_many_are_not() -> None:
    soonest = _known({"xla_backend_optimization_level": 0})
    programs = built(*MLP).programs
    most = 2**24 // sum(leaf.size for leaf in jax.tree.leaves(programs.weights.params))
    assert options_of_use(programs.step, most).items() >= soonest.items()
    for examples in (most + 1, None):
        assert not options_of_use(programs.step, examples).items() >= soonest.items()
    many, few = programs.evaluations
    assert programs.evaluation(most) is few and programs.evaluation(most + 1) is many and few is not many
    deep = built(*MLP, "model.hidden=[4,4,4,4,4,4,4,4]").programs
    assert deep.evaluation(1) is deep.evaluations[0]


def test_another_seed_needs_no_new_program() -> None:
    """What is kept of programs on the disk goes by their text."""
    one, other = (built(*MLP, "model.dropout=0.5", f"seed={seed}") for seed in (0, 1))
    arrays, indices = arrays_of(one), np.arange(32, dtype=np.int32)
    given = [(exp.programs, (start(exp), arrays, indices, exp.programs.hparams, Rows(), None)) for exp in (one, other)]
    texts = [programs.step_resident.lower(*arguments).as_text() for programs, arguments in given]
    assert texts[0] == texts[1]
    program, arguments = given[0]
    after = program.step_resident(*arguments).params
    hparams = other.programs.hparams
    redrawn = program.step_resident(start(one), arrays, indices, hparams, Rows(), None).params
    assert_close(after, program.step_resident(start(one), arrays, indices, program.hparams, Rows(), None).params, 0, 0)
    assert not np.array_equal(flatten(after)["layers/0/kernel"], flatten(redrawn)["layers/0/kernel"])


# -------------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize(
    "overrides",
    [
        (*MLP, NO_DROPOUT, "model.norm=batch"),
        (*CNN, *STILL, "model.hidden=[]", "model.norm=batch"),
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
    key, hparams = jax.random.key(0), exp.programs.hparams
    loss = jax.jit(lambda p, v: exp.programs.task.loss(exp.programs.merge(p, v, hparams), batch, key, key, hparams))
    sums = loss(state.params, state.variables)
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
