"""Adversarial training moves images as its papers say, resumes to the bit, and makes a model more robust."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bigctl.recipes import adversarial
from bigctl.recipes.adversarial import Adversary

import bigctl
from bigctl.config import drift, schema
from bigctl.errors import ConfigError
from bigctl.runs import comparison, directory
from bigctl.training.checkpoints.arrays import read_arrays
from bigctl.training.checkpoints.store import Checkpoints
from bigctl.training.tracking.collapse import CollapseWatch

pytestmark = pytest.mark.fewer

SMALL = ["recipe=cnn_cls", "data=digits", "model.channels=[4]", "train.tensorboard=false", "schedule=constant"]
SMALL += ["train.batch_size=32", "train.adversarial.eps=0.1", "train.adversarial.steps=2"]


def given(norm: str, method: str, steps: int = 20) -> tuple[Adversary, jax.Array, jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    x, labels = jnp.asarray(rng.uniform(0.3, 0.7, (16, 3, 3, 1)), jnp.float32), jnp.asarray(rng.integers(0, 2, 16))
    weights = jnp.asarray(rng.normal(size=(9, 2)), jnp.float32)
    keys = schema.Adversarial(eps=0.2, norm=norm, method=method, steps=steps)
    return Adversary(keys), x, labels, weights, jnp.arange(16)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_of_a_linear_model_the_worst_point_of_the_ball_is_reached(norm: str) -> None:
    adversary, x, labels, weights, numbers = given(norm, "pgd")
    apart = (weights[:, 1] - weights[:, 0]).reshape(3, 3, 1)
    ahead = jnp.sign(apart) if norm == "linf" else apart / jnp.linalg.norm(apart)
    worst = x + 0.2 * jnp.where(labels == 0, 1.0, -1.0)[:, None, None, None] * ahead
    for moved in (
        adversary.trained_on(lambda z: z.reshape(len(z), 9) @ weights, x, labels, jax.random.key(0), numbers),
        adversary.judged_on(lambda z: z.reshape(len(z), 9) @ weights, x, labels),
    ):
        gained = jnp.sum((moved - x) * apart, (1, 2, 3)) * jnp.where(labels == 0, 1.0, -1.0)
        most = jnp.sum((worst - x) * apart, (1, 2, 3)) * jnp.where(labels == 0, 1.0, -1.0)
        assert np.asarray(gained) == pytest.approx(np.asarray(most), rel=1e-4 if norm == "linf" else 0.03)


@pytest.mark.parametrize("method", ["fast", "trades"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_images_stay_in_the_ball_and_are_drawn_by_their_number(norm: str, method: str) -> None:
    adversary, x, labels, weights, numbers = given(norm, method, 3)

    def moved(rows: slice, key: int) -> np.ndarray:
        logits = lambda z: jnp.tanh(z.reshape(len(z), 9) @ weights)  # noqa: E731
        found = adversary.trained_on(logits, x[rows], labels[rows], jax.random.key(key), numbers[rows])
        return np.asarray(found)

    whole = moved(slice(None), 0)
    apart = (whole - np.asarray(x)).reshape(16, -1)
    size = np.abs(apart).max(1) if norm == "linf" else np.linalg.norm(apart, axis=1)
    assert (size <= 0.2001).all() and size.max() > 0.1
    assert np.concatenate([moved(slice(8), 0), moved(slice(8, 16), 0)]) == pytest.approx(whole, abs=1e-6)
    assert (moved(slice(None), 1) != whole).any()


@pytest.mark.parametrize("method", schema.adversarial.METHODS)
def test_eps_grows_with_the_steps_and_evaluations_take_the_whole(method: str) -> None:
    rng = np.random.default_rng(0)
    x, labels = jnp.asarray(rng.uniform(0.3, 0.7, (4, 3, 3, 1)), jnp.float32), jnp.asarray([0, 1, 0, 1])
    weights = jnp.asarray(rng.normal(size=(9, 2)), jnp.float32)
    adversary = Adversary(schema.Adversarial(eps=0.2, method=method, steps=5, warmup=4))

    def logits(z: jax.Array) -> jax.Array:
        return z.reshape(len(z), 9) @ weights

    def size(moved: jax.Array) -> float:
        return float(jnp.abs(moved - x).max())

    key, numbers = jax.random.key(0), jnp.arange(4)
    moved = jax.jit(lambda step: adversary.trained_on(logits, x, labels, key, numbers, step))
    sizes = [size(moved(jnp.int32(step))) for step in (0, 1, 2, 3, 4, 400)]
    assert sizes == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.2, 0.2], abs=1e-6)
    assert size(adversary.judged_on(logits, x, labels)) == pytest.approx(0.2, abs=1e-6)


def test_divergence_is_that_of_scipy() -> None:
    from scipy.special import softmax
    from scipy.stats import entropy

    one, two = np.random.default_rng(0).normal(size=(2, 5, 4))
    expected = entropy(softmax(one, 1), softmax(two, 1), axis=1)
    assert adversarial.divergence(jnp.asarray(one), jnp.asarray(two)) == pytest.approx(expected, rel=1e-4)


def test_what_cannot_be_trained_against_is_refused() -> None:
    for overrides, said in (
        (["recipe=cnn_cls", "train.adversarial.eps=8"], "eps=0.03137"),
        (["recipe=bert_cls", "data=sst2", "train.adversarial.eps=0.1"], "trains on none"),
        (["recipe=mlp_cls", "data=breast_cancer", "train.adversarial.eps=0.1"], "trains on none"),
        (["recipe=cnn_cls", "train.adversarial.eps=0.1", "recipe.augment.mixup=0.2"], "mixup mixes them"),
        (["recipe=cnn_cls", "train.adversarial.eps=-1"], "cannot be -1"),
        ([*SMALL, "train.steps=8", "train.adversarial.warmup=9"], "would not reach 0.1 in a training of 8"),
        (["recipe=cnn_cls", "train.adversarial.method=slow"], "one of: pgd, fast, trades"),
    ):
        with pytest.raises(ConfigError, match=said):
            bigctl.compose(overrides)
    plain, other = (bigctl.compose(["recipe=cnn_cls", f"train.adversarial.eps={eps}"]) for eps in (0, 0.1))
    (change,) = drift.changes(plain, other)
    assert change.drift == schema.TRAJECTORY


def test_a_warmup_of_nothing_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = [*SMALL, "train.steps=1", "train.adversarial.eps=0", "train.adversarial.warmup=1"]
    bigctl.train(keys, tmp_path / "run")
    assert "note: train.adversarial.warmup has nothing to grow" in capsys.readouterr().err


@pytest.mark.slow
def test_resumed_run_is_bit_equal(tmp_path: Path) -> None:
    """With the robust accuracy of every evaluation, and eps still growing."""
    keys = [*SMALL, "checkpoint.every=3", "eval.every=3", "train.adversarial.method=trades"]
    keys += ["train.adversarial.warmup=5"]
    bigctl.train([*keys, "train.steps=6"], tmp_path / "whole", quiet=True)
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(Checkpoints(tmp_path / "parts" / "checkpoints").find(6).path)
    (tmp_path / "parts" / "summary.json").unlink()  # as if it had been killed after step 3
    assert bigctl.train([*keys, "train.steps=6"], tmp_path / "parts", quiet=True)["resumed_from"] == 3
    saved = [Checkpoints(tmp_path / name / "checkpoints").find(6) for name in ("whole", "parts")]
    whole, parts = (read_arrays(each.path, list(each.meta["shapes"])) for each in saved)
    assert whole.keys() == parts.keys() and any(name.startswith("opt_state") for name in whole)
    assert all((whole[name] == parts[name]).all() for name in whole)
    lines = [comparison.lines(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts")]
    evaluated = [[line for line in each if "val/loss" in line] for each in lines]
    assert evaluated[0] == evaluated[1] and 0 <= evaluated[0][-1]["val/robust_accuracy"] <= 1
    assert directory.locate(str(tmp_path / "whole")).summary()["metrics"]["test/robust_accuracy"] >= 0


@pytest.mark.slow
def test_training_against_attacks_withstands_them(tmp_path: Path) -> None:
    from bigctl.inference.attacks.ensemble import Effort
    from bigctl.inference.attacks.trained_runs import under_attack

    robust = {}
    for eps in (0.0, 0.15):
        keys = [each for each in SMALL if "eps" not in each]
        more = ["train.steps=250", "optimizer.lr=0.01", "model.channels=[8]", f"train.adversarial.eps={eps}"]
        bigctl.train([*keys, *more], tmp_path / f"{eps}", quiet=True)
        trained = bigctl.load(tmp_path / f"{eps}")
        found = under_attack(trained, "test", "linf", [0.15], count=60, effort=Effort(10, 1, 40))
        robust[eps] = found["points"][0]["robust"]
    assert robust[0.15] > robust[0.0] + 0.2


def told_of(*evaluations: tuple[int, float, float], before: int = 0) -> list[str]:
    """What is said of evaluations (step, robust accuracy, accuracy); a resumed run has had the first ones before."""
    lines = [{"step": s, "val/robust_accuracy": r, "val/accuracy": a} for s, r, a in evaluations]
    said: list[str] = []
    watch = CollapseWatch(said.append, [{"step": 1, "loss": 1.0}, *lines[:before]])
    for line in lines[before:]:
        watch.write(line["step"], line)
    return said


def test_a_collapse_is_told_once_and_neither_noise_nor_divergence_is_one() -> None:
    whole = [(10, 0.2, 0.8), (20, 0.45, 0.9), (30, 0.42, 0.95), (40, 0.01, 0.97), (50, 0.0, 0.98)]
    (said,) = told_of(*whole)
    assert "is 0.010 at step 40, 0.450 at step 20, while val/accuracy is 0.970" in said
    assert len(told_of(*whole, (60, 0.4, 0.9), (70, 0.0, 0.98))) == 2  # again, once it had recovered
    assert told_of(*whole, before=4) == [] and len(told_of(*whole, before=3)) == 1
    assert told_of((10, 0.09, 0.5), (20, 0.01, 0.9)) == []  # there was nothing to lose
    assert told_of((10, 0.5, 0.9), (20, 0.05, 0.1)) == []  # all is lost, and not this alone
    assert told_of((10, 0.5, 0.9), (20, 0.3, 0.95)) == []
    assert len(told_of((10, 0.5, 0.9), (20, 0.2, 0.9), (30, 0.3, 0.9), (40, 0.2, 0.9))) == 1  # no recovery between
    said = []
    watch = CollapseWatch(said.append)
    for step, robust in ((10, 0.5), (20, 0.0)):
        watch.write(step, {"val/robust_accuracy": robust, "val/accuracy": 0.9})
    watch.cut(10)  # training has gone back
    watch.write(20, {"val/robust_accuracy": 0.0, "val/accuracy": 0.9})
    assert len(said) == 2


@pytest.mark.slow
def test_a_run_whose_one_step_helps_instead_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What catastrophic overfitting comes to: the step moves pictures to where the model has them right."""
    keys = ["recipe=cnn_cls", "data=digits", "model.channels=[32]", "model.hidden=[]", "train.tensorboard=false"]
    keys += ["train.adversarial.eps=0.2", "train.adversarial.method=fast", "eval.every=50", "optimizer.lr=0.005"]
    keys += ["recipe.augment.rotate=0", "recipe.augment.scale=0", "recipe.augment.shift=0", "schedule=constant"]
    keys += ["train.ema=0", "model.dropout=0", "train.batch_size=64"]
    bigctl.train([*keys, "train.steps=150"], tmp_path / "run", quiet=True)
    assert "catastrophic" not in caplog.text
    own = Adversary.trained_on

    def helpful(self: Adversary, logits: Any, x: jax.Array, *rest: Any) -> jax.Array:
        return jnp.clip(x + 5 * (x - own(self, logits, x, *rest)), 0, 1)

    monkeypatch.setattr(Adversary, "trained_on", helpful)
    bigctl.train([*keys, "train.steps=350"], tmp_path / "run", quiet=True)
    assert caplog.text.count("catastrophic overfitting: val/robust_accuracy is") == 1
