"""recipe=speed_cls: the whitening belongs to the state, and test-time augmentation is a mean over views."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bigctl.recipes import views
from flax import nnx

import bigctl
from bigctl.data import whitening
from bigctl.engine import experiment
from bigctl.errors import ConfigError
from bigctl.training.checkpoints.arrays import flatten
from tests.conftest import Cli

pytestmark = pytest.mark.fewer

TINY = [
    "recipe=speed_cls", "model.widths=[4,5]", "train.batch_size=32", "train.steps=4", "recipe.augment.flip=alternating",
    "recipe.augment.crop=1", "eval.tta=translate", "train.tensorboard=false",
]  # fmt: skip


def built(*more: str) -> Any:
    return experiment.build(bigctl.compose([*TINY, *more]))


def steps(made: Any, state: Any, position: int, count: int) -> Any:
    feed = made.feed()
    while count:
        state, done = feed.advance(state, position, 1)
        position, count = position + 32 * done, count - done
    return state


@pytest.fixture(scope="module")
def made() -> Any:
    return built()


def test_a_run_begins_with_the_whitening_of_its_training_split_and_never_trains_it(made: Any) -> None:
    found, pictures = made.dataset.features, made.dataset.splits["train"]["inputs"]
    expected = whitening.directions(pictures, found.mean, found.std)
    start = made.programs.initialise()
    kernel = np.asarray(start.variables["whiten"]["kernel"])
    np.testing.assert_array_equal(kernel, np.moveaxis(np.concatenate([expected, -expected]), 0, -1))
    bias = np.asarray(start.params["whiten"]["bias"])
    after = steps(made, start, 0, 2)
    np.testing.assert_array_equal(after.variables["whiten"]["kernel"], kernel)
    assert not np.array_equal(after.params["whiten"]["bias"], bias)


def test_what_goes_on_from_the_state_alone_is_bit_equal(made: Any) -> None:
    half = jax.tree.map(np.array, steps(made, made.programs.initialise(), 0, 2))
    whole = steps(made, jax.device_put(half, made.programs.state_shardings, may_alias=False), 64, 2)
    other = built()
    other.task.whitening = None  # as where no data was looked at
    again = steps(other, jax.device_put(half, other.programs.state_shardings, may_alias=False), 64, 2)
    for name, values in flatten(whole).items():
        np.testing.assert_array_equal(values, flatten(again)[name], err_msg=name)


def test_a_trained_run_predicts_by_the_mean_over_views_and_needs_no_data(tmp_path: Path) -> None:
    run = bigctl.train([*TINY, "train.steps=2"], tmp_path / "run", quiet=True)
    loaded = bigctl.load(tmp_path / "run")
    pictures = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1)).astype(np.uint8)
    padded = np.pad(pictures, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
    moves = {0.5: [pictures], 0.25: [padded[:, :8, :8], padded[:, 2:, 2:]]}
    features = loaded.features

    forward = nnx.jit(lambda model, x: model(x))

    def logits(images: np.ndarray) -> np.ndarray:
        x = jnp.asarray((images / 255 - features.mean) / features.std, jnp.float32)
        return np.asarray(forward(loaded.model, x))

    views = [(w / 2, turned) for w, all_moved in moves.items() for m in all_moved for turned in (m, m[:, :, ::-1])]
    expected = jax.nn.softmax(sum(weight * logits(view) for weight, view in views))
    np.testing.assert_allclose(loaded.predict(pictures), expected, atol=1e-5)
    np.testing.assert_allclose(
        bigctl.load(tmp_path / "run", tta="none").predict(pictures), jax.nn.softmax(logits(pictures)), atol=1e-5
    )
    with pytest.raises(ConfigError, match="no test-time augmentation 'twice'"):
        bigctl.load(tmp_path / "run", tta="twice")
    assert loaded.evaluate("test")["test/loss"] == pytest.approx(run["metrics"]["test/loss"], rel=1e-5)


def test_mirror_is_the_mean_over_two_and_none_is_one_pass() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 5, 2)), jnp.float32)
    seen: list[jax.Array] = []

    def outputs(images: jax.Array) -> jax.Array:
        seen.append(images)
        return images[:, 0, 0]

    np.testing.assert_allclose(views.mean_outputs(x, "mirror", outputs), (x[:, 0, 0] + x[:, 0, -1]) / 2, rtol=1e-6)
    assert len(seen) == 2
    assert (views.mean_outputs(x, "none", outputs) == x[:, 0, 0]).all() and seen[-1] is x
    views.mean_outputs(x[:, :1], "translate", outputs)  # a row has nothing to be mirrored around


def test_shift_is_half_the_image_and_a_quarter_of_each_move_and_mirrors_nothing() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 5, 2)), jnp.float32)
    expected = x[:, 1, 1] / 2 + x[:, 0, 0] / 4 + x[:, 2, 2] / 4
    np.testing.assert_allclose(views.mean_outputs(x, "shift", lambda images: images[:, 1, 1]), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["recipe=mlp_cls", "eval.tta=mirror"], "eval.tta is for images"),
        (["recipe=speed_cls", "eval.tta=twice"], "eval.tta"),
        (["recipe=speed_cls", "recipe.augment.flip=sometimes"], "recipe.augment.flip"),
    ],
)
def test_what_cannot_be_is_a_config_error(keys: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        bigctl.compose(keys)
    assert said in str(caught.value)


@pytest.mark.slow
def test_a_run_that_is_killed_ends_bit_equal(bigctl: Cli) -> None:
    keys = [*TINY[:-1], "train.steps_per_dispatch=1", "eval.every=10", "checkpoint.every=4"]
    keys.remove("train.steps=4")
    told = bigctl.json("verify-resume", *keys, "--steps", "30", "--kills", "2", "--quiet")
    assert told["ok"] and len(told["kills"]) == 2 and not told["lost"]
