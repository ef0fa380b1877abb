"""Convolution and max-pooling whose gradients are quick on CPU; elsewhere they are the ordinary XLA operations.

XLA's own code for the gradient of a convolution's kernel takes several times what is below on CPU, and thirty times in
the body of a loop; that of `reduce_window` is slower still. Both functions have reverse-mode rules of their own for
that reason, no forward-mode ones, and on CPU no second derivatives by kernels.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from bigctl.parallel import mesh as meshes

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_FEW_COLUMNS = 64  # below, all shifts of the input fit side by side in cache

Pads = tuple[tuple[int, int], tuple[int, int]]


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv2d(
    x: Float[Array, "batch height width inputs"], kernel: Float[Array, "rows columns inputs outputs"], padding: str
) -> Float[Array, "batch height2 width2 outputs"]:
    """Cross-correlation at stride 1, `padding` "same" or "valid", as `torch.nn.Conv2d` defines it."""
    return _convolve(x, kernel, padding.upper())


def _convolve(x: Array, kernel: Array, padding: str | tuple[tuple[int, int], tuple[int, int]]) -> Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=_LAYOUT)


def _forward(x: Array, kernel: Array, padding: str) -> tuple[Array, tuple[Array, Array]]:
    return conv2d(x, kernel, padding), (x, kernel)


def _backward(padding: str, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    rows, columns = kernel.shape[:2]
    (top, bottom), (left, right) = _pads(rows, padding), _pads(columns, padding)
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    dx = _convolve(dy, turned, ((rows - 1 - top, rows - 1 - bottom), (columns - 1 - left, columns - 1 - right)))
    shape, dtype = kernel.shape, kernel.dtype

    def quick(x: Array, dy: Array) -> Array:
        return _kernel_gradient(x, dy, shape, padding)

    def by_xla(x: Array, dy: Array) -> Array:
        transpose = jax.linear_transpose(lambda k: _convolve(x, k, padding.upper()), jax.ShapeDtypeStruct(shape, dtype))
        return transpose(dy)[0]

    return dx, lax.platform_dependent(x, dy, cpu=quick, default=by_xla)


conv2d.defvjp(_forward, _backward)


def _pads(size: int, padding: str) -> tuple[int, int]:
    """Pixels added before and after an axis, as XLA does at stride 1."""
    return ((size - 1) // 2, size - 1 - (size - 1) // 2) if padding == "same" else (0, 0)


def _kernel_gradient(x: Array, dy: Array, shape: tuple[int, ...], padding: str) -> Array:
    """By a convolution; for several kernels at once, as under `jax.vmap`, by products, each in the time of its own."""

    @jax.custom_batching.custom_vmap
    def gradient(x: Array, dy: Array) -> Array:
        return _by_convolution(x, dy, shape, padding)

    @gradient.def_vmap
    def _(size: int, batched: list[bool], x: Array, dy: Array) -> tuple[Array, bool]:
        axes = tuple(0 if each else None for each in batched)
        return jax.vmap(lambda x, dy: _by_products(x, dy, shape, padding), in_axes=axes)(x, dy), True

    found: Array = gradient(x, dy)
    return found


def _by_convolution(x: Array, dy: Array, shape: tuple[int, ...], padding: str) -> Array:
    """The convolution of the input with `dy`, its examples and channels having changed places.

    XLA runs that quickly on CPU once both lie in memory as a convolution wants them, and slowly from where they are.
    """
    rows, columns, inputs, _ = shape
    if rows * columns * inputs <= _FEW_COLUMNS:
        return _by_products(x, dy, shape, padding)
    x, dy = lax.optimization_barrier((x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3)))
    return _convolve(x, dy, (_pads(rows, padding), _pads(columns, padding))).transpose(1, 2, 0, 3)


def _by_products(x: Array, dy: Array, shape: tuple[int, ...], padding: str) -> Array:
    """Matrix products of the shifted input with `dy`: of several kernels XLA would make a grouped convolution, half as
    long again."""
    rows, columns, inputs, outputs = shape
    x = jnp.pad(x, ((0, 0), _pads(rows, padding), _pads(columns, padding), (0, 0)))
    height, width = dy.shape[1:3]
    dy = dy.reshape(-1, outputs)
    if rows * columns * inputs <= _FEW_COLUMNS:
        shifts = [x[:, i : i + height, j : j + width] for i in range(rows) for j in range(columns)]
        patches = jnp.concatenate(shifts, -1).reshape(-1, rows * columns * inputs)
        return (patches.T @ dy).reshape(shape)
    wide = jnp.concatenate([x[:, :, j : j + width] for j in range(columns)], -1)
    products = [wide[:, i : i + height].reshape(-1, columns * inputs).T @ dy for i in range(rows)]
    return jnp.stack(products).reshape(shape)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool(
    x: Float[Array, "batch height width channels"], size: int
) -> Float[Array, "batch height2 width2 channels"]:
    """The maximum of each size x size window; rows and columns that fill no window are dropped.

    Of equal maxima the first, in row order, takes the gradient, as in torch.
    """
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, size, size, 1), (1, size, size, 1), "VALID")


def _pool_forward(x: Array, size: int) -> tuple[Array, tuple[Array, Array]]:
    maximum = max_pool(x, size)
    return maximum, (x, maximum)


def _pool_backward(size: int, saved: tuple[Array, Array], dy: Array) -> tuple[Array]:
    x, maximum = saved
    batch, height, width, channels = x.shape
    rows, columns = maximum.shape[1:3]
    inside = x[:, : rows * size, : columns * size]
    cells = size * size
    first = jnp.full(maximum.shape, cells - 1, jnp.int8 if cells < 128 else jnp.int32)
    for cell in range(cells - 2, -1, -1):  # the last one written is the first that equals the maximum
        value = inside[:, cell // size :: size, cell % size :: size]
        first = jnp.where(value == maximum, jnp.asarray(cell, first.dtype), first)
    place = jnp.arange(cells, dtype=first.dtype).reshape(size, size)[None, None, :, None, :, None]
    dx = jnp.where(first[:, :, None, :, None] == place, dy[:, :, None, :, None], 0)
    dx = dx.reshape(batch, rows * size, columns * size, channels)
    if dx.shape != x.shape:
        dx = jnp.pad(dx, ((0, 0), (0, height - rows * size), (0, width - columns * size), (0, 0)))
    return (dx,)


max_pool.defvjp(_pool_forward, _pool_backward)


# ------------------------------------------------------------------------------------------------------------ strides


def conv1x1(
    x: Float[Array, "batch height width inputs"], kernel: Float[Array, "inputs outputs"], stride: int
) -> Float[Array, "batch height2 width2 outputs"]:
    """Every stride-th pixel, each way, times the kernel."""
    kept = x[:, ::stride, ::stride]
    if stride > 1 and meshes.platform_in_use() == "gpu":
        kept = lax.optimization_barrier(kept)  # XLA's fusion of the two ends in a failed check (jax 0.10.2 and 0.11.2)
    return kept @ kernel


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def strided_conv2d(
    x: Float[Array, "batch height width inputs"],
    kernel: Float[Array, "size size inputs outputs"],
    stride: int,
    pad: int,
) -> Float[Array, "batch height2 width2 outputs"]:
    """Cross-correlation with `pad` zeros on every side, as `torch.nn.Conv2d` defines it.

    Its gradients are on CPU those of the same sum at stride 1, in which the pixels of a cell of stride x stride are
    channels of one pixel.
    """
    pads = ((pad, pad), (pad, pad))
    return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=_LAYOUT)


def _strided_forward(x: Array, kernel: Array, stride: int, pad: int) -> tuple[Array, tuple[Array, Array]]:
    return strided_conv2d(x, kernel, stride, pad), (x, kernel)


def _strided_backward(stride: int, pad: int, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    def by_cells(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
        return jax.vjp(lambda x, kernel: _conv_by_cells(x, kernel, stride, pad), x, kernel)[1](dy)

    def by_xla(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
        pads = ((pad, pad), (pad, pad))

        def plain(x: Array, kernel: Array) -> Array:
            return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=_LAYOUT)

        return jax.vjp(plain, x, kernel)[1](dy)

    gradients: tuple[Array, Array] = lax.platform_dependent(*saved, dy, cpu=by_cells, default=by_xla)
    return gradients


strided_conv2d.defvjp(_strided_forward, _strided_backward)


def _conv_by_cells(x: Array, kernel: Array, stride: int, pad: int) -> Array:
    """`strided_conv2d` by a convolution at stride 1 of cells of pixels."""
    size, _, inputs, outputs = kernel.shape
    height, width = ((side + 2 * pad - size) // stride + 1 for side in x.shape[1:3])
    cells = -(-size // stride)  # of the kernel, each way
    high, wide = height + cells - 1, width + cells - 1
    # What the last window does not reach is cut off by the negative padding.
    low_high = [(0, 0), *((pad, n * stride - pad - side) for n, side in zip((high, wide), x.shape[1:3], strict=True))]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(low, end, 0) for low, end in (*low_high, (0, 0))])
    x = x.reshape(len(x), high, stride, wide, stride, inputs).swapaxes(2, 3).reshape(len(x), high, wide, -1)
    more = cells * stride - size
    kernel = jnp.pad(kernel, ((0, more), (0, more), (0, 0), (0, 0)))
    kernel = kernel.reshape(cells, stride, cells, stride, inputs, outputs).swapaxes(1, 2)
    return conv2d(x, kernel.reshape(cells, cells, -1, outputs), "valid")
