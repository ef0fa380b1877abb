"""Depthwise convolution: a kernel of its own for each channel, as sums of shifted images on CPU.

XLA's grouped convolution takes 10 to 30 times as long there, and its gradient of the kernel longer still (measured on
two cores with 3x3, 5x5 and 7x7 kernels). Elsewhere it is the ordinary grouped convolution. There is a
reverse-mode rule alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_EXAMPLES = 32  # whose products are added up at once, while they are in registers

Pads = tuple[tuple[int, int], tuple[int, int]]


def same_pads(sides: Sequence[int], size: int, stride: int) -> Pads:
    """Zeros before and after rows and columns so that a side of n pixels becomes one of ceil(n / stride), as
    TensorFlow's "SAME" has it: where their number is odd, the one more is below and to the right."""
    total = [max((-(-side // stride) - 1) * stride + size - side, 0) for side in sides]
    rows, columns = ((each // 2, each - each // 2) for each in total)
    return rows, columns


def depthwise_conv2d(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns 1 channels"],
    stride: int = 1,
    pads: Pads | None = None,
) -> Float[Array, "batch height2 width2 channels"]:
    """Cross-correlation of each channel with a kernel of its own, as `torch.nn.Conv2d` with a group a channel.

    On CPU it is a sum of shifted images, as XLA's own code takes several times as long; so are its gradients.

    Args:
        x: images.
        kernel: of each channel.
        stride: pixels from one window to the next.
        pads: zeros (before, after) rows and columns; None for as many as keep the size at stride 1.
    """
    if pads is None:
        rows, columns = ((side - 1) // 2 for side in kernel.shape[:2])
        pads = ((rows, kernel.shape[0] - 1 - rows), (columns, kernel.shape[1] - 1 - columns))
    return _depthwise(x, kernel, stride, pads)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x: Array, kernel: Array, stride: int, pads: Pads) -> Array:
    by_shifts, by_xla = _depthwise_ways(stride, pads)
    y: Array = lax.platform_dependent(x, kernel, cpu=by_shifts, default=by_xla)
    return y


def _depthwise_forward(x: Array, kernel: Array, stride: int, pads: Pads) -> tuple[Array, tuple[Array, Array]]:
    return _depthwise(x, kernel, stride, pads), (x, kernel)


def _depthwise_backward(stride: int, pads: Pads, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    def gradients(way: Callable[[Array, Array], Array]) -> Callable[[Array, Array, Array], tuple[Array, ...]]:
        return lambda x, kernel, dy: jax.vjp(way, x, kernel)[1](dy)

    by_shifts, by_xla = _depthwise_ways(stride, pads)
    found = lax.platform_dependent(*saved, dy, cpu=gradients(by_shifts), default=gradients(by_xla))
    return found[0], found[1]


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _depthwise_ways(stride: int, pads: Pads) -> tuple[Callable[[Array, Array], Array], Callable[[Array, Array], Array]]:
    """The same function as sums of shifted images, and as XLA's convolution."""

    def by_xla(x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), pads, dimension_numbers=_LAYOUT, feature_group_count=x.shape[-1]
        )

    def by_shifts(x: Array, kernel: Array) -> Array:
        rows, columns = kernel.shape[:2]
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        height, width = (x.shape[1] - rows) // stride + 1, (x.shape[2] - columns) // stride + 1
        total = jnp.zeros((), x.dtype)
        for i in range(min(stride, rows)):  # of each cell of stride x stride pixels one, with its part of the kernel
            for j in range(min(stride, columns)):
                part = kernel[i::stride, j::stride, 0]
                high, wide = height + part.shape[0] - 1, width + part.shape[1] - 1
                total = total + _shifted_sum(x[:, i::stride, j::stride][:, :high, :wide], part)
        return total

    return by_shifts, by_xla


@jax.custom_vjp
def _shifted_sum(
    x: Float[Array, "batch height width channels"], kernel: Float[Array, "rows columns channels"]
) -> Float[Array, "batch height2 width2 channels"]:
    """Depthwise cross-correlation at stride 1 without padding."""
    rows, columns = kernel.shape[:2]
    height, width = x.shape[1] - rows + 1, x.shape[2] - columns + 1
    shifts = [x[:, i : i + height, j : j + width] * kernel[i, j] for i in range(rows) for j in range(columns)]
    return sum(shifts[1:], shifts[0])


def _shifted_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _shifted_sum(x, kernel), (x, kernel)


def _shifted_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    rows, columns = kernel.shape[:2]
    around = ((0, 0), (rows - 1, rows - 1), (columns - 1, columns - 1), (0, 0))
    return _shifted_sum(jnp.pad(dy, around), kernel[::-1, ::-1]), _depthwise_kernel_gradient(x, dy, rows, columns)


_shifted_sum.defvjp(_shifted_forward, _shifted_backward)


def _depthwise_kernel_gradient(x: Array, dy: Array, rows: int, columns: int) -> Array:
    """The sum over examples and places of `dy` times each shift of `x`, [rows, columns, channels].

    Row by row of the images, with the sums of one in cache, of many examples at once: a tenth of the time of XLA's own
    sum over examples and places.
    """
    batch, height, width, channels = dy.shape
    parts = -(-batch // _EXAMPLES)
    size = -(-batch // parts)
    x, dy = (jnp.pad(a, ((0, parts * size - batch), (0, 0), (0, 0), (0, 0))) for a in (x, dy))

    def add(step: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        part, row = step // height, step % height
        near = lax.dynamic_slice(x, (part * size, row, 0, 0), (size, rows, x.shape[2], channels))
        here = lax.dynamic_slice(dy, (part * size, row, 0, 0), (size, 1, width, channels))
        near, here = near.astype(jnp.float32), here.astype(jnp.float32)
        products = [[near[n, :, j : j + width] * here[n] for n in range(size)] for j in range(columns)]
        return tuple(total + sum(found[1:], found[0]) for total, found in zip(sums, products, strict=True))

    empty = tuple(jnp.zeros((rows, width, channels), jnp.float32) for _ in range(columns))
    sums = lax.fori_loop(0, parts * height, add, empty)
    return jnp.stack([total.sum(1) for total in sums], 1).astype(dy.dtype)
