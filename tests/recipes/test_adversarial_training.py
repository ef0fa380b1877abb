"""Adversarial training moves images as its papers say, resumes to the bit, and makes a model more robust."""

from __future__ import annotations

from pathlib import Path

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
        (["recipe=cnn_cls", "train.adversarial.method=slow"], "one of: pgd, fast, trades"),
    ):
        with pytest.raises(ConfigError, match=said):
            bigctl.compose(overrides)
    plain, other = (bigctl.compose(["recipe=cnn_cls", f"train.adversarial.eps={eps}"]) for eps in (0, 0.1))
    (change,) = drift.changes(plain, other)
    assert change.drift == schema.TRAJECTORY


@pytest.mark.slow
def test_resumed_run_is_bit_equal(tmp_path: Path) -> None:
    """With the robust accuracy of every evaluation."""
    keys = [*SMALL, "checkpoint.every=3", "eval.every=3", "train.adversarial.method=trades"]
    bigctl.train([*keys, "train.steps=6"], tmp_path / "whole", quiet=True)
    bigctl.train([*keys, "train.steps=3"], tmp_path / "parts", quiet=True)
    bigctl.train([*keys, "train.steps=6"], tmp_path / "parts", quiet=True)
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
