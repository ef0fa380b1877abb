"""Augmentation is geometry that can be checked by hand, and a pure function of (key, number of the example)."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

import bigctl
from bigctl import randomness
from bigctl.cli.main import main
from bigctl.config.schema import Augment
from bigctl.data.augmentation import geometry, pipeline
from bigctl.engine import experiment, resolve
from bigctl.errors import ConfigError
from bigctl.training.evaluation import Evaluator

EVERYTHING = Augment(rotate=20, scale=0.2, shift=0.1, elastic=0.02, flip="both", crop=2)


def pictures(batch: int, height: int, width: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, size=(batch, height, width, channels)).astype(np.uint8)


def step_key(step: int = 0) -> jax.Array:
    return randomness.key(0, randomness.AUGMENTATION, step)


def augmented(pixels: np.ndarray, config: Augment, numbers: np.ndarray | None = None, step: int = 0) -> np.ndarray:
    numbers = np.arange(len(pixels), dtype=np.int32) if numbers is None else numbers
    keys = tuple(tuple(v) if isinstance(v, list) else v for v in dataclasses.astuple(config))  # to be hashed
    return np.asarray(_augment(pixels, numbers, step_key(step), keys))


@functools.partial(jax.jit, static_argnums=3)
def _augment(pixels: jax.Array, numbers: jax.Array, key: jax.Array, config: tuple[Any, ...]) -> jax.Array:
    return pipeline.augment(pixels, Augment(*config), key, numbers)


# --------------------------------------------------------------------------------------------------------- geometry


affine = jax.jit(geometry.affine)


def matrix(degrees: float, zoom: float, down: float, right: float) -> np.ndarray:
    cos, sin = math.cos(math.radians(degrees)) / zoom, math.sin(math.radians(degrees)) / zoom
    return np.array([[cos, sin, down], [-sin, cos, right]], np.float32)


@pytest.mark.parametrize(
    ("degrees", "zoom", "down", "right"),
    [(30, 1, 0, 0), (0, 1.3, 0, 0), (0, 0.7, 0, 0), (0, 1, 2.5, -1.25), (-75, 0.6, 3.3, 2.1), (10, 1, 90, -90)],
)
@pytest.mark.parametrize("shape", [(9, 9), (8, 11)])
def test_affine_is_that_of_scipy(shape: tuple[int, int], degrees: float, zoom: float, down: float, right: float):
    x = pictures(2, *shape, channels=3).astype(np.float32)
    m = matrix(degrees, zoom, down, right)
    centre = (np.array(shape) - 1) / 2
    offset = m[:, 2] + centre - m[:, :2] @ centre
    found = np.asarray(affine(x, np.stack([m, m])))
    for b, c in np.ndindex(2, 3):
        expected = ndimage.affine_transform(
            x[b, :, :, c].astype(np.float64), m[:, :2], offset, order=1, mode="grid-constant"
        )
        np.testing.assert_allclose(found[b, :, :, c], expected, atol=2e-2, rtol=1e-4)  # of 255


def test_a_warp_after_an_affine_map_is_that_of_scipy() -> None:
    x, m = pictures(1, 9, 12, channels=2).astype(np.float32), matrix(20, 1.1, 0.5, -1)
    moves = 2 * np.asarray(geometry.warp(jax.random.normal(jax.random.key(0), (1, 2, 7, 7)), 9, 12))
    centre = np.array([4, 5.5]).reshape(2, 1, 1)
    places = np.tensordot(m[:, :2], np.mgrid[:9, :12] - centre, 1) + m[:, 2:, None] + centre + moves[0]
    found = np.asarray(affine(x, m[None], moves))[0]
    for c in range(2):
        expected = ndimage.map_coordinates(x[0, :, :, c].astype(np.float64), places, order=1, mode="grid-constant")
        np.testing.assert_allclose(found[..., c], expected, atol=2e-3)


def test_a_warp_moves_every_pixel_as_far_as_is_asked_and_neighbours_alike() -> None:
    keys = randomness.per_example(step_key(), np.arange(2000))
    moves = np.asarray(pipeline._warped(Augment(elastic=0.05), keys, 10, 20))
    np.testing.assert_allclose(moves.std(0)[0], 0.5, rtol=0.1)  # of 10 pixels, at the edges too
    np.testing.assert_allclose(moves.std(0)[1], 1.0, rtol=0.1)
    assert np.abs(moves.mean(0)).max() < 0.1
    assert np.diff(moves[:, 1], axis=2).std() < 0.25  # 0.05 of a side, where nodes are 3.2 pixels apart


def test_each_image_gets_its_own_matrix() -> None:
    x = pictures(2, 6, 6).astype(np.float32)
    still, moved = matrix(0, 1, 0, 0), matrix(0, 1, 1, 0)
    found = np.asarray(affine(x, np.stack([still, moved])))
    np.testing.assert_array_equal(found[0], x[0])
    np.testing.assert_array_equal(found[1, :-1], x[1, 1:])
    assert not found[1, -1].any()  # what comes in from outside is black


@pytest.mark.parametrize("shape", [(8, 8), (7, 10), (1, 1), (28, 28)])
def test_the_identity_is_exact(shape: tuple[int, int]) -> None:
    x = pictures(3, *shape, channels=2)
    found = affine(x, np.stack([matrix(0, 1, 0, 0)] * 3))
    np.testing.assert_array_equal(found, x)


def test_drawn_changes_stay_within_what_is_configured() -> None:
    config = Augment(rotate=15, scale=0.2, shift=0.1)
    keys = randomness.per_example(step_key(), jnp.arange(2000))
    drawn = np.asarray(jax.vmap(lambda k: geometry.draw_affine(k, config, (2000, 20, 40, 1)))(keys))
    zoom = 1 / np.hypot(drawn[:, 0, 0], drawn[:, 0, 1])
    degrees = np.degrees(np.arctan2(drawn[:, 0, 1], drawn[:, 0, 0]))
    for values, low, high in (
        (degrees, -15, 15),
        (zoom, 0.8, 1.2),
        (drawn[:, 0, 2], -2, 2),  # of 20 rows
        (drawn[:, 1, 2], -4, 4),  # of 40 columns
    ):
        span = high - low
        assert low - 1e-3 <= values.min() < low + 0.02 * span  # all of the range is used
        assert high - 0.02 * span < values.max() <= high + 1e-3


FLIPS = {
    "horizontal": [lambda x: x, lambda x: x[:, ::-1]],
    "vertical": [lambda x: x, lambda x: x[::-1]],
    "both": [lambda x: x, lambda x: x[:, ::-1], lambda x: x[::-1], lambda x: x[::-1, ::-1]],
}


@pytest.mark.parametrize("flip", FLIPS)
def test_flips_by_name_each_as_often(flip: str) -> None:
    one = pictures(1, 5, 6, 3)
    found = augmented(np.repeat(one, 400, 0), Augment(flip=flip))
    assert found.dtype == np.uint8
    variants = [variant(one[0]) for variant in FLIPS[flip]]
    counts = [sum(np.array_equal(image, variant) for image in found) for variant in variants]
    assert sum(counts) == 400
    assert min(counts) > 0.7 * 400 / len(counts)


def test_crops_are_windows_of_the_padded_image_and_all_occur() -> None:
    one = pictures(1, 6, 5, 2)
    found = augmented(np.repeat(one, 300, 0), Augment(crop=1))
    padded = np.pad(one[0], ((1, 1), (1, 1), (0, 0)))
    windows = [padded[i : i + 6, j : j + 5] for i in range(3) for j in range(3)]
    counts = [sum(np.array_equal(image, window) for image in found) for window in windows]
    assert sum(counts) == 300 and min(counts) > 0


def test_a_reflecting_border_shows_the_image_mirrored_around_its_edge() -> None:
    one = pictures(1, 6, 5, 2)
    found = augmented(np.repeat(one, 100, 0), Augment(crop=2, border="reflect"))
    padded = np.pad(one[0], ((2, 2), (2, 2), (0, 0)), "reflect")
    windows = [padded[i : i + 6, j : j + 5] for i in range(5) for j in range(5)]
    assert all(any(np.array_equal(image, window) for window in windows) for image in found)
    assert found.min() > 0


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["recipe.augment.border=reflect", "recipe.augment.crop=8"], "8x8 have no 8 pixels"),
        (["recipe.augment.crop=8"], "8x8 are out of sight when moved by 8"),
        (["recipe.augment.sizes=[8]"], "8 x 8 pixels do not grow from 8"),
        (["recipe.augment.sizes=[4]", "model=cnn"], "model=cnn takes pictures of one size"),
        (["recipe.augment.repeats=3"], "cannot hold each example 3 times"),
    ],
)
def test_changes_that_images_cannot_have_are_config_errors_of_training_and_of_the_sheet(
    keys: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ["recipe=resnet_cls", "data=digits", *keys]
    with pytest.raises(ConfigError, match=said):
        experiment.build(bigctl.compose(keys))
    assert main(["data", *keys, "--augmented", str(tmp_path / "sheet.png")]) == 2
    assert said in " ".join(capsys.readouterr().err.split()) and not list(tmp_path.iterdir())


def test_the_sheet_shows_pictures_at_the_size_that_training_sees(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "cache"))
    for number in range(20):
        file = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40 + number % 3, 30, 3), 10 * number, np.uint8)).save(file)
    keys = ["recipe=cnn_cls", "recipe.size=12", "data=image_folder", f"data.path={tmp_path / 'photos'}"]
    assert main(["data", *keys, "--augmented", str(tmp_path / "sheet.png"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    trained = experiment.build(bigctl.compose(keys)).dataset
    assert told["shape"] == list(trained.features.shape) == [16, 12, 3]
    assert told["fingerprint"] == trained.fingerprint


# ------------------------------------------------------------------------------------------------------- alternation


def test_two_epochs_in_a_row_show_both_sides_of_every_image() -> None:
    config = bigctl.compose(["recipe=cnn_cls", "data=digits", "recipe.augment.flip=alternating"])
    dataset = resolve.resolve(config).dataset
    columns, layout = dataset.splits["train"], dataset.batches
    n = layout.size(columns, training=True)
    order = layout.training_plan(columns, batch_size=n, seed=3)
    seen = []
    for epoch in range(4):
        indices, _ = order.batch(epoch * n)
        batch = layout.gather(columns, indices, None)
        rows = indices - n * batch["mirrored"]
        np.testing.assert_array_equal(np.sort(rows), np.arange(n))
        np.testing.assert_array_equal(batch["inputs"], columns["inputs"][rows])
        seen.append(batch["mirrored"][np.argsort(rows)])
    np.testing.assert_array_equal(seen[0], ~seen[1])
    np.testing.assert_array_equal(seen[0], seen[2])
    np.testing.assert_array_equal(seen[1], seen[3])
    assert 0.4 < seen[0].mean() < 0.6
    some = layout.training_plan(columns, batch_size=10, seed=3).batch(n + 20)[0]  # wherever a batch begins
    np.testing.assert_array_equal(some, order.batch(n)[0][20:30])
    other = layout.training_plan(columns, batch_size=n, seed=4).batch(0)[0]
    assert (np.sort(other) != np.sort(order.batch(0)[0])).any()


def test_what_the_order_says_is_mirrored_is_mirrored() -> None:
    x = pictures(4, 5, 6, 3)
    mirrored = np.array([True, False, False, True])
    found = pipeline.augment(jnp.asarray(x), Augment(flip="alternating"), step_key(), jnp.arange(4), mirrored)
    np.testing.assert_array_equal(found, np.where(mirrored[:, None, None, None], x[:, :, ::-1], x))


@pytest.mark.parametrize(("channels", "turned"), [(3, True), (1, False)])
def test_auto_mirrors_pictures_of_colour_and_leaves_grey_ones(channels: int, turned: bool) -> None:
    x, mirrored = pictures(4, 5, 6, channels), np.array([True, False, False, True])
    found = pipeline.augment(jnp.asarray(x), Augment(flip="auto"), step_key(), jnp.arange(4), mirrored)
    wanted = np.where(mirrored[:, None, None, None], x[:, :, ::-1], x) if turned else x
    np.testing.assert_array_equal(found, wanted)


def test_alternation_trains_alike_from_the_devices_and_from_the_host() -> None:
    keys = ["recipe=cnn_cls", "data=digits", "model=mlp", "model.hidden=[8]", "train.batch_size=700"]
    keys += ["recipe.augment.flip=alternating", "recipe.augment.rotate=0"]
    states = []
    for more in ([], ["data.resident_mib=0"]):
        built = experiment.build(bigctl.compose([*keys, *more]))
        state, position, feed = built.programs.initialise(), 0, built.feed()
        for _ in range(3):
            state, count = feed.advance(state, position, 1)
            position += 700 * count
        feed.close()
        states.append(state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *states)


# ------------------------------------------------------------------------------------------------------- randomness


def test_nothing_configured_changes_nothing() -> None:
    x = jnp.asarray(pictures(3, 5, 5))
    assert pipeline.augment(x, Augment(), step_key(), jnp.arange(3)) is x


def test_an_example_is_changed_the_same_in_any_company() -> None:
    x = pictures(16, 8, 8)
    whole = augmented(x, EVERYTHING)
    order = np.random.default_rng(1).permutation(16).astype(np.int32)[:5]
    np.testing.assert_allclose(augmented(x[order], EVERYTHING, order), whole[order], atol=1e-3)  # of 255


def test_examples_and_steps_are_changed_differently() -> None:
    same = np.repeat(pictures(1, 8, 8), 6, 0)
    first, second = augmented(same, EVERYTHING, step=0), augmented(same, EVERYTHING, step=1)
    everyone = [image.tobytes() for image in (*first, *second)]
    assert len(set(everyone)) == 12
    np.testing.assert_array_equal(first, augmented(same, EVERYTHING, step=0))


def test_evaluation_never_augments() -> None:
    overrides = ["recipe=cnn_cls", "data=digits", "model=mlp", "model.hidden=[]", "train.steps=1"]
    still = ["recipe.augment.rotate=0", "recipe.augment.scale=0", "recipe.augment.shift=0"]
    wild = ["recipe.augment.rotate=180", "recipe.augment.scale=0.9", "recipe.augment.flip=both"]
    scores = []
    for augment in (still, wild):
        built = experiment.build(bigctl.compose([*overrides, *augment]))
        state = built.programs.initialise()
        evaluator = Evaluator(
            built.programs, built.dataset.batches, built.dataset.splits["validation"], built.config, prefix="val"
        )
        scores.append(evaluator(state.params, state.variables))
    assert scores[0] == scores[1]
