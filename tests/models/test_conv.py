"""conv2d is the ordinary operation: same values, same gradients, in every transformation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bigctl.models import conv
from bigctl.models.conv import conv2d, strided_conv2d
from bigctl.models.depthwise import depthwise_conv2d
from bigctl.models.pooling import max_pool

CASES = {
    # name: input shape, kernel shape
    "one channel": ((2, 8, 8, 1), (3, 3, 1, 4)),
    "odd sides": ((2, 9, 7, 3), (3, 3, 3, 5)),
    "even kernel": ((2, 8, 8, 3), (2, 2, 3, 4)),
    "large even kernel": ((2, 7, 6, 2), (4, 4, 2, 3)),
    "oblong kernel": ((2, 6, 8, 2), (2, 5, 2, 3)),
    "pointwise": ((3, 5, 5, 4), (1, 1, 4, 2)),
    "kernel as large as the image": ((2, 5, 5, 2), (5, 5, 2, 3)),
    "many channels": ((2, 6, 6, 40), (3, 3, 40, 3)),  # the other algorithm for the kernel's gradient
    "many channels, even kernel": ((2, 6, 7, 40), (2, 4, 40, 3)),
}


def reference(x: Any, kernel: Any, padding: str) -> Any:
    return lax.conv_general_dilated(x, kernel, (1, 1), padding.upper(), dimension_numbers=("NHWC", "HWIO", "NHWC"))


def numbers(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def values_and_gradients(function: Any, *arguments: Any) -> Any:
    """Outputs, and gradients of a loss that weighs every output differently."""

    def loss(*arguments: Any) -> Any:
        out = function(*arguments)
        return jnp.sum(out * jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, tuple(range(len(arguments))), has_aux=True))(*arguments)
    return out, grads


def assert_close(a: Any, b: Any, rtol: float = 1e-5, atol: float = 2e-5) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)  # type: ignore[operator]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("name", CASES)
def test_convolution_and_its_gradients_are_those_of_lax(name: str, padding: str) -> None:
    inputs, kernel = CASES[name]
    x, k = numbers(*inputs), numbers(*kernel, seed=1)
    ours = values_and_gradients(lambda x, k: conv2d(x, k, padding), x, k)
    assert_close(ours, values_and_gradients(lambda x, k: reference(x, k, padding), x, k))


@pytest.mark.parametrize("piece", [2**21, 64])
@pytest.mark.parametrize(
    ("inputs", "kernel", "stride", "pad"),
    [
        ((2, 8, 8, 4), (3, 3, 4, 5), 2, 1),
        ((2, 9, 6, 40), (3, 3, 40, 3), 2, 1),
        ((2, 12, 10, 30), (3, 3, 30, 2), 2, 0),  # the last row and column are not seen
        ((2, 11, 13, 3), (7, 7, 3, 4), 2, 3),
        ((3, 4, 1, 70), (3, 3, 70, 2), 2, 1),
        ((2, 10, 11, 9), (3, 3, 9, 2), 3, 1),
        ((2, 9, 8, 70), (1, 1, 70, 2), 2, 0),  # pixels that nothing sees
        ((2, 9, 9, 20), (2, 2, 20, 3), 3, 0),
        ((2, 2, 2, 5), (3, 3, 5, 3), 1, 1),  # of more places than the picture
        ((2, 3, 2, 4), (5, 5, 4, 3), 2, 2),
        ((2, 6, 4, 2), (6, 4, 2, 3), 2, 1),  # whose gradient is that of a smaller picture
    ],
)
def test_strided_convolution_and_its_gradients_are_those_of_lax(
    monkeypatch: pytest.MonkeyPatch, inputs: Any, kernel: Any, stride: int, pad: int, piece: int
) -> None:
    monkeypatch.setattr(conv, "_PIECE", piece)  # 64 bytes: each row of outputs by itself
    x, k = numbers(*inputs), numbers(*kernel, seed=1)

    def plain(x: Any, k: Any) -> Any:
        pads = ((pad, pad), (pad, pad))
        return lax.conv_general_dilated(x, k, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    ours = values_and_gradients(lambda x, k: strided_conv2d(x, k, stride, pad), x, k)
    assert_close(ours, values_and_gradients(plain, x, k))
    several = jax.vmap(lambda k: strided_conv2d(x, k, stride, pad))
    assert_close(
        values_and_gradients(several, jnp.stack([k, 2 * k])),
        values_and_gradients(jax.vmap(lambda k: plain(x, k)), jnp.stack([k, 2 * k])),
        atol=1e-4,
    )


def test_a_picture_that_is_cut_at_one_end_and_padded_at_the_other() -> None:
    """XLA on CPU gives a wrong convolution for such pads, so none is asked for."""
    x, k, pads = numbers(4, 9, 2, 1), numbers(4, 2, 1, 5, seed=1), ((2, 3), (1, 0))
    assert_close(
        values_and_gradients(lambda x, k: conv._conv(x, k, 2, pads), x, k),
        values_and_gradients(lambda x, k: conv._convolve(x, k, 2, pads), x, k),
    )


@pytest.mark.parametrize(
    ("inputs", "size", "stride", "pads"),
    [
        ((3, 6, 7, 4), (7, 7), 1, None), ((2, 7, 6, 3), (3, 5), 2, ((0, 1), (2, 1))), ((33, 5, 5, 2), (3, 3), 1, None),
        ((2, 9, 9, 3), (2, 2), 3, ((0, 0), (0, 0))),
    ],
)  # fmt: skip
def test_depthwise_convolution_and_its_gradients_are_those_of_lax(
    inputs: tuple[int, ...], size: tuple[int, int], stride: int, pads: Any
) -> None:
    x, k = numbers(*inputs), numbers(*size, 1, inputs[-1], seed=1)

    def plain(x: Any, k: Any) -> Any:
        return lax.conv_general_dilated(
            x, k, (stride, stride), pads or "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=inputs[-1],
        )  # fmt: skip

    ours = values_and_gradients(lambda x, k: depthwise_conv2d(x, k, stride, pads), x, k)
    assert_close(ours, values_and_gradients(plain, x, k), rtol=1e-4)


def test_convolution_is_the_same_under_scan_and_vmap() -> None:
    x, kernels = numbers(2, 6, 6, 3), numbers(4, 3, 3, 3, 3, seed=1)

    def chained(convolve: Any) -> Any:
        return lambda x, kernels: lax.scan(lambda x, k: (jnp.tanh(convolve(x, k, "same")), None), x, kernels)[0]

    def mapped(convolve: Any) -> Any:
        return jax.vmap(lambda k, x: convolve(x, k, "valid"), (0, None))

    assert_close(
        values_and_gradients(chained(conv2d), x, kernels), values_and_gradients(chained(reference), x, kernels)
    )
    assert_close(values_and_gradients(mapped(conv2d), kernels, x), values_and_gradients(mapped(reference), kernels, x))


def test_gradients_of_several_kernels_are_no_grouped_convolution() -> None:
    """On a CPU, where that takes half as long again; each kernel with its own input, or all with one."""
    x, kernels = numbers(3, 2, 6, 6, 16), numbers(3, 3, 3, 16, 8, seed=1)

    def slope(k: Any, x: Any) -> Any:
        return jax.vjp(lambda k: jnp.sin(conv2d(x, k, "same")), k)[1](jnp.ones((2, 6, 6, 8)))[0]

    for axes, given in (((0, 0), x), ((0, None), x[0])):
        found = jax.jit(jax.vmap(slope, axes))(kernels, given)
        single = [slope(kernels[i], given[i] if axes[1] == 0 else given) for i in range(3)]
        np.testing.assert_allclose(found, np.stack(single), rtol=1e-4, atol=1e-4)

    def convolutions(function: Any, *given: Any) -> int:
        return jax.jit(function).lower(*given).compile().as_text().count(" convolution(")

    assert convolutions(slope, kernels[0], x[0]) == 2
    assert convolutions(jax.vmap(slope), kernels, x) == 1  # the one forward


def test_bfloat16_stays_bfloat16() -> None:
    x, k = numbers(2, 6, 6, 3).astype(jnp.bfloat16), numbers(3, 3, 3, 4, seed=1).astype(jnp.bfloat16)
    out, grads = values_and_gradients(lambda x, k: max_pool(conv2d(x, k, "same"), 2), x, k)
    assert out.dtype == jnp.bfloat16 and all(g.dtype == jnp.bfloat16 for g in grads)


def test_accelerators_get_the_gradient_that_is_a_convolution() -> None:
    """What is lowered for a GPU, which takes none of the matrix products made for the CPU."""
    x, k = numbers(2, 8, 8, 3), numbers(3, 3, 3, 4)
    gradient = jax.jit(jax.grad(lambda k: conv2d(x, k, "same").sum()))
    operations = {}
    for platform in ("cuda", "cpu"):
        text = gradient.trace(k).lower(lowering_platforms=(platform,)).as_text()
        operations[platform] = (text.count("stablehlo.convolution"), text.count("stablehlo.dot_general"))
    assert operations["cuda"][0] >= 1 and operations["cuda"][1] == 0
    assert operations["cpu"][1] >= 1
    depthwise = jax.jit(jax.grad(lambda k: depthwise_conv2d(x, k).sum())).trace(numbers(3, 3, 1, 3))
    counts = [
        depthwise.lower(lowering_platforms=(p,)).as_text().count("stablehlo.convolution") for p in ("cuda", "cpu")
    ]
    assert counts[0] >= 1 and counts[1] == 0
