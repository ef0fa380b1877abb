"""Convolutions by fewer products are convolutions: same values, same gradients, in every transformation; in training,
on a CPU, alone."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bigctl.models import conv, winograd
from bigctl.models.conv import conv2d, strided_conv2d

SAME, VALID = ((1, 1), (1, 1)), ((0, 0), (0, 0))
CASES = {
    # name: input shape, outputs, zeros around
    "whole tiles": ((2, 8, 8, 6), 5, SAME),
    "no zeros around": ((2, 10, 6, 6), 5, VALID),
    "tiles that stand over": ((2, 7, 9, 3), 4, SAME),
    "smaller than a tile": ((3, 3, 3, 4), 2, SAME),
    "another number of zeros on each side": ((1, 6, 5, 4), 4, ((2, 0), (0, 1))),
}


def numbers(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def plain(x: Any, kernel: Any, pads: Any = SAME) -> Any:
    return lax.conv_general_dilated(x, kernel, (1, 1), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def with_gradients(function: Any) -> Any:
    """Outputs, and gradients of a loss that weighs every output differently."""

    def loss(*arguments: Any) -> Any:
        out = function(*arguments)
        return jnp.sum(out * jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)), out

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))


def assert_close(found: Any, expected: Any) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=5e-6 * float(jnp.abs(b).max()))


@pytest.fixture
def anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small convolutions too are done so."""
    monkeypatch.setattr(winograd, "_NARROW", 0)
    monkeypatch.setattr(winograd, "_FEW", 1)
    monkeypatch.setattr(winograd, "_FILLED", 0)


@pytest.mark.usefixtures("anything")
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_lax(name: str) -> None:
    shape, outputs, pads = CASES[name]
    x, kernel = numbers(*shape), numbers(3, 3, shape[-1], outputs, seed=1)
    assert winograd.worth_it(x, kernel, 1, pads)
    (_, out), gradients = with_gradients(lambda x, kernel: conv._conv(x, kernel, 1, pads))(x, kernel)
    (_, expected), slopes = with_gradients(lambda x, kernel: plain(x, kernel, pads))(x, kernel)
    assert_close((out, gradients), (expected, slopes))


def test_the_error_is_that_of_float32() -> None:
    """Of as many channels as deep networks have, against float64: a few times that of a convolution."""
    x, kernel = numbers(2, 8, 8, 256), numbers(3, 3, 256, 8, seed=1)
    wide = [np.pad(np.asarray(x, np.float64), ((0, 0), *SAME, (0, 0))), np.asarray(kernel, np.float64)]
    exact = sum(wide[0][:, i : i + 8, j : j + 8] @ wide[1][i, j] for i in range(3) for j in range(3))
    error = np.abs(np.asarray(winograd.convolve(x, kernel, SAME)) - exact)
    assert np.sqrt(np.square(error).mean()) < 2e-6 * exact.std() and error.max() < 1e-5 * exact.std()


@pytest.mark.usefixtures("anything")
def test_for_several_kernels_or_examples_at_once() -> None:
    x, kernels = numbers(3, 2, 6, 6, 4), numbers(3, 3, 3, 4, 5, seed=1)
    for axes, given in (((0, 0), (x, kernels)), ((None, 0), (x[0], kernels)), ((0, None), (x, kernels[0]))):
        (_, out), slopes = with_gradients(jax.vmap(lambda x, k: conv2d(x, k, "same"), axes))(*given)
        (_, expected), exact = with_gradients(jax.vmap(plain, axes))(*given)
        assert_close((out, slopes), (expected, exact))

    def slope(x: Any, kernel: Any) -> Any:  # an example each, as private steps have it
        return jax.grad(lambda kernel: jnp.sin(conv2d(x[None], kernel, "same")).sum())(kernel)

    single = jnp.stack([slope(each, kernels[0]) for each in x[0]])
    assert_close(jax.jit(jax.vmap(slope, (0, None)))(x[0], kernels[0]), single)


