"""The network of airbench94: what it begins as, the sizes that it takes, and the whitening of its patches."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bigctl.config import schema
from bigctl.config.compose import compose
from bigctl.data import whitening
from bigctl.errors import ConfigError
from bigctl.models.speed_cnn import SpeedCnn, Whiten, biased, dirac


def test_sizes_are_those_of_airbench() -> None:
    config = compose(["model=speed_cnn", "model.widths=[64,256,256]"], partial=True).config.model
    model = nnx.eval_shape(lambda: config.build((32, 32, 3), 10, rngs=nnx.Rngs(0)))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    convolutions = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256)
    assert count == 24 + convolutions + 2 * (64 + 256 + 256) + 256 * 10  # its 1.97 M, the whitening not counted


@pytest.mark.parametrize("shape", [(8, 8, 1), (5, 9, 3), (28, 28, 1), (33, 40, 3)])
def test_any_size_and_number_of_channels_is_taken(shape: tuple[int, int, int]) -> None:
    def outputs() -> jax.Array:
        return SpeedCnn(schema.SpeedCnn(widths=[4, 5, 6]), shape, 3, rngs=nnx.Rngs(0))(jnp.zeros((2, *shape)))

    assert jax.eval_shape(outputs).shape == (2, 3)


def test_images_of_which_nothing_is_left_are_a_config_error() -> None:
    for widths, side in ([8], 1), ([8, 8], 2), ([8, 8, 8], 4):
        with pytest.raises(ConfigError, match=f"{side}x8 are used up before the last of {len(widths)} groups") as error:
            SpeedCnn(schema.SpeedCnn(widths=widths), (side, 8, 3), 2, rngs=nnx.Rngs(0))
        assert error.value.hint and f"images of {side + 1}x{side + 1} or more" in error.value.hint
    with pytest.raises(ConfigError, match="names no group"):
        compose(["recipe=speed_cls", "model.widths=[]"])


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 5), (5, 3)])
def test_convolutions_begin_as_copies_of_their_input(inputs: int, outputs: int) -> None:
    x = np.random.default_rng(0).normal(size=(2, 4, 5, inputs)).astype(np.float32)
    kernel = dirac(jax.random.key(0), inputs, outputs)
    found = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    same = min(inputs, outputs)
    np.testing.assert_allclose(found[..., :same], x[..., :same], rtol=1e-6)
    drawn = np.asarray(kernel)[..., same:]
    assert drawn.size == 0 or 0.9 / math.sqrt(9 * inputs) < np.abs(drawn).max() <= 1 / math.sqrt(9 * inputs)


def photographs(count: int, channels: int = 3) -> np.ndarray:
    """Pictures in which neighbours are alike."""
    noise = np.random.default_rng(0).normal(size=(count, 9, 8, channels)).cumsum(1).cumsum(2)
    return np.clip(128 + 20 * noise, 0, 255).astype(np.uint8)


def test_directions_are_those_of_the_eigendecomposition_of_all_patches() -> None:
    pictures, mean, std = photographs(40), (0.5, 0.4, 0.45), (0.2, 0.25, 0.3)
    found = whitening.directions(pictures, mean, std, eps=1e-3)
    scaled = (pictures.astype(np.float64) / 255 - mean) / std
    corners = [scaled[:, i : i + 8, j : j + 7] for i in range(2) for j in range(2)]
    patches = np.concatenate(corners, -1).reshape(-1, 12)
    values, vectors = np.linalg.eig(np.cov(patches.T))
    order = np.argsort(-values)
    expected = (vectors[:, order] / np.sqrt(values[order] + 1e-3)).T.reshape(12, 2, 2, 3)
    signs = np.sign((found * expected).sum((1, 2, 3)))[:, None, None, None]
    np.testing.assert_allclose(found, signs * expected, rtol=2e-3, atol=2e-3)


def test_pictures_smaller_than_a_patch_have_no_directions_of_their_own() -> None:
    found = whitening.directions(np.zeros((5, 1, 1, 3), np.uint8), (0.5,) * 3, (0.2,) * 3)
    assert found.shape == (12, 2, 2, 3) and (found.reshape(12, 12) == np.eye(12)).all()


def test_whitened_patches_are_uncorrelated_and_both_signs_are_there() -> None:
    pictures, mean, std = photographs(64), (0.5, 0.4, 0.45), (0.2, 0.25, 0.3)
    layer = Whiten(3)
    layer.put(whitening.directions(pictures, mean, std, eps=0.0))
    x = jnp.asarray((pictures / 255 - np.array(mean)) / np.array(std), jnp.float32)
    values = np.asarray(layer(x))
    assert values.shape == (64, 8, 7, 24)
    np.testing.assert_allclose(values[..., :12], -values[..., 12:], atol=1e-4)
    np.testing.assert_allclose(np.cov(values[..., :12].reshape(-1, 12).T), np.eye(12), atol=2e-3)


def test_whitening_is_the_convolution_and_the_gradient_of_its_bias_the_sum() -> None:
    draw = np.random.default_rng(0)
    whiten = Whiten(3)
    whiten.put(draw.normal(size=(12, 2, 2, 3)))
    x, dy = draw.normal(size=(4, 7, 6, 3)).astype("f4"), draw.normal(size=(4, 6, 5, 24)).astype("f4")
    expected = jax.lax.conv_general_dilated(
        x, whiten.kernel[...], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(whiten(jnp.asarray(x)), expected, atol=1e-5)
    for dtype, tolerance in (("float32", 1e-5), ("bfloat16", 0.2)):
        y, back = jax.vjp(biased, jnp.asarray(expected, dtype), jnp.ones(24))
        dx, bias = back(jnp.asarray(dy, dtype))
        assert y.dtype == dx.dtype == dtype and bias.dtype == "float32"
        np.testing.assert_allclose(bias, dy.sum((0, 1, 2)), atol=tolerance)


def test_the_sample_is_fixed_and_a_part_of_many_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = photographs(300, 1)
    whole = whitening.directions(pictures, (0.5,), (0.2,))
    monkeypatch.setattr(whitening, "_PICTURES", (10, 100))
    some = whitening.directions(pictures, (0.5,), (0.2,))
    np.testing.assert_array_equal(some, whitening.directions(pictures, (0.5,), (0.2,)))
    assert not np.array_equal(some, whole)
    np.testing.assert_allclose(np.abs(some[0]), np.abs(whole[0]), rtol=0.2)


def test_a_constant_set_of_pictures_gives_finite_directions() -> None:
    assert np.isfinite(whitening.directions(np.full((5, 8, 8, 1), 7, np.uint8), (0.5,), (0.2,))).all()
