"""Promises of recipe=probe: its head is that of scikit-learn's logistic regression, and it is a run like any other."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from bigctl.recipes.probe import ProbeTask
from flax import nnx
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import bigctl
from bigctl.config import compose
from bigctl.data.dataset import Features
from bigctl.engine import features as frozen
from bigctl.errors import ConfigError
from bigctl.inference.exporters.network import Network
from bigctl.inference.trained import TrainedRun
from bigctl.sweeps.packed import runner
from bigctl.sweeps.packed.runner import PackedTrial
from bigctl.training.signals import StopRequest

KEYS = ["data=digits", "model=mlp", "model.hidden=[32]", "train.tensorboard=false"]


def test_each_step_is_scikit_learns_solution():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(90, 16)) * rng.uniform(0.01, 30, 16) + rng.normal(size=16) * 5).astype(np.float32)
    labels = (x[:, 0] / x[:, 0].std() + rng.normal(size=90) > 0).astype(np.int32) + (rng.random(90) < 0.3)
    keys = ["recipe=probe", "model=mlp", "model.hidden=[16]", "model.init_from=x", "data=digits"]
    config = compose.compose([*keys, "recipe.costs=[0.01,1.0]"]).config
    task = ProbeTask(config, Features("image", (8, 8, 1), ("a", "b", "c"), mean=(0.3,), std=(0.4,)))
    assert task.feature_width == 16
    model = task.build(nnx.Rngs(0))
    batch = {"features": jnp.asarray(x), "label": jnp.asarray(labels), "mask": jnp.ones(90)}
    for step, cost in enumerate((0.01, 1.0)):
        task.solve(model, batch, jnp.int32(step), {"recipe.label_smoothing": jnp.float32(0)})
        scaler = StandardScaler().fit(x)
        reference = LogisticRegression(C=cost, tol=1e-8, max_iter=2000).fit(scaler.transform(x), labels)
        found = np.asarray(task.predict(model, {"features": jnp.asarray(x)}))
        np.testing.assert_allclose(found, reference.predict_proba(scaler.transform(x)), atol=2e-3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs `base`, and `probe` of its features."""
    folder = tmp_path_factory.mktemp("probe")
    bigctl.train(["recipe=cnn_cls", *KEYS, "train.epochs=3", "train.ema=0"], folder / "base", quiet=True)
    probe = ["recipe=probe", *KEYS, f"model.init_from={folder / 'base'}"]
    bigctl.train(probe, folder / "probe", quiet=True)
    return folder


def test_a_probe_is_a_run_like_any_other(folder):
    run = bigctl.load(folder / "probe")
    steps = [line["step"] for line in run.history.to_dict("records") if line.get("val/accuracy") is not None]
    assert sorted(set(steps)) == list(range(1, 9))
    scored = run.evaluate("test")
    assert scored["test/accuracy"] > 0.85
    pictures = np.round(load_digits().images[:40] * 255 / 16).astype(np.uint8)[..., None]
    assert (run.predict(pictures).argmax(-1) == load_digits().target[:40]).mean() > 0.8
    base = bigctl.load(folder / "base")
    np.testing.assert_array_equal(run.params["layers"][0]["kernel"], base.params["layers"][0]["kernel"])


def test_features_are_computed_once(folder, monkeypatch):
    monkeypatch.setattr(frozen, "_of_split", lambda *_: pytest.fail("computed anew"))
    bigctl.train(["recipe=probe", *KEYS, f"model.init_from={folder / 'base'}"], folder / "again", quiet=True)
    first, second = (bigctl.load(folder / name).params["head"]["kernel"] for name in ("probe", "again"))
    np.testing.assert_array_equal(first, second)


def test_an_exported_probe_takes_pictures(folder):
    run = TrainedRun.load(str(folder / "probe"))
    network = Network.of(run)
    assert list(network.inputs) == ["inputs"] and "validation rows" in network.checked
    for batch, expected in zip(network.batches, network.expected, strict=True):
        np.testing.assert_allclose(expected["probabilities"], run.predict(batch["inputs"]), atol=1e-5)


@pytest.mark.parametrize(
    "key, word",
    [
        ("model.init_from=null", "pretrained"),
        ("recipe.augment.flip=horizontal", "features once"),
        ("recipe.costs=[]", "names no cost"),
        ("train.precision=bfloat16", "solves"),
        ("recipe.head=probe", "solves"),
    ],
)
def test_what_a_probe_cannot_do_is_refused(key, word):
    with pytest.raises(ConfigError, match=word):
        compose.compose(["recipe=probe", *KEYS, "model.init_from=x", key])


def test_a_head_may_begin_as_the_probes(folder):
    """Classes that the pretrained run does not know, and a step that changes nothing."""
    digits = load_digits()
    for number, (picture, label) in enumerate(zip(digits.images[:400], digits.target, strict=False)):
        file = folder / "pictures" / f"digit {label}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(picture * 255 / 16).astype(np.uint8)).save(file)
    keys = ["recipe=cnn_cls", *KEYS[1:], "data=image_folder", f"data.path={folder / 'pictures'}", "train.steps=1"]
    keys += [f"model.init_from={folder / 'base'}", "optimizer.lr=1e-12", "train.ema=0", "train.epochs=null"]
    summary = bigctl.train([*keys, "recipe.head=probe"], folder / "begun", quiet=True)
    assert summary["metrics"]["test/accuracy"] > 0.75  # that of a new head is 0.1
    with StopRequest() as stop:  # and those of trials that are trained side by side
        trials = [
            PackedTrial(seed, compose.compose([*keys, "recipe.head=probe", f"seed={seed}"]), folder / f"packed {seed}")
            for seed in "01"
        ]
        ends, verdict = runner.train(trials, stop=stop, mode="yes")
    assert verdict.width == 2 and [end.error for end in ends] == [None, None]
    for end in ends:
        assert end.summary is not None and end.summary["metrics"]["test/accuracy"] > 0.75


def test_probes_are_not_packed(folder):
    composed = compose.compose(["recipe=probe", *KEYS, f"model.init_from={folder / 'base'}"])
    trials = [PackedTrial(name, composed, folder / name) for name in ("one", "other")]
    with StopRequest() as stop, pytest.raises(ConfigError, match="on features of pictures"):
        runner.train(trials, stop=stop, mode="yes")