_SPREAD = """
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from bigctl.config import schema
from bigctl.models import winograd
from bigctl.models.conv import conv2d
from bigctl.parallel import mesh as meshes
winograd._NARROW = winograd._FEW = winograd._FILLED = 0
draw = np.random.default_rng(0).normal
x, kernel = draw(size=(8, 6, 6, 4)).astype(np.float32), draw(size=(3, 3, 4, 5)).astype(np.float32)
def loss(x, kernel):
    out = conv2d(x, kernel, "same")
    return (out * jax.numpy.cos(jax.numpy.arange(out.size)).reshape(out.shape)).sum(), out
function = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
spread = jax.device_put(x, NamedSharding(Mesh(np.array(jax.devices()), "data"), PartitionSpec("data")))
for one in (True, False):
    with meshes.over(jax.devices()[:1] if one else jax.devices()), meshes.used(meshes.make_mesh(schema.Mesh())):
        assert winograd.worth_it(jax.numpy.asarray(x), jax.numpy.asarray(kernel), 1, ((1, 1), (1, 1))) == one
one, eight = function(x, kernel), function(spread, kernel)
assert len(eight[0][1].sharding.device_set) == 8
for a, b in zip(jax.tree.leaves(one[0][1:] + one[1]), jax.tree.leaves(eight[0][1:] + eight[1]), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=5e-6 * np.abs(a).max())
text = function.lower(spread, kernel).compile().as_text()
assert "all-reduce" in text and "all-gather" not in text and "all-to-all" not in text
"""


def test_eight_devices_compute_what_one_does_each_on_its_own_pictures() -> None:
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    found = subprocess.run([sys.executable, "-c", _SPREAD], env=env, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr


def test_training_on_a_cpu_alone_takes_it() -> None:
    """Programs of other devices, and all that has no gradients, have XLA's convolutions and no product."""
    x, kernel = numbers(4, 16, 16, 64), numbers(3, 3, 64, 64, seed=1)

    def counts(function: Any, platform: str) -> tuple[int, int]:
        text = jax.jit(function).trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
        return text.count("stablehlo.convolution"), text.count("stablehlo.dot_general")

    training = jax.grad(lambda x, kernel: jnp.sin(conv2d(x, kernel, "same")).sum(), (0, 1))
    assert counts(training, "cpu") == (0, 3)
    assert counts(training, "cuda") == (3, 0)
    assert counts(lambda x, kernel: conv2d(x, kernel, "same"), "cpu") == (1, 0)


def test_what_it_cannot_do_or_would_not_be_quicker() -> None:
    x, kernel = numbers(4, 16, 16, 64), numbers(3, 3, 64, 64, seed=1)
    assert winograd.worth_it(x, kernel, 1, SAME)
    assert not winograd.worth_it(x, kernel, 2, SAME)
    assert not winograd.worth_it(x, numbers(5, 5, 64, 64), 1, ((2, 2), (2, 2)))
    assert not winograd.worth_it(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), 1, SAME)
    assert not winograd.worth_it(x[..., :32], kernel[:, :, :32], 1, SAME)  # few channels
    assert not winograd.worth_it(x[:3], kernel, 1, SAME)  # few tiles
    many, wide = numbers(64, 5, 5, 128), numbers(3, 3, 128, 128)
    assert not winograd.worth_it(many, wide, 1, SAME)  # tiles of which most is not of the picture
    assert not winograd.worth_it(numbers(64, 7, 7, 64), kernel, 1, SAME)
    assert winograd.worth_it(numbers(64, 7, 7, 128), wide, 1, SAME)
    assert_close(jax.vjp(lambda x: strided_conv2d(x, kernel, 2, 1), x)[0], lax.conv_general_dilated(
        x, kernel, (2, 2), SAME, dimension_numbers=("NHWC", "HWIO", "NHWC")))  # fmt: skip
