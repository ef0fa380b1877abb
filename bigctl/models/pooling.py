"""Max-pooling whose gradient is quick on CPU: XLA's own, of `reduce_window`, takes several times as long there.

There are reverse-mode rules alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


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


def overlapping_max_pool(
    x: Float[Array, "batch height width channels"], size: int, stride: int, pad: int = 0
) -> Float[Array, "batch height2 width2 channels"]:
    """The maximum of each size x size window, windows `stride` pixels apart, with `pad` pixels on every side that are
    never the maximum, as `torch.nn.MaxPool2d` defines it (`stride` at most `size`); of equal maxima the first takes the
    gradient."""
    return _overlapping(x, size, stride, pad)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _overlapping(x: Array, size: int, stride: int, pad: int) -> Array:
    return _by_xla(x, size, stride, pad)


def _by_xla(x: Array, size: int, stride: int, pad: int) -> Array:
    sides = ((0, 0), (pad, pad), (pad, pad), (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, size, size, 1), (1, stride, stride, 1), sides)


def _overlapping_forward(x: Array, size: int, stride: int, pad: int) -> tuple[Array, tuple[Array, Array]]:
    y = _by_xla(x, size, stride, pad)
    return y, (x, y)


def _overlapping_backward(size: int, stride: int, pad: int, saved: tuple[Array, Array], dy: Array) -> tuple[Array]:
    def by_shifts(x: Array, y: Array, dy: Array) -> Array:
        views = list(_windows(x, size, stride, pad, (y.shape[1], y.shape[2])))
        first = jnp.full(y.shape, size * size - 1, jnp.int8 if size < 12 else jnp.int32)
        for (row, column), view in reversed(views):  # the last one written is the first that equals the maximum
            first = jnp.where(view == y, jnp.asarray(row * size + column, first.dtype), first)
        return _given_back(first, dy, (x.shape[1], x.shape[2]), size, stride, pad)

    def by_xla(x: Array, y: Array, dy: Array) -> Array:
        return jax.vjp(lambda x: _by_xla(x, size, stride, pad), x)[1](dy)[0]

    dx: Array = lax.platform_dependent(*saved, dy, cpu=by_shifts, default=by_xla)
    return (dx,)


_overlapping.defvjp(_overlapping_forward, _overlapping_backward)


def _windows(
    x: Array, size: int, stride: int, pad: int, shape: tuple[int, int]
) -> Iterator[tuple[tuple[int, int], Array]]:
    """For each place of a window (row, column): what lies there in every window."""
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=-jnp.inf)
    down, across = ((count - 1) * stride + 1 for count in shape)
    for row in range(size):
        for column in range(size):
            yield (row, column), x[:, row : row + down : stride, column : column + across : stride]


def _given_back(first: Array, dy: Array, shape: tuple[int, int], size: int, stride: int, pad: int) -> Array:
    """The gradient of what was pooled: each pixel is met by the places of windows that leave the same remainder by the
    stride, so that there is a sum for each of stride x stride remainders."""
    high, wide = (-(-(side + 2 * pad) // stride) for side in shape)

    def met(row: int, column: int) -> Array:
        """What the windows give to the pixels at this place of theirs, where it is their maximum."""
        given = jnp.where(first == row * size + column, dy, 0)
        down, across = row // stride, column // stride
        ends = ((down, high - dy.shape[1] - down, 0), (across, wide - dy.shape[2] - across, 0))
        return lax.pad(given, jnp.zeros((), dy.dtype), ((0, 0, 0), *ends, (0, 0, 0)))

    def remainder(top: int, left: int) -> Array:
        places = [(row, column) for row in range(top, size, stride) for column in range(left, size, stride)]
        return sum((met(*place) for place in places[1:]), met(*places[0]))

    lines = [jnp.stack([remainder(top, left) for left in range(stride)], 3) for top in range(stride)]
    together = jnp.stack(lines, 2).reshape(len(dy), high * stride, wide * stride, dy.shape[3])
    return together[:, pad : pad + shape[0], pad : pad + shape[1]]
