"""DP-SGD: a step is the sum of clipped gradients, one by one, and noise that depends on nothing but (seed, step)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bigctl
from bigctl.cli.main import main
from bigctl.config import drift, schema
from bigctl.data.layouts import poisson
from bigctl.engine import privacy, resolve
from bigctl.errors import ConfigError, RunError
from bigctl.privacy.accountant import Accountant
from bigctl.runs import comparison, directory
from bigctl.training import private
from bigctl.training.checkpoints.arrays import read_arrays
from bigctl.training.checkpoints.store import Checkpoints
from tests.training import steps
from tests.training.steps import MLP, NO_DROPOUT, batch_of, built, start_of

pytestmark = pytest.mark.fewer

PRIVATE = (*MLP, NO_DROPOUT, "optimizer=sgd", "optimizer.lr=0.5", "optimizer.weight_decay=0", "train.ema=0")
PRIVATE += (
    "train.privacy.noise=1.5",
    "train.privacy.clip=0.3",
    "train.privacy.microbatch=8",
    "train.tensorboard=false",
)


def clipped_by_hand(
    grads: list[np.ndarray], mask: np.ndarray, layers: list[list[int]], clip: float
) -> list[np.ndarray]:
    total = [np.zeros(g.shape[1:]) for g in grads]
    for row in np.flatnonzero(mask):
        if not all(np.isfinite(g[row]).all() for g in grads):
            continue
        for layer in layers:
            norm = np.sqrt(sum((grads[place][row].astype(np.float64) ** 2).sum() for place in layer))
            for place in layer:
                total[place] += grads[place][row] * min(1, clip / np.sqrt(len(layers)) / max(norm, 1e-30))
    return total


@pytest.mark.parametrize("layers", [[[0, 1, 2]], [[0, 1], [2]]])
@pytest.mark.parametrize("broken", [False, True])
def test_gradients_are_clipped_one_by_one(layers: list[list[int]], broken: bool) -> None:
    rng = np.random.default_rng(0)
    grads = [rng.normal(size=(9, *shape)).astype(np.float32) * 0.4 for shape in ((3, 4), (4,), (4, 2))]
    grads[0][5] *= 100
    if broken:
        grads[1][2] = np.nan
        grads[2][3] = np.inf
    mask = np.array([1, 1, 1, 1, 1, 1, 1, 0, 0], np.float32)
    found, clipped = private.clipped_sum([jnp.asarray(g) for g in grads], jnp.asarray(mask), layers, 0.7)
    for ours, theirs in zip(found, clipped_by_hand(grads, mask, layers, 0.7), strict=True):
        assert np.asarray(ours) == pytest.approx(theirs, abs=1e-5)
    assert clipped[5] == 1 and not clipped[7:].any()
    alone, _ = private.clipped_sum([jnp.asarray(g[5:6]) for g in grads], jnp.ones(1), layers, 0.7)
    assert float(np.sqrt(sum((np.asarray(g) ** 2).sum() for g in alone))) <= 0.7 * (1 + 1e-6)


def padded(exp: Any, indices: np.ndarray) -> Any:
    real = indices >= 0
    return batch_of(exp, np.maximum(indices, 0), real.astype(np.float32))


def test_a_step_is_the_clipped_mean_with_noise_of_the_size_that_is_accounted() -> None:
    """Against gradients that the program without privacy gives of each example."""
    exp = built(*PRIVATE)
    plain = built(*(each for each in PRIVATE if "privacy" not in each))
    layout = poisson.sampled(exp.dataset.batches, 8)
    indices, _ = layout.training_plan(exp.dataset.splits["train"], batch_size=32, seed=0).batch(0)
    state = steps.start(exp)
    before = [np.asarray(x, np.float64) for x in jax.tree.leaves(start_of(exp.programs).params)]
    after = steps.step_of(exp.programs)(state, padded(exp, indices), exp.programs.hparams)
    start = steps.start(plain)
    one = jax.jit(plain.programs.step._gradients)
    total = [np.zeros_like(x) for x in before]
    for index in indices[indices >= 0]:
        grads = one(start.params, start.variables, batch_of(plain, [index]), jnp.int32(0), plain.programs.hparams)[0]
        leaves = [np.asarray(g, np.float64) for g in jax.tree.leaves(grads)]
        norm = np.sqrt(sum((g**2).sum() for g in leaves))
        total = [t + g * min(1, 0.3 / norm) for t, g in zip(total, leaves, strict=True)]
    moved = [(np.asarray(a) - b) / -0.5 for a, b in zip(jax.tree.leaves(after.params), before, strict=True)]
    noise = np.concatenate([(m * 32 - t).ravel() for m, t in zip(moved, total, strict=True)])
    assert noise.std() == pytest.approx(1.5 * 0.3, rel=4 / np.sqrt(2 * len(noise)))  # and not by what was drawn
    assert abs(noise.mean()) < 4 * 0.45 / np.sqrt(len(noise))
    again = exp.programs.step.config.train.privacy
    assert (again.noise, again.clip) == (1.5, 0.3)


@pytest.mark.slow
def test_microbatches_change_nothing_but_rounding() -> None:
    found = []
    for micro in (8, 32):
        exp = built(*(each for each in PRIVATE if "microbatch" not in each), f"train.privacy.microbatch={micro}")
        layout = poisson.sampled(exp.dataset.batches, 32)
        indices, _ = layout.training_plan(exp.dataset.splits["train"], batch_size=32, seed=0).batch(0)
        state = steps.step_of(exp.programs)(steps.start(exp), padded(exp, indices), exp.programs.hparams)
        found.append(np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(state.params)]))
    assert found[0] == pytest.approx(found[1], abs=1e-5)


REFUSED = (
    (["recipe=cnn_cls", "model.norm=batch"], "batch normalisation"),
    (["recipe=mlp_cls", "data=breast_cancer", "model.norm=batch"], "batch normalisation"),
    (["recipe=cnn_cls", "recipe.augment.mixup=0.2"], "mixup puts several examples into one"),
    (["recipe=cnn_cls", "train.adversarial.eps=0.1"], "against attacks"),
    (["recipe=cnn_cls", "distil.teacher=some"], "teacher"),
    (["recipe=gpt_lm"], "no examples of one person"),
    (["recipe=probe"], "solves for all examples"),
    (["recipe=cnn_cls", "recipe.class_weights=balanced"], "counted from the labels"),
    (["recipe=cnn_cls", "train.divergence.policy=skip"], "policy=skip looks at"),
    (["recipe=cnn_cls", "train.accumulate=2"], "microbatches"),
    (["recipe=cnn_cls", "train.batch_size=auto"], "batch size"),
    (["recipe=speed_cls"], "statistics of the images"),
)


def test_what_couples_examples_is_refused() -> None:
    for overrides, said in REFUSED:
        with pytest.raises(ConfigError, match=said):
            bigctl.compose([*overrides, "train.privacy.noise=1"])


def test_a_dry_run_compiles_the_step(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a batch that microbatches do not divide."""
    assert main(["train", *PRIVATE, "train.batch_size=30", "train.steps=2", "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == 2 and "privacy: epsilon" in found["privacy"][0]


def test_changes_of_a_promise_are_refused() -> None:
    plain, other = (bigctl.compose([*MLP, f"train.privacy.clip={clip}"]) for clip in (1, 2))
    (change,) = drift.changes(plain, other)
    assert change.drift == schema.STRUCTURAL


def resolved(*overrides: str) -> schema.Config:
    return resolve.resolve(bigctl.compose([*MLP, *overrides])).config


def test_noise_is_solved_for_the_budget_and_a_budget_too_small_names_the_steps_that_fit() -> None:
    config = resolved("train.privacy.epsilon=2", "train.steps=50", "train.privacy.accountant=rdp")
    noise, count = config.train.privacy.noise, 410
    assert noise is not None
    assert 1.99 < Accountant(noise, 32 / count, 1e-5, "rdp").epsilon(50) <= 2
    most = Accountant(1.0, 32 / count, 1e-5, "rdp").most_steps(2)
    given = ("train.privacy.epsilon=2", "train.privacy.noise=1", "train.privacy.accountant=rdp")
    with pytest.raises(ConfigError, match=f"too small for {most + 1} steps with noise=1: train.steps={most} fits"):
        resolved(*given, f"train.steps={most + 1}")
    assert resolved(*given, f"train.steps={most}").train.privacy.noise == 1
    with pytest.raises(ConfigError, match=r"0.0001 is too small for 100,000 steps with noise=1000"):
        resolved("train.privacy.epsilon=0.0001", "train.steps=100000", "train.privacy.accountant=rdp")
    with pytest.raises(ConfigError, match="no batches of 4,000"):
        resolved("train.privacy.noise=1", "train.batch_size=4000", "train.steps=1")


def test_keys_of_a_promise_that_is_not_made_are_told() -> None:
    for given, count in (("train.privacy.clip=0.5", 1), ("train.steps=1", 0)):
        resolution = resolve.resolve(bigctl.compose([*MLP, given]))
        told = list(privacy.announcement(resolution.config, resolution.dataset, 1))
        assert len(told) == count and all("nothing is private" in sentence for sentence in told)


def test_pictures_are_standardised_by_no_statistics_of_them() -> None:
    config = resolve.resolve(bigctl.compose(["recipe=cnn_cls", "data=digits", "train.privacy.noise=1"])).config
    assert (config.recipe.mean, config.recipe.std) == ([0.5], [0.5])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training in one go and in two, with epsilon given."""
    folder = tmp_path_factory.mktemp("runs")
    keys = [each for each in PRIVATE if "noise" not in each]
    keys += [
        "train.privacy.noise=1.5",
        "train.privacy.quantile=0.5",
        "checkpoint.every=3",
        "eval.every=3",
        "train.log_every=1",
    ]
    given = ["--require", "privacy/epsilon<=1", "--run-dir", str(folder / "whole"), "--quiet"]
    assert main(["train", *keys, "train.steps=6", *given]) == 0
    bigctl.train([*keys, "train.steps=3"], folder / "parts", quiet=True)
    bigctl.train([*keys, "train.steps=6"], folder / "parts", quiet=True)
    return folder


def test_resumed_run_is_bit_equal_and_its_epsilon_goes_on(runs: Path) -> None:
    saved = [Checkpoints(runs / name / "checkpoints").find(6) for name in ("whole", "parts")]
    whole, parts = (read_arrays(each.path, list(each.meta["shapes"])) for each in saved)
    assert whole.keys() == parts.keys() and any(name.startswith("opt_state") for name in whole)
    assert all((whole[name] == parts[name]).all() for name in whole)
    lines = [comparison.lines(runs / name / "metrics.jsonl") for name in ("whole", "parts")]
    logged = [{line["step"]: line["privacy/epsilon"] for line in each if "train/loss" in line} for each in lines]
    expected = {step: Accountant(1.5, 32 / 410, 1e-5).epsilon(step) for step in range(1, 7)}
    assert logged[0] == logged[1] == pytest.approx(expected)
    assert all("privacy/epsilon" in line for each in lines for line in each)


def test_epsilon_is_in_summary_checkpoint_and_report(runs: Path) -> None:
    run, spent = directory.locate(str(runs / "parts")), Accountant(1.5, 32 / 410, 1e-5).epsilon(6)
    summary = run.summary()
    assert summary["privacy"]["epsilon"] == summary["metrics"]["privacy/epsilon"] == pytest.approx(spent)
    assert (summary["privacy"]["steps"], summary["privacy"]["delta"]) == (6, 1e-5)
    meta = json.loads(max((runs / "parts").glob("checkpoints/*/meta.json")).read_text())
    assert meta["progress"]["epsilon"] == pytest.approx(spent)
    from bigctl.reports.run import run_page

    assert f"{spent:.4g}" in run_page(run, samples=0)


def test_what_a_run_promised_stays(runs: Path) -> None:
    keys = [each for each in PRIVATE if "clip" not in each]
    with pytest.raises(RunError, match="train.privacy.clip"):
        bigctl.train([*keys, "train.steps=9", "train.privacy.clip=0.5"], runs / "parts", quiet=True)
    with pytest.raises(ConfigError, match="by one size of batches"):
        bigctl.train(
            [*PRIVATE, "train.privacy.quantile=0.5", "train.batch_size=16", "train.steps=9", "checkpoint.every=3",
             "eval.every=3"],
            runs / "parts", quiet=True, allow_drift=["train.batch_size"],
        )  # fmt: skip


NOISE = """
import jax, numpy as np, sys
from bigctl.training import private
from bigctl.training.checkpoints.arrays import read_arrays
from bigctl.training.checkpoints.store import Checkpoints
from jax.sharding import Mesh, NamedSharding, PartitionSpec
mesh = Mesh(np.array(jax.devices()), ("data",))
where = NamedSharding(mesh, PartitionSpec("data"))
zeros = [jax.device_put(np.zeros((8, 5), np.float32), where), jax.device_put(np.zeros(16, np.float32), where)]
found = jax.jit(lambda z: private.with_noise(z, jax.random.key(3, impl="threefry2x32"), 0.7))(zeros)
print(len(jax.devices()), b"".join(np.asarray(x).tobytes() for x in found).hex())
"""


@pytest.mark.slow
def test_noise_has_the_same_bits_on_one_device_and_on_eight() -> None:
    told = []
    for flags in ("", "--xla_force_host_platform_device_count=8"):
        env = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin"}
        out = subprocess.run([sys.executable, "-c", NOISE], env=env, capture_output=True, text=True, check=True)
        told.append(out.stdout.split())
    assert [each[0] for each in told] == ["1", "8"] and told[0][1] == told[1][1]


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["example", "client"])
def test_a_clip_that_adapts_comes_to_the_quantile(unit: str) -> None:
    """Andrew et al. 2021: from far above and from far below, while the weights stay as they are."""
    keys = [each for each in PRIVATE if "clip=" not in each and "noise=" not in each and "optimizer.lr" not in each]
    keys += ["train.privacy.noise=0.5", "train.privacy.quantile=0.6", "train.privacy.quantile_rate=0.5"]
    keys += ["optimizer.lr=1e-9"] if unit == "example" else ["optimizer.lr=0.01", "train.privacy.unit=client"]
    if unit == "client":
        keys += ["train.federated.clients=40", "train.federated.weights=equal", "train.federated.fraction=0.5"]
        keys += ["train.federated.server_lr=1e-9"]
    ends = []
    for clip in (50.0, 0.001):
        exp = built(*keys, f"train.privacy.clip={clip}")
        feed, state, size, position = exp.feed(), steps.start(exp), exp.config.train.batch_size, 0
        for until in (60, 120):
            state, _, _ = exp.programs.take_sums(state)
            while position < until * size:
                state, done = feed.advance(state, position, until - position // size)
                position += done * size
        clipped, count = np.asarray(state.sums["clipped"])
        assert clipped / count == pytest.approx(0.4, abs=0.06)
        total, times = np.asarray(state.sums["clip"])
        assert times == 60 and total / times == pytest.approx(float(state.opt_state["train.privacy.clip"]), rel=0.6)
        ends.append(total / times)
    assert ends[0] == pytest.approx(ends[1], rel=0.15)


def test_what_adapting_the_clip_takes_of_the_noise() -> None:
    """A sum with noise z' C and a count by halves with noise b are one mechanism: z^-2 = z'^-2 + (2 b)^-2."""
    keys = schema.Privacy(noise=1.1, quantile=0.5)
    sums = keys.noise_of_sums(512)
    assert sums is not None and sums**-2 + (2 * 512 / 20) ** -2 == pytest.approx(1.1**-2)
    assert schema.Privacy(noise=1.1).noise_of_sums(8) == 1.1 and keys.noise_of_sums(11) is None
    clip, key = jnp.float32(2.0), jax.random.key(0)
    moved = jax.vmap(lambda k: private.adapted(keys, clip, jnp.array([300.0, 500.0]), 512, k))(
        jax.random.split(key, 4000)
    )
    told = np.log(np.asarray(moved) / 2) / -0.2  # the share below, as it is seen, without the quantile
    assert told.mean() == pytest.approx((200 - 250) / 512, abs=4 / 20 / np.sqrt(4000))
    assert told.std() == pytest.approx(1 / 20, rel=0.05)


def test_too_few_to_adapt_a_clip_by_are_refused() -> None:
    with pytest.raises(ConfigError, match="8 examples a step are too few to count those below a quantile with noise=1"):
        resolved("train.privacy.noise=1", "train.privacy.quantile=0.5", "train.batch_size=8", "train.steps=1")
    with pytest.raises(ConfigError, match="of the norm of all layers together"):
        bigctl.compose([*PRIVATE, "train.privacy.quantile=0.5", "train.privacy.per_layer=true"])
