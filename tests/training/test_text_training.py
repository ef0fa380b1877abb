"""Training on texts: buckets, feeds, accumulation, devices and frozen weights change nothing that they should not."""

from __future__ import annotations

import csv
import functools
import json
import random
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import bigctl
from bigctl import memory
from bigctl.engine import device_memory, experiment, step_memory
from bigctl.engine.experiment import Experiment
from bigctl.errors import ConfigError
from bigctl.training import feed as feeds
from bigctl.training.checkpoints.arrays import flatten, size_of
from bigctl.training.compiled import compiled
from tests import forked
from tests.conftest import Cli
from tests.training.test_sharding import assert_meshes_agree

ROWS = 200
BATCH = 16
BERT = ["model.layers=1", "model.width=16", "model.heads=2", "model.intermediate=32", "model.positions=32"]
WORDS = ["recipe.tokenizer.type=words", "recipe.tokenizer.size=64", "recipe.tokenizer.max_length=32"]
RECIPES = {
    "bert_cls": ["recipe=bert_cls", "model=bert_tiny", *BERT, *WORDS, "recipe.bucketing.pack=false"],
    "lstm_cls": ["recipe=lstm_cls", "recipe.label_smoothing=0", "model.embedding=8", "model.hidden=8", *WORDS],
    "bert_mlm": ["recipe=bert_mlm", "model=bert_tiny", *BERT, *WORDS],
}
NO_DROPOUT = {
    "bert_cls": ["model.dropout=0", "model.attention_dropout=0"],
    "lstm_cls": ["model.dropout=0"],
    "bert_mlm": ["model.dropout=0", "model.attention_dropout=0"],
}


@functools.cache
def _rows() -> list[tuple[str, str]]:
    draw = random.Random(0)
    words = [f"w{i}" for i in range(50)]
    return [
        (" ".join(draw.choices(words, k=draw.choice([2, 3, 5, 8, 13, 21, 34]))), "ab"[i % 3 > 0]) for i in range(ROWS)
    ]


def write(folder: Path) -> list[str]:
    file = folder / "texts.csv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("text", "y"), *_rows()])
    return ["data=csv", f"data.path={file}", "data.text=text", "data.label=y"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write(tmp_path_factory.mktemp("texts"))


def build(recipe: str, data: list[str], *overrides: str, shapes: int = 2) -> Experiment:
    always = [f"train.batch_size={BATCH}", "train.steps=20", "schedule=constant", f"recipe.bucketing.shapes={shapes}"]
    return experiment.build(bigctl.compose([*RECIPES[recipe], *data, *always, *overrides]))


def fit(exp: Experiment, steps: int = 6, start: Any = None) -> tuple[Any, list[float]]:
    """The state after some steps, and their losses."""
    feed = feeds.make_feed(exp.programs, exp.dataset.batches, exp.dataset.splits["train"], exp.config)
    state, sums = exp.programs.initialise() if start is None else start, [np.zeros(2)]
    size = exp.config.train.batch_size
    try:
        for number in range(steps):
            state, _ = feed.advance(state, number * size, 1)
            sums.append(np.asarray(jax.device_get(state.sums["loss"]), np.float64))
    finally:
        feed.close()
    each = np.diff(sums, axis=0)
    return state, (each[:, 0] / each[:, 1]).tolist()


def params(state: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in flatten(state.params).items()}


# --- Feeds ------------------------------------------------------------------------------------------------------------


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("bert_cls", "bert_mlm")]


