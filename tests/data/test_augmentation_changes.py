"""Every change by given numbers is that of PIL, and of torchvision where it is installed; what is drawn has the bounds
that are configured."""

from __future__ import annotations

import colorsys
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from bigctl import randomness
from bigctl.config.schema import Augment
from bigctl.data.augmentation import boxes, colour, mixing, pipeline, policies
from bigctl.data.pictures import crops
from bigctl.data.sampler import BatchPlan, Repeated

HEIGHT, WIDTH = 24, 20
STRENGTHS = [(number, m, sign) for number in range(14) for m in (0, 9, 30) for sign in (1, -1)]
"""Number of an operation, magnitude and sign."""


def photograph(channels: int, seed: int = 0) -> np.ndarray:
    """Smooth colours with some noise, uint8 [24, 20, channels]."""
    rng = np.random.default_rng(seed)
    rough = [Image.fromarray(rng.integers(0, 256, (4, 4)).astype(np.uint8)) for _ in range(channels)]
    smooth = np.stack([np.asarray(image.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) for image in rough], -1)
    return np.clip(0.8 * smooth + rng.integers(10, 29, smooth.shape), 0, 255).astype(np.uint8)


def as_pil(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


# --------------------------------------------------------------------------------------------------------- policies


@functools.partial(jax.jit, static_argnums=1)
def _changed(pixels: jax.Array, policy: str) -> tuple[jax.Array, jax.Array]:
    operations, magnitudes, signs = jnp.array(STRENGTHS, jnp.float32).T
    images, numbers = jnp.broadcast_to(pixels, (len(STRENGTHS), *pixels.shape)), operations.astype(jnp.int32)
    level = policies.levels(numbers, magnitudes, signs, policies.ranges(policy, HEIGHT, WIDTH))
    return policies.apply(images, numbers, level), level


def by_pil(image: Image.Image, name: str, level: float) -> Image.Image:
    def moved(*rows: float) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, rows, Image.Resampling.NEAREST)

    enhanced = {
        "brightness": ImageEnhance.Brightness,
        "color": ImageEnhance.Color,
        "contrast": ImageEnhance.Contrast,
        "sharpness": ImageEnhance.Sharpness,
    }
    if name in enhanced:
        return enhanced[name](image).enhance(1 + level)
    return {
        "identity": lambda: image,
        "shear_x": lambda: moved(1, level, 0, 0, 1, 0),
        "shear_y": lambda: moved(1, 0, 0, level, 1, 0),
        "translate_x": lambda: moved(1, 0, -level, 0, 1, 0),
        "translate_y": lambda: moved(1, 0, 0, 0, 1, -level),
        "rotate": lambda: image.rotate(level, Image.Resampling.NEAREST),
        "posterize": lambda: ImageOps.posterize(image, int(level)),
        "solarize": lambda: ImageOps.solarize(image, int(np.ceil(level))),
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
    }[name]()


@pytest.mark.parametrize(("policy", "channels"), [("randaugment", 3), ("trivialaugment", 1)])
def test_changes_of_a_policy_are_those_of_pil(policy: str, channels: int) -> None:
    pixels = photograph(channels)
    found, levels = (np.asarray(each) for each in _changed(pixels, policy))
    for (number, magnitude, _), image, level in zip(STRENGTHS, found, levels, strict=True):
        name = policies.OPERATIONS[number]
        expected = np.asarray(by_pil(as_pil(pixels), name, float(level)), np.float32).reshape(pixels.shape)
        off = np.abs(image - expected)
        if name in ("shear_x", "shear_y", "rotate"):  # PIL's places of pixels are numbers of 16 bits
            assert np.mean(off > 0) < 0.06, (name, magnitude)
        else:
            assert off.max() <= (2 if name == "contrast" else 1), (name, magnitude)  # whose mean is rounded
        if magnitude and name != "identity" and not (channels == 1 and name == "color"):
            assert np.abs(image - pixels).max() > 0, name


