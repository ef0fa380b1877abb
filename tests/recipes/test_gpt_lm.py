"""Promises of `recipe=gpt_lm`: what is minimised and reported, however batches are made, and the samples on the way."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bigctl.recipes import gpt_lm

from bigctl.config import compose, schema
from bigctl.data.layouts.windows import NO_TARGET, WindowPlan
from bigctl.data.text import token_shards
from bigctl.data.text.token_shards import TokenShards
from bigctl.engine import experiment as experiments
from bigctl.engine import samples
from bigctl.errors import ConfigError, DataError
from bigctl.training import feed as feeds
from bigctl.training import throughput
from bigctl.training.evaluation import Evaluator
from tests.conftest import Cli

TINY = [
    "recipe=gpt_lm", "model.layers=1", "model.width=16", "model.heads=2", "model.intermediate=32", "model.context=16",
    "train.batch_size=4", "train.steps=30", "recipe.tokenizer.type=bytes", "data=text",
]  # fmt: skip


def story(count: int = 300) -> str:
    return "".join(f"{i} bottles of beer, {i * 7 % 10} of them café.\n" for i in range(count))


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("text") / "story.txt"
    file.write_text(story(), encoding="utf-8")
    return f"data.path={file}"


def built(path: str, *overrides: str) -> Any:
    return experiments.build(compose.compose([*TINY, path, *overrides]).config)


def plain_loss(experiment: Any, state: Any, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Cross-entropy of each target from all logits, by optax."""

    @jax.jit
    def losses(params: Any, inputs: Any, targets: Any) -> Any:
        model = experiment.programs.merge(params, state.variables, experiment.programs.hparams)
        return optax.softmax_cross_entropy_with_integer_labels(model.logits(model(inputs)), targets)

    return np.asarray(losses(state.params, inputs, targets))


def randomised(experiment: Any) -> Any:
    """A state whose output weights are no zeros."""
    state = experiment.programs.initialise()
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda p: jnp.asarray(p + 0.1 * draw.normal(size=p.shape), p.dtype), state.params)
    return replace(state, params=params)


# --- Scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "resident"), [(3, True), (64, False)])
def test_the_validation_loss_is_that_of_every_token_but_the_first(path, batch_size, resident):
    experiment = built(path, f"eval.batch_size={batch_size}", f"data.resident_mib={int(resident)}")
    state, columns = randomised(experiment), experiment.dataset.splits["validation"]
    found = Evaluator(experiment.programs, experiment.dataset.batches, columns, experiment.config, prefix="val")(
        state.params, state.variables
    )
    tokens = np.asarray(columns["inputs"]).astype(np.int32)
    whole, losses = (len(tokens) - 1) // 16 * 16, []
    for begin, end, width in ((0, whole, 16), (whole, len(tokens) - 1, len(tokens) - 1 - whole)):
        inputs, targets = (tokens[begin + i : end + i].reshape(-1, width) for i in (0, 1))
        losses += plain_loss(experiment, state, inputs, targets).ravel().tolist()
    assert len(losses) == len(tokens) - 1 and len(losses) % 16  # the last window is a part of one
    mean = float(np.mean(losses))
    assert found["val/loss"] == pytest.approx(mean, rel=1e-5)
    assert found["val/perplexity"] == pytest.approx(math.exp(mean), rel=1e-4)
    assert found["val/bits_per_byte"] == pytest.approx(mean / math.log(2), rel=1e-5)  # a byte is a token here


def test_bits_per_byte_count_bytes_and_not_tokens(path):
    experiment = built(path, "recipe.tokenizer.type=characters")
    columns, info = experiment.dataset.splits["test"], experiment.dataset.info
    assert info["bytes"]["test"] > info["characters"]["test"] == info["tokens"]["test"]
    state = experiment.programs.initialise()  # whose output is zeros: all tokens are equally likely
    found = Evaluator(experiment.programs, experiment.dataset.batches, columns, experiment.config, prefix="test")(
        state.params, state.variables
    )
    vocabulary = experiment.dataset.features.tokenizer["vocab_size"]
    assert found["test/loss"] == pytest.approx(math.log(vocabulary), rel=1e-5)
    share = info["characters"]["test"] / info["bytes"]["test"]
    assert found["test/bits_per_byte"] == pytest.approx(math.log2(vocabulary) * share, rel=1e-5)


