"""Pictures that grow in training: PIL's pixels at sides that are a function of the position."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import bigctl
from bigctl.config import schema
from bigctl.data.layouts import growing
from bigctl.data.layouts.layout import FixedPlan
from bigctl.data.layouts.rows import Rows
from bigctl.data.pictures import scaling
from bigctl.data.sampler import BatchPlan
from bigctl.engine import experiment
from bigctl.errors import ConfigError
from bigctl.training import feed as feeds
from bigctl.training import plans
from bigctl.training.packed import pack
from tests.training import steps
from tests.training.test_streamed_training import RUN, pictures

pytestmark = pytest.mark.fewer

GROWS = [
    "recipe=resnet_cls", "data=digits", "model.blocks=[1]", "model.width=4", "train.batch_size=16", "train.steps=12",
    "recipe.augment.sizes=[4,6]", "mesh=single", "train.tensorboard=false",
]  # fmt: skip


@pytest.mark.parametrize(
    ("height", "width", "channels", "side"),
    [(32, 32, 3, 20), (28, 40, 1, 14), (64, 48, 3, 47), (33, 57, 3, 7), (50, 20, 3, 1)],
)
def test_pictures_are_made_smaller_as_pil_does_it_to_the_bit(height: int, width: int, channels: int, side: int) -> None:
    given = np.random.default_rng(0).integers(0, 256, (2, height, width, channels)).astype(np.uint8)
    rows, columns = scaling.scaled_size((height, width), side)
    images = [Image.fromarray(each if channels == 3 else each[..., 0]) for each in given]
    expected = [np.asarray(image.resize((columns, rows), Image.Resampling.BILINEAR)) for image in images]
    found = scaling.scaled(given, side)
    apart = np.abs(found.astype(int) - np.reshape(expected, (2, rows, columns, channels)))
    assert apart.max() <= int(height > 2 * width)  # which axis comes first there depends on PIL's version
    np.testing.assert_array_equal(jax.jit(lambda x: scaling.scaled(x, side, jnp))(given), found)


def test_sides_are_a_function_of_the_position() -> None:
    stages = schema.Augment(sizes=[4, 6], grow=0.5).stages(10, 8)
    assert stages == ((16, 4), (40, 6))  # 2.5 steps are 2
    plan = FixedPlan(BatchPlan(64, 0), 8, stages=stages)
    assert [plan.batch(8 * step)[1] for step in range(7)] == [4, 4, 6, 6, 6, None, None]
    assert plan.lengths == (4, 6, None)
    assert [plan.alike(position, 10) for position in (0, 8, 16, 39, 40)] == [2, 1, 3, 1, 10]
    whole = FixedPlan(BatchPlan(64, 0), 8)
    for step in range(7):
        np.testing.assert_array_equal(plan.batch(8 * step)[0], whole.batch(8 * step)[0])
    assert growing.told(stages, 8, (8, 16, 3)) == [
        "recipe.augment.sizes: 4 x 8 pixels up to step 2, 6 x 12 pixels up to step 5, then 8 x 16"
    ]
    assert growing.told((), 8, (8, 8, 1)) == []
    assert growing.grown(Rows(repeats=2), ()) == Rows(repeats=2)


def trained(made: Any, seen: list[int], **keys: Any) -> Any:
    """The state after all steps; `seen` is told the side of each step's pictures."""
    feed = feeds.make_feed(
        made.programs, made.dataset.batches, made.dataset.splits["train"],
        dataclasses.replace(made.config, **keys) if keys else made.config,
        lambda columns: seen.append(columns["inputs"].shape[1]),
    )  # fmt: skip
    state, position = steps.start(made), 0
    while position < 12 * 16:
        state, count = feed.advance(state, position, 12 - position // 16)
        position += count * 16
    feed.close()
    return state


def test_every_way_to_a_batch_sees_the_same_sides_and_gives_the_same_weights() -> None:
    made = experiment.build(bigctl.compose([*GROWS, "recipe.augment.sizes=[6]"]))
    assert made.sight == ["recipe.augment.sizes: 6 x 6 pixels up to step 9, then 8 x 8"]
    states, config = {}, made.config
    ways = {
        "one": {"train": dataclasses.replace(config.train, steps_per_dispatch=1)},
        "loop": {"train": dataclasses.replace(config.train, steps_per_dispatch=5)},
        "sent": {"data": dataclasses.replace(config.data, resident_mib=0)},
    }
    for name, keys in ways.items():
        seen: list[int] = []
        states[name] = trained(made, seen, **keys)
        assert seen == [6] * 9 + [8] * 3, name  # three quarters of the training, then all of the pixels
    steps.assert_same_bits(states["one"], states["loop"])
    steps.assert_same_bits(states["one"], states["sent"])
    refused = pack.refusal(made.programs, made.dataset.batches, made.dataset.splits["train"], config)
    assert refused is not None and "recipe.augment.sizes" in refused


def test_a_vision_transformer_takes_pictures_that_grow() -> None:
    keys = [
        "recipe=vit_cls",
        "optimizer=sgd",
        "model.layers=1",
        "model.width=8",
        "model.heads=2",
        "model.intermediate=8",
    ]
    made = experiment.build(
        bigctl.compose([*keys, *(key for key in GROWS[1:] if not key.startswith("model.")), "recipe.augment.sizes=[4]"])
    )
    seen: list[int] = []
    before, after = steps.start(made), trained(made, seen)
    assert seen == [4] * 9 + [8] * 3
    moved = np.abs(np.asarray(after.params["position"]) - np.asarray(before.params["position"])).max(-1)
    assert (moved > 0).all()  # each place of the table has learned, though small pictures have fewer


@pytest.mark.slow
def test_a_run_that_is_cut_within_a_stage_goes_on_at_its_side(tmp_path: Path) -> None:
    keys = [*GROWS, "recipe.augment.crop=1", "train.ema=0.9", "checkpoint.every=6", "eval.every=6", "eval.test=false"]
    whole = bigctl.train(bigctl.compose(keys), tmp_path / "whole", quiet=True)
    first = bigctl.compose([*keys, "train.steps=6", "schedule.horizon=12"])
    bigctl.train(first, tmp_path / "cut", quiet=True)
    then = bigctl.train(bigctl.compose([*keys, "schedule.horizon=12"]), tmp_path / "cut", quiet=True)
    assert then["metrics"] == whole["metrics"]
    log = (tmp_path / "whole" / "log.txt").read_text()
    assert "recipe.augment.sizes: 4 x 4 pixels up to step 4" in log


def test_pictures_that_are_decoded_while_training_are_decoded_to_each_side(tmp_path: Path) -> None:
    keys = ["recipe=resnet_cls", "model.blocks=[1]", "model.width=4", "recipe.augment.sizes=[6]", "train.steps=4"]
    streamed = [key for key in RUN if not key.startswith(("recipe=", "model."))]
    made = experiment.build(bigctl.compose([*streamed, *keys, f"data.path={pictures(tmp_path)}"]))
    layout = growing.grown(made.dataset.batches, plans.stages_of(made.config, 4))
    columns = made.dataset.splits["train"]
    plan = layout.training_plan(columns, batch_size=8, seed=0)
    shapes = {layout.gather(columns, *plan.batch(8 * step))["inputs"].shape for step in range(3)}
    assert shapes == {(8, 6, 6, 3)} and plan.lengths == (6, None)
    small, whole = layout.gather(columns, plan.batch(0)[0], 6), layout.gather(columns, plan.batch(0)[0], None)
    apart = small["inputs"].astype(float) - scaling.scaled(whole["inputs"], 6)
    assert np.abs(apart).mean() < 8  # the same parts: only when they are rounded differs


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["recipe.augment.sizes=[6,4]"], "pictures grow, and recipe.augment.sizes=[6, 4] does not"),
        (["recipe.augment.sizes=[0]"], "recipe.augment.sizes"),
        (["recipe.augment.grow=0"], "recipe.augment.grow"),
        (["recipe.augment.sizes=[6,8]"], "pictures of 8 x 8 pixels do not grow from 8"),
        (["recipe=cnn_cls"], "model=cnn takes pictures of one size"),
        (["recipe=vit_cls", "recipe.augment.sizes=[3]"], "3x3 are no whole number of patches of 2x2"),
        (["recipe=speed_cls"], "4x4 are used up before the last of 3 groups"),
        (["recipe=cnn_cls", "train.federated.clients=4"], "batches of train.federated.clients have one size"),
        (["recipe=cnn_cls", "train.privacy.epsilon=3"], "batches of train.privacy have one size"),
    ],
)
def test_what_cannot_be_is_a_config_error(keys: list[str], said: str) -> None:
    given = ["data=digits", "train.steps=4", "recipe.augment.sizes=[4]", *keys]
    with pytest.raises(ConfigError) as caught:
        experiment.build(bigctl.compose(given if keys[0].startswith("recipe=") else ["recipe=resnet_cls", *given]))
    assert said in str(caught.value)