@pytest.mark.parametrize(("policy", "channels"), [("randaugment", 1), ("trivialaugment", 3)])
def test_changes_of_a_policy_are_those_of_torchvision(policy: str, channels: int) -> None:
    torch, auto = pytest.importorskip("torch"), pytest.importorskip("torchvision.transforms.autoaugment")
    if policy == "randaugment":
        space = auto.RandAugment()._augmentation_space(31, (HEIGHT, WIDTH))
    else:
        space = auto.TrivialAugmentWide()._augmentation_space(31)
    pixels = photograph(channels)
    found, levels = (np.asarray(each) for each in _changed(pixels, policy))
    names = {name.lower().replace("_", ""): name for name in space}
    for (number, magnitude, sign), image, level in zip(STRENGTHS, found, levels, strict=True):
        name = names[policies.OPERATIONS[number].replace("_", "")]
        table, signed = space[name]
        value = float(table[magnitude]) * (sign if signed else 1) if table.ndim else 0.0
        assert level == pytest.approx(int(value) if "Translate" in name else value, abs=1e-4)
        given = torch.from_numpy(pixels).permute(2, 0, 1)
        expected = auto._apply_op(given, name, value, auto.InterpolationMode.NEAREST, None).permute(1, 2, 0).numpy()
        blended = name in ("Brightness", "Color", "Contrast", "Sharpness")  # which torchvision cuts off to integers
        np.testing.assert_allclose(image, expected, atol=1 if blended else 0, err_msg=f"{name} {magnitude}")


def test_a_policy_picks_every_change_as_often_and_randaugment_one_strength() -> None:
    keys = randomness.per_example(randomness.key(0, randomness.AUGMENTATION), jnp.arange(2800))
    for policy, magnitudes in (("randaugment", {7.5}), ("trivialaugment", set(range(31)))):
        drawn = jax.jit(jax.vmap(functools.partial(policies.draw, policy=policy, magnitude=7.5)))(keys)
        operations, strengths, signs = (np.asarray(each) for each in drawn)
        assert np.bincount(operations, minlength=14).min() > 140 and len(np.bincount(operations)) == 14
        assert set(strengths.tolist()) == magnitudes and abs(signs.mean()) < 0.1


# ----------------------------------------------------------------------------------------------------------- colours


def test_changes_of_colour_are_those_of_pil_and_of_hsv() -> None:
    pixels = photograph(3)
    images = np.stack([pixels] * 4).astype(np.float32)
    factors = np.array([0, 0.4, 1, 1.7], np.float32)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for change, enhancer in zip((colour.brightened, colour.contrasted, colour.saturated), enhancers, strict=True):
        for image, factor in zip(jax.jit(change)(images, factors), factors.tolist(), strict=True):
            expected = np.asarray(enhancer(as_pil(pixels)).enhance(factor), np.float32)
            np.testing.assert_allclose(image, expected, atol=1.51)  # PIL rounds the grey, and cuts off the result
    for image, turn in zip(
        jax.jit(colour.turned)(images, np.array([-0.5, -0.1, 0, 0.3])), (-0.5, -0.1, 0, 0.3), strict=True
    ):
        for found, (red, green, blue) in zip(image[::7, ::5].reshape(-1, 3), pixels[::7, ::5].reshape(-1, 3) / 255,
                                             strict=True):  # fmt: skip
            hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
            np.testing.assert_allclose(found / 255, colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value), atol=1e-5)


def test_changes_of_colour_are_those_of_torchvision() -> None:
    torch, reference = pytest.importorskip("torch"), pytest.importorskip("torchvision.transforms.functional")
    pixels = photograph(3)
    given = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    images, pairs = pixels[None].astype(np.float32), (
        (colour.brightened, reference.adjust_brightness, 1.3), (colour.contrasted, reference.adjust_contrast, 0.4),
        (colour.saturated, reference.adjust_saturation, 1.6), (colour.turned, reference.adjust_hue, -0.23),
    )  # fmt: skip
    for change, expected, number in pairs:
        found = np.asarray(jax.jit(change)(images, np.array([number], np.float32)))[0]
        np.testing.assert_allclose(found, expected(given, number).permute(1, 2, 0) * 255, atol=0.05)