def test_training_minimises_the_mean_over_targets_that_count(path):
    experiment = built(path)
    state = randomised(experiment)
    rng = np.random.default_rng(0)
    inputs, targets = rng.integers(0, 257, (2, 4, 16)).astype(np.int32)
    targets[2, 5:] = NO_TARGET
    mask = np.array([1, 1, 1, 0], np.float32)
    batch = {"inputs": inputs, "targets": targets, "mask": mask, "number": np.arange(4, dtype=np.int32)}
    hparams, key = experiment.programs.hparams, jax.random.key(0)
    merge, loss = experiment.programs.merge, experiment.task.loss
    sums = jax.jit(lambda p, v, batch: loss(merge(p, v, hparams), batch, key, key, hparams))(
        state.params, state.variables, batch
    )
    losses = plain_loss(experiment, state, inputs, np.maximum(targets, 0)) * (targets != NO_TARGET) * mask[:, None]
    assert float(sums["loss"][1]) == 2 * 16 + 5
    assert float(sums["loss"][0]) == pytest.approx(float(losses.sum()), rel=1e-5)


def test_z_loss_is_added_to_what_is_minimised_and_not_to_what_is_reported(path):
    plain, with_z = built(path), built(path, "recipe.z_loss=0.1")
    state = randomised(plain)
    tokens = np.asarray(plain.dataset.splits["train"]["inputs"][: 4 * 17]).astype(np.int32).reshape(4, 17)
    batch = {"inputs": tokens[:, :-1], "targets": jnp.asarray(tokens[:, 1:]), "mask": jnp.ones(4)}

    @jax.jit
    def both(params: Any) -> Any:
        found, key = {}, jax.random.key(0)
        for name, experiment in (("plain", plain), ("z", with_z)):
            model = experiment.programs.merge(params, state.variables, experiment.programs.hparams)
            found[name] = experiment.task.loss(model, batch, key, key, experiment.programs.hparams)
            found[f"{name} evaluated"] = experiment.task.evaluate(model, batch)
        logits = model.logits(model(jnp.asarray(batch["inputs"])))
        return found, jnp.sum(jax.nn.logsumexp(logits, -1) ** 2)

    found, squares = both(state.params)
    assert float(found["z"]["loss"][0]) == pytest.approx(
        float(found["plain"]["loss"][0]) + 0.1 * float(squares), rel=1e-5
    )
    assert float(found["z"]["cross_entropy"][0]) == pytest.approx(float(found["plain"]["loss"][0]), rel=1e-5)
    assert float(found["z evaluated"]["loss"][0]) == pytest.approx(float(found["plain evaluated"]["loss"][0]), rel=1e-6)


# --- Batches ----------------------------------------------------------------------------------------------------------


def trained(experiment: Any, kind: type, steps: int = 12) -> Any:
    feed = feeds.make_feed(
        experiment.programs, experiment.dataset.batches, experiment.dataset.splits["train"], experiment.config
    )
    assert type(feed) is kind
    state, done = experiment.programs.initialise(), 0
    while done < steps:
        state, count = feed.advance(state, done * experiment.config.train.batch_size, steps - done)
        done += count
    feed.close()
    assert feed.program()._cache_size() == 1
    return state