@pytest.mark.parametrize("recipe", ["lstm_cls", *SLOW])
def test_batches_that_are_sent_train_as_resident_ones_do_to_the_last_bit(recipe, data, monkeypatch):
    """With one program a shape, and none after the first epoch."""
    monkeypatch.setattr(forked, "LEAVING_OUT", False)
    found = []
    for more in ([], ["data.resident_mib=0"]):
        exp = build(recipe, data, *more)
        feed = feeds.make_feed(exp.programs, exp.dataset.batches, exp.dataset.splits["train"], exp.config)
        state, used, compiled, sums = exp.programs.initialise(), set(), [], []
        steps = -(-exp.dataset.size("train") // BATCH)
        try:
            for number in range(3 * steps):
                used.add(feed.shape(number * BATCH))
                state, _ = feed.advance(state, number * BATCH, 1)
                compiled.append(feed.program()._cache_size())
                sums.append(np.asarray(jax.device_get(state.sums["loss"])).tolist())
        finally:
            feed.close()
        assert len(used) == feed.shapes == 2
        assert compiled[steps] == compiled[-1] == 2
        found.append((sums, params(state)))
    (resident, weights), (sent, others) = found
    assert resident == sent and len(set(map(tuple, sent))) == len(sent)
    for name, value in weights.items():
        np.testing.assert_array_equal(value, others[name], err_msg=name)


def test_one_shape_needs_one_program(data):
    exp = build("lstm_cls", data, shapes=1)
    feed = feeds.make_feed(exp.programs, exp.dataset.batches, exp.dataset.splits["train"], exp.config)
    state = exp.programs.initialise()
    for number in range(8):
        assert feed.shape(number * BATCH) in (None, 32)
        state, _ = feed.advance(state, number * BATCH, 1)
    assert feed.shapes == feed.program()._cache_size() == 1


@pytest.mark.parametrize("more", [[], ["train.accumulate=2", "train.ema=0.9", "train.divergence.policy=skip"]])
def test_one_update_serves_all_lengths_and_trains_as_whole_steps_do(more, data, monkeypatch):
    exp = build("lstm_cls", data, *more)
    state, losses = fit(exp, 12)
    programs, parts = exp.programs, exp.programs.resident_in_parts
    assert (parts.graded._cache_size(), parts.update._cache_size(), programs.step_resident._cache_size()) == (2, 1, 0)
    monkeypatch.setattr(feeds, "in_parts", lambda mesh, shapes: False)
    whole, expected = fit(exp, 12)
    assert programs.step_resident._cache_size() == 2
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for name, value in params(whole).items():
        np.testing.assert_allclose(params(state)[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_the_update_that_was_compiled_to_be_checked_is_the_one_that_runs(data):
    """Here and for a second length; a program that is compiled anew would take as long once more."""
    compiled_now: list[str] = []

    def note(name: str, _: float, **more: Any) -> None:
        if name.endswith("backend_compile_duration"):
            compiled_now.append(str(more.get("fun_name")))

    exp = build("lstm_cls", data)
    columns, config = exp.dataset.splits["train"], exp.config
    feed = feeds.make_feed(exp.programs, exp.dataset.batches, columns, config, check=lambda step: None)
    state = exp.programs.initialise()
    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        for number in range(12):
            state, _ = feed.advance(state, number * BATCH, 1)
        jax.block_until_ready(state)
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
        feed.close()
    assert compiled_now.count("jit(updated)") == 1 and compiled_now.count("jit(run)") == 2


def sent(exp: Experiment) -> dict[str, Any]:
    """The columns of a batch that is sent."""
    return dict(exp.task.example_shapes(BATCH))


def test_the_memory_of_two_programs_is_asked_for_as_a_whole(data):
    """The state, and gradients beside the temporaries of either."""
    exp = build("lstm_cls", data, "model.embedding=64")
    programs = exp.programs
    parts = programs.sent_in_parts
    both = compiled(parts, programs.carried_state, sent(exp), programs.hparams)
    weights, state = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        for tree in (programs.carried_state.params, programs.carried_state)
    )
    temporary = max(each.memory_analysis().temp_size_in_bytes for each in (both.graded, both.update))
    found = both.memory_analysis()
    assert state + weights + temporary <= device_memory.peak(both) < 1.1 * (state + weights + temporary) + 2**20
    assert found.temp_size_in_bytes >= weights + temporary and found.alias_size_in_bytes == state
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "limit", lambda: device_memory.peak(both) - 1)
        with pytest.raises(ConfigError, match="a step takes"):
            step_memory.require_step(exp, both)


@pytest.mark.parametrize("shapes", [1, 2])
def test_the_memory_that_is_told_before_is_that_of_the_step_that_runs(data, shapes):
    exp = build("lstm_cls", data, shapes=shapes)
    programs = exp.programs
    whole = compiled(programs.step_sent, programs.carried_state, sent(exp), programs.hparams)
    trained = step_memory.as_trained(exp, whole, sent(exp))
    assert (trained is whole) is (shapes == 1)
    if shapes == 2:  # the first program gives the gradient to the other
        between = size_of(programs.carried_state.params)
        alone = device_memory.peak(trained.graded)  # type: ignore[attr-defined]
        assert device_memory.peak(trained) >= max(alone, size_of(programs.carried_state) + between)


def padding(exp: Experiment, steps: int) -> list[float]:
    """Tokens that only pad, and all, in the first batches."""
    columns = exp.dataset.splits["train"]
    plan = feeds.make_feed(exp.programs, exp.dataset.batches, columns, exp.config).plan  # type: ignore[attr-defined]
    lengths, total, real = np.diff(columns["offsets"]), 0, 0
    for number in range(steps):
        indices, length = plan.batch(number * BATCH)
        total, real = total + BATCH * length, real + lengths[indices].sum()
    return [total - real, total]


# --- The same step another way ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["lstm_cls", *SLOW])
def test_parts_of_a_batch_train_as_the_whole(recipe, data):
    more = [*NO_DROPOUT[recipe], *(["recipe.class_weights=balanced"] if recipe != "bert_mlm" else [])]
    built = [build(recipe, data, *more, *parts) for parts in ([], ["train.accumulate=4"])]
    whole, parts = (fit(exp, steps=4) for exp in built)
    for exp, (state, _) in zip(built, (whole, parts), strict=True):
        np.testing.assert_allclose(np.asarray(state.sums["padding"]), padding(exp, 4))
    np.testing.assert_allclose(parts[1], whole[1], rtol=2e-5)
    for name, value in params(whole[0]).items():
        np.testing.assert_allclose(params(parts[0])[name], value, atol=2e-4, err_msg=name)


@pytest.mark.parametrize(
    ("recipe", "meshes", "shapes"),
    [
        ("bert_cls", ["fsdp"], 1),
        pytest.param("bert_cls", ["data"], 2, marks=pytest.mark.slow),
        pytest.param("lstm_cls", ["data", "fsdp"], 2, marks=pytest.mark.slow),
        pytest.param("bert_mlm", ["data", "fsdp"], 2, marks=pytest.mark.slow),
        pytest.param("bert_cls", ["mixed", "tensor"], 2, marks=pytest.mark.slow),
    ],
)
def test_every_mesh_gives_the_losses_of_one_device(recipe, meshes, shapes, data):
    overrides = [*RECIPES[recipe], *data, f"recipe.bucketing.shapes={shapes}"]
    assert_meshes_agree({recipe: (overrides, meshes)})


@pytest.mark.parametrize("recipe", ["lstm_cls", SLOW[0]])
def test_one_batch_for_ever_is_learnt(recipe, data):
    exp = build(recipe, data, *NO_DROPOUT[recipe], "train.overfit_one_batch=true", "optimizer.lr=0.03")
    _, losses = fit(exp, steps=40)
    assert losses[-1] < 0.2 * losses[0]


# --- What is trained --------------------------------------------------------------------------------------------------


def test_frozen_weights_keep_their_bits_and_have_no_moments(data):
    exp = build("bert_cls", data, "optimizer.freeze=[embeddings,layers/0/up]", "optimizer.weight_decay=0.1", shapes=1)
    before, state = params(exp.programs.initialise()), fit(exp, steps=2)[0]
    moments = flatten(state.opt_state)
    for name, value in params(state).items():
        frozen = "embeddings" in name or "layers/0/up" in name
        assert np.array_equal(value, before[name]) is frozen, name
        assert any(other.endswith(name) for other in moments) is not frozen, name


@pytest.fixture(scope="module")
def plain(data) -> Experiment:
    """With averages, which change nothing of the training."""
    return build("bert_cls", data, *NO_DROPOUT["bert_cls"], "model.pooler=true", "train.ema=0.99", shapes=1)


def test_low_rank_adaptation_trains_what_it_adds_and_the_head(data, plain):
    """From a start that is the model without."""
    lora = ["model.lora.rank=2", "model.lora.targets=[query,down]", "model.pooler=true"]
    exp = build("bert_cls", data, *NO_DROPOUT["bert_cls"], *lora, shapes=1)
    begun = exp.programs.initialise(params(plain.programs.initialise()))
    before = params(begun)
    state, losses = fit(exp, steps=2, start=begun)
    assert losses[0] == pytest.approx(fit(plain, steps=1)[1][0], rel=1e-6)
    moved = {name for name, value in params(state).items() if not np.array_equal(value, before[name])}
    added = {name for name in before if "lora_" in name}
    assert moved == added | {"head/kernel", "head/bias", "pooler/kernel", "pooler/bias"}
    assert len(added) == 2 * 2
    state_size = sum(leaf.size for name, leaf in flatten(state.opt_state).items() if np.ndim(leaf))
    assert state_size == 2 * sum(before[name].size for name in moved)


def test_averages_begin_with_the_weights_that_are_given(plain):
    exp = plain
    weights = {name: value + 1 for name, value in params(exp.programs.initialise()).items() if "encoder" in name}
    state = exp.programs.initialise(weights)
    given = {name: jax.numpy.asarray(value) for name, value in params(state).items()}
    whole = exp.programs.make_state.lower(np.int64(0), given, {}).compile()
    assert "xor" not in whole.as_text()  # nothing is drawn where all is given
    ema, start = ({n: np.asarray(v) for n, v in flatten(tree).items()} for tree in (state.ema, state.params))
    for name, value in start.items():
        np.testing.assert_array_equal(value, ema[name])
        if name in weights:
            np.testing.assert_array_equal(value, weights[name])
    trained = fit(exp, steps=1, start=state)[0]
    after = {name: np.asarray(leaf) for name, leaf in flatten(trained.ema).items()}
    decay = 0.1  # (1 + 0) / (10 + 0), less than 0.99
    for name, value in params(trained).items():
        np.testing.assert_allclose(after[name], decay * start[name] + (1 - decay) * value, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("freeze", "message"), [("[decoder]", "no parameter's path has 'decoder'"), ("['.']", "nothing is left to train")]
)
def test_patterns_that_freeze_nothing_or_everything_are_refused(freeze, message, data):
    with pytest.raises(ConfigError, match=message) as caught:
        build("bert_cls", data, f"optimizer.freeze={freeze}")
    assert caught.value.where == "optimizer.freeze"


# --- Through the command ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pretraining_on_unlabelled_texts_gives_weights_to_fine_tune(bigctl: Cli) -> None:
    overrides = write(bigctl.folder)
    (bigctl.folder / "plain.csv").write_text("\n".join(["text", *(text for text, _ in _rows())]) + "\n")
    plain = ["data=csv", f"data.path={bigctl.folder / 'plain.csv'}", "data.text=text", "data.label=null"]
    length = ["train.batch_size=16", "train.steps=6", "train.tensorboard=false"]
    done = bigctl.json("train", *RECIPES["bert_mlm"], *plain, *length, "--name", "pre")
    assert {"val/loss", "val/perplexity", "test/accuracy"} <= set(done["metrics"])
    tuned = bigctl.json(
        "train", "recipe=bert_cls", "model=bert", "model.init_from=runs/pre", "recipe.tokenizer.max_length=32",
        *overrides, *length, "--name", "tuned",
    )  # fmt: skip
    assert {"val/roc_auc", "test/binary_f1"} <= set(tuned["metrics"])
    own = [json.loads((bigctl.folder / f"runs/{name}/tokenizer.json").read_text()) for name in ("pre", "tuned")]
    assert own[0] == own[1]
    error = bigctl("train", *RECIPES["bert_cls"], *plain, *length, "--name", "no", code=2).stderr
    assert "needs texts with classes" in error and "data.label" in error


@pytest.mark.parametrize(
    ("overrides", "message", "hint"),
    [
        (
            ["recipe=bert_cls", "model=bert_tiny", *WORDS, "data=digits"],
            "needs texts, the data holds image",
            "recipe=cnn_cls",
        ),
        (["recipe=cnn_cls", "TEXTS"], "needs images with classes, the data holds text", "recipe=ngram_cls"),
        (["recipe=bert_mlm", "TEXTS", "recipe.tokenizer.size=100"], "100 is too small", "at least 261"),
        (["recipe=lstm_cls", "TEXTS", "optimizer.freeze=[encoder]"], "no parameter's path has 'encoder'", "embedding"),
        (["recipe=lstm_cls", "model=cnn", "TEXTS"], "model=cnn does not read text", "model=lstm"),
    ],
    ids=["pictures", "recipe", "size", "freeze", "model"],
)
def test_what_does_not_go_together_is_one_error(overrides, message, hint, bigctl: Cli, error_line) -> None:
    texts = write(bigctl.folder)
    given = [part for o in overrides for part in (texts if o == "TEXTS" else [o])]
    found = error_line("train", *given, "train.steps=1")
    assert message in found and hint in found
    assert not list((bigctl.folder / "runs").glob("*/checkpoints"))