def test_grey_images_have_no_saturation_and_no_hue() -> None:
    images = photograph(1)[None].astype(np.float32)
    assert colour.saturated(images, np.array([0.0])) is images and colour.turned(images, np.array([0.3])) is images


# ------------------------------------------------------------------------------------------------------------- boxes


def test_a_resized_part_is_that_of_pil() -> None:
    pixels = photograph(3)
    parts = [(0, 0, HEIGHT, WIDTH), (3, 5, 17, 11), (20, 2, 3, 18), (7, 7, 1, 1)]
    found = jax.jit(boxes.resized)(np.stack([pixels] * len(parts)), jnp.array(parts))
    np.testing.assert_array_equal(found[0], pixels)
    for image, (top, left, rows, columns) in zip(found, parts, strict=True):
        for channel in range(3):
            whole = Image.fromarray(pixels[..., channel].astype(np.float32))
            part = whole.crop((left, top, left + columns, top + rows))
            expected = part.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
            np.testing.assert_allclose(image[..., channel], np.asarray(expected), atol=2e-3)


@pytest.mark.parametrize(("height", "width", "least"), [(32, 32, 0.08), (24, 90, 0.3), (40, 9, 0.9)])
def test_parts_in_memory_are_drawn_as_those_of_pictures_that_are_decoded(height: int, width: int, least: float) -> None:
    numbers = crops.draws(crops.keys(0, np.arange(200)))
    draw = jax.jit(jax.vmap(lambda each: boxes.resized_crop_box(each, height, width, least)))
    same = 0
    for each, (top, left, rows, columns) in zip(numbers, np.asarray(draw(numbers.astype(np.float32))), strict=True):
        expected = crops.drawn(width, height, (height, width), least, each)
        same += (left, top, left + columns, top + rows) == expected
        assert 0 <= top <= height - rows and 0 <= left <= width - columns
    assert same >= 198  # float32 may round a side the other way


def test_erased_boxes_have_the_area_that_is_configured_and_what_is_in_them() -> None:
    images = np.full((400, 32, 32, 3), 200, np.uint8)
    key, numbers = randomness.key(0, randomness.AUGMENTATION), jnp.arange(400)
    means, spreads = (0.2, 0.4, 0.6), (0.1, 0.1, 0.2)
    found = {}
    for fill in ("black", "mean", "noise"):
        config = Augment(erase=0.5, erase_area=0.2, erase_fill=fill)
        change = jax.jit(lambda x, config=config: pipeline.augment(x, config, key, numbers, None, means, spreads))
        found[fill] = np.asarray(change(images))
        erased = (found[fill] != 200).any(-1)
        share = erased.mean((1, 2))
        assert 0.4 < (share > 0).mean() < 0.6
        assert 0.01 < share[share > 0].min() < 0.03 and 0.18 < share.max() < 0.22
        for image in erased[share > 0]:  # it is one whole box
            assert image.sum() == image.any(0).sum() * image.any(1).sum()
    erased = (found["black"] != 200).any(-1)
    assert found["black"].dtype == np.uint8 and not found["black"][erased].any()
    np.testing.assert_allclose(found["mean"][erased], np.broadcast_to(255 * np.array(means), (erased.sum(), 3)), 1e-5)
    np.testing.assert_allclose(found["noise"][erased].mean(0), 255 * np.array(means), atol=1)
    np.testing.assert_allclose(found["noise"][erased].std(0), 255 * np.array(spreads), rtol=0.03)


def test_the_centre_crop_of_an_evaluation_is_the_middle_resized() -> None:
    pixels = photograph(3)
    assert boxes.center_cropped(whole := pixels[None], 1.0) is whole
    found = boxes.center_cropped(pixels[None], 0.5)
    expected = boxes.resized(pixels[None], jnp.array([[6, 5, 12, 10]]))
    np.testing.assert_array_equal(found, expected)


# ------------------------------------------------------------------------------------------------------------ mixing