def test_every_feed_trains_on_the_same_windows(path):
    states = [
        trained(built(path, *overrides), kind)
        for kind, overrides in (
            (feeds.LoopFeed, ()),
            (feeds.ResidentFeed, ("train.steps_per_dispatch=1",)),
            (feeds.SentFeed, ("data.resident_mib=0",)),
        )
    ]
    for other in states[1:]:
        for a, b in zip(jax.tree.leaves(states[0].params), jax.tree.leaves(other.params), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_of_many_tokens_in_files_no_copy_is_made(tmp_path, monkeypatch):
    np.random.default_rng(0).integers(0, 256, 4000).astype("<u2").tofile(tmp_path / "a.bin")
    experiment = built(f"data.path={tmp_path / 'a.bin'}", "data=tokens", "recipe.tokenizer.type=bytes")
    kept = trained(experiment, feeds.LoopFeed)
    monkeypatch.setattr(token_shards, "MANY", 1000)

    def never(*given):
        raise AssertionError("all tokens were read")

    monkeypatch.setattr(TokenShards, "__array__", never)
    read = trained(experiment, feeds.SentFeed)
    for a, b in zip(jax.tree.leaves(kept.params), jax.tree.leaves(read.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_where_a_run_is_cut_changes_no_bit(path):
    experiment = built(path, "model.dropout=0.1")
    states = []
    for limits in ([9], [4, 5], [1, 1, 7]):
        feed = feeds.make_feed(
            experiment.programs, experiment.dataset.batches, experiment.dataset.splits["train"], experiment.config
        )
        state, done = experiment.programs.initialise(), 0
        for limit in limits:
            feed._length = limit
            state, count = feed.advance(state, done * 4, limit)
            assert count == limit
            done += count
        states.append(state)
    for other in states[1:]:
        for a, b in zip(jax.tree.leaves(states[0]), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(a, b)


def test_four_parts_are_the_whole_batch(path):
    whole, parts = (
        trained(built(path, "optimizer=sgd", *more), feeds.LoopFeed, 3) for more in ((), ("train.accumulate=4",))
    )
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_an_epoch_is_all_windows_of_the_training_text(path):
    experiment = built(path, "train.steps=null", "train.epochs=2")
    tokens = len(experiment.dataset.splits["train"]["inputs"])
    windows = WindowPlan(tokens, 16, 0).num_examples
    assert experiment.dataset.size("train") == windows
    assert experiment.cadence.total == round(2 * windows / 4)


# --- Experts ----------------------------------------------------------------------------------------------------------


def test_losses_of_routers_are_added_and_padding_has_no_part_in_them(path):
    experiment = built(path, "model.experts=3", "model.load_balance_loss=0.5", "model.router_z_loss=0.25")
    state, hparams, key = randomised(experiment), experiment.programs.hparams, jax.random.key(0)
    merge, loss = experiment.programs.merge, experiment.task.loss

    @jax.jit
    def told(inputs):
        mask = jnp.array([1, 1, 1, 0], jnp.float32)
        batch = {"inputs": inputs, "targets": inputs, "mask": mask, "number": jnp.arange(4)}
        sums = loss(merge(state.params, state.variables, hparams), batch, key, key, hparams)
        return {name: total / weight for name, (total, weight) in sums.items()}

    inputs = jnp.asarray(np.random.default_rng(0).integers(0, 257, (4, 16)), jnp.int32)
    found = told(inputs)
    assert found["router_z"] > 0.1 and 1 < found["load_balance"] < 6
    assert 0 <= found["expert_load_min"] < 1 / 3 < found["expert_load_max"] <= 1 / 2 and "dropped_tokens" not in found
    added = 0.5 * found["load_balance"] + 0.25 * found["router_z"]
    assert float(found["loss"]) == pytest.approx(float(found["cross_entropy"] + added), rel=1e-5)
    assert told(inputs.at[3].set(0)) == found
    assert told(inputs.at[2].set(0)) != found


# --- Rates ------------------------------------------------------------------------------------------------------------


def test_operations_of_a_token_are_those_of_the_formula():
    # GPT-2: 124,439,808 parameters with 1,024 x 768 positions; 6 N + 12 L d T.
    shapes: dict[str, tuple[int, ...]] = {
        "token/embedding": (50257, 768),
        "position/embedding": (1024, 768),
        "layers": (124_439_808 - (50257 + 1024) * 768,),
    }
    tied = gpt_lm.flops_per_token(shapes, layers=12, width=768, block=1024)
    assert tied == 6 * (124_439_808 - 1024 * 768) + 12 * 12 * 768 * 1024
    untied = gpt_lm.flops_per_token({**shapes, "head/kernel": (768, 50304)}, layers=12, width=768, block=1024)
    assert untied == tied + 6 * 768 * (50304 - 50257)
    experts: dict[str, tuple[int, ...]] = {
        "layers/0/experts/up/kernel": (8, 10, 20),
        "layers/0/experts/router": (10, 8),
    }
    shares = {name: schema.Llama(experts=8, experts_per_token=2).active_share(name) for name in experts}
    assert gpt_lm.flops_per_token(experts, layers=0, width=10, block=1, shares=shares) == 6 * (2 * 10 * 20 + 10 * 8)


def test_utilisation_is_said_only_where_the_peak_is_known():
    assert (
        throughput.peak("cpu", 1, "bfloat16") is None and throughput.peak("NVIDIA H100 80GB HBM3", 1, "float32") is None
    )
    assert throughput.peak("NVIDIA H100 80GB HBM3", 8, "bfloat16") == 8 * 989e12
    assert throughput.Rates(1024, 1e9, None)(10.0) == {"tokens_per_s": 10240.0}
    assert throughput.Rates(1024, 1e9, 1e14)(10.0, "perf/")["perf/mfu"] == pytest.approx(0.1024)


# --- Whole runs -------------------------------------------------------------------------------------------------------


def test_a_run_learns_shows_samples_and_can_be_resumed(bigctl: Cli, path):
    command = [
        "train",
        *TINY,
        path,
        "eval.every=15",
        "recipe.sample_tokens=20",
        "recipe.prompt='1 bott'",
        "--name",
        "a",
    ]
    command.remove("train.steps=30")
    first = bigctl(*command, "train.steps=30")
    run = bigctl.folder / "runs" / "a"
    assert "sample at step 15:\n  1 bott" in first.stderr
    summary = json.loads((run / "summary.json").read_text())
    assert summary["metrics"]["val/loss"] < math.log(257) - 0.5
    assert summary["tokens_per_s"] == pytest.approx(16 * summary["examples_per_s"])
    assert summary["flops_per_token"] > 0 and "mfu" not in summary
    bigctl(*command, "train.steps=60")
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [15, 30, 45, 60]
    assert len({sample["text"] for sample in samples}) > 1 and all(sample["prompt"] == "1 bott" for sample in samples)
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("perf/tokens_per_s" in line for line in logged)
    assert bigctl.json("eval", str(run))["metrics"]["test/loss"] > 0
    assert "bigctl generate" in bigctl("predict", str(run), "--text", "x", code=2).stderr
    assert "bigctl generate" in first.stdout


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["recipe=bert_cls", "model=gpt_nano"], "writes text, recipe=bert_cls does not"),
        (["recipe.block=32"], "longer than the model's context"),
        (["recipe.block=0"], "recipe.block cannot be 0"),
        (["recipe.sample_every=never"], "recipe.sample_every"),
        (["recipe.z_loss=-1"], "recipe.z_loss cannot be -1"),
        (["data.test_fraction=1"], "data.test_fraction cannot be 1"),
    ],
)
def test_what_does_not_go_together_is_refused(path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        compose.compose([*TINY, path, *overrides])


def test_a_model_that_writes_no_text_is_refused(path):
    with pytest.raises(ConfigError, match="model=lstm does not write text"):
        compose.compose(["recipe=gpt_lm", "data=text", path, "model=lstm"])


def test_samples_begin_with_words_that_the_tokenizer_knows(tmp_path: Path):
    (tmp_path / "train.txt").write_text("the fox jumps over a lazy dog\n" * 20, encoding="utf-8")
    beginnings = {"疴近消散\n": "\n", "§ a dog 疴 over the lazy fox §": "over the lazy", "a fox": "a"}
    for number, (beginning, prompt) in enumerate(beginnings.items()):
        file = tmp_path / f"{number}.txt"
        file.write_text(beginning + "§" * 30, encoding="utf-8")
        experiment = built(
            f"data.path={tmp_path}/train.txt", f"data.validation_path={file}", "recipe.tokenizer.type=characters"
        )
        assert samples.make_sampler(experiment, tmp_path / "s.jsonl", print, resumed=0).prompt == prompt


def test_a_prompt_of_unknown_characters_is_refused_before_training(bigctl: Cli, path, error_line):
    line = error_line("train", *TINY, path, "recipe.tokenizer.type=characters", "recipe.prompt='§'", "--name", "p")
    assert "recipe.prompt: '§' has characters that the tokenizer does not know" in line
    assert not (bigctl.folder / "runs" / "p" / "checkpoints").exists()


def test_data_that_is_no_text_is_refused(path, tmp_path: Path):
    with pytest.raises(ConfigError, match="needs a text, the data holds table rows"):
        experiments.build(compose.compose([*TINY[:-1], "data=breast_cancer"]).config)
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(DataError, match="17 are needed"):
        built(f"data.path={tmp_path}/short.txt")