def mixed(config: Augment, images: np.ndarray, real: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    key, numbers = randomness.key(0, randomness.AUGMENTATION), jnp.arange(len(images))
    real = np.ones(len(images), bool) if real is None else real
    found, share = jax.jit(lambda x, r: pipeline.mix(x, config, key, numbers, r))(images, real)
    return np.asarray(found), np.asarray(share)


def two_greys(count: int) -> np.ndarray:
    """Black and white images in turn, uint8 [count, 16, 16, 1]."""
    return np.repeat(np.arange(count) % 2 * 255, 256).reshape(count, 16, 16, 1).astype(np.uint8)


def test_mixup_weighs_an_image_and_its_neighbour_by_shares_from_beta() -> None:
    found, share = mixed(Augment(mixup=0.4), two_greys(2000))
    own = np.arange(2000) % 2
    expected = 255 * (share * own + (1 - share) * (1 - own))
    np.testing.assert_allclose(found, np.broadcast_to(expected[:, None, None, None], found.shape), atol=1e-3)
    assert share.mean() == pytest.approx(0.5, abs=0.03)
    assert share.var() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), rel=0.08)  # of Beta(0.4, 0.4)


def test_cutmix_gives_away_a_box_of_one_less_the_share() -> None:
    found, share = mixed(Augment(cutmix=1.0), two_greys(600))
    cut = found[..., 0] != two_greys(600)[..., 0]
    np.testing.assert_allclose(cut.mean((1, 2)), 1 - share, atol=1e-6)
    for image in cut:
        assert image.sum() == image.any(0).sum() * image.any(1).sum()
    assert len(np.unique(share)) > 50


def test_the_box_of_cutmix_is_that_of_its_paper() -> None:
    cut = jax.jit(lambda share, place: boxes.cut_box(share, place, HEIGHT, WIDTH))
    for share, place in ((0.25, (0.5, 0.5)), (0.6, (0.05, 0.9)), (1.0, (0.0, 0.0)), (0.0, (0.3, 0.3))):
        height, width = int(HEIGHT * np.sqrt(share)), int(WIDTH * np.sqrt(share))
        y, x = int(place[0] * HEIGHT), int(place[1] * WIDTH)
        top, bottom = np.clip([y - height // 2, y + (height + 1) // 2], 0, HEIGHT)
        left, right = np.clip([x - width // 2, x + (width + 1) // 2], 0, WIDTH)
        found = cut(jnp.float32(share), jnp.array(place))
        assert found.tolist() == [top, left, bottom - top, right - left]


def test_some_are_mixed_by_each_and_some_not_at_all() -> None:
    _, share = mixed(Augment(mixup=1.0, cutmix=1.0, mix=0.5), two_greys(2000))
    assert (share == 1).mean() == pytest.approx(0.5, abs=0.05)
    whole = np.isclose(share * 256, np.round(share * 256), atol=1e-4)  # of boxes of pixels
    assert (whole & (share < 1)).mean() == pytest.approx(0.25, abs=0.04)


def test_nobody_is_mixed_with_what_only_pads() -> None:
    images, real = two_greys(6), np.array([1, 1, 1, 0, 0, 0], bool)
    found, share = mixed(Augment(mixup=1.0), images, real)
    assert (share[:2] < 1).all() and share[2] == 1
    np.testing.assert_array_equal(found[2], images[2])


def test_neighbours_are_the_others_of_pairs() -> None:
    assert mixing.neighbours(jnp.arange(6)).tolist() == [1, 0, 3, 2, 5, 4]
    assert mixing.neighbours(jnp.arange(5)).tolist() == [1, 0, 3, 2, 4]


# --------------------------------------------------------------------------------------------------------- repeating


def test_repeats_show_each_example_as_often_in_batches_of_fewer() -> None:
    plain = BatchPlan(12, seed=3)
    order = Repeated(plain, 6, 3)
    shown = order.indices(0, 36)
    for number, batch in enumerate(shown.reshape(6, 6)):
        assert batch.tolist() == plain.indices(2 * number, 2).tolist() * 3
        assert order.indices(6 * number, 6).tolist() == batch.tolist()
    assert np.bincount(shown).tolist() == [3] * 12
    assert order.indices(13, 9).tolist() == shown[13:22].tolist()
