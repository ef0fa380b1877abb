"""Convolutions of 3 x 3 kernels by fewer products: Winograd's F(4 x 4, 3 x 3), for CPUs.

A pixel of the output takes 9 multiplications for each pair of channels, one of a tile of 4 x 4 pixels 36 / 16 here:
tiles of 6 x 6 pixels of the input and the kernels are transformed, multiplied place by place (36 matrix products over
channels), and transformed back (Lavin & Gray 2016, arXiv 1509.09308). The transforms, Toom's and Cook's, are those of
the points 0, +-1/sqrt(2), +-sqrt(2) and infinity: their error in float32 is half of that at the paper's points, 0.9e-6
of the output's standard deviation for 256 channels, where XLA's convolution has 0.4e-6.

Of the barriers none is needed for the result: XLA would compute a transform again for each place that takes it.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from bigctl.parallel import mesh as meshes

_TILE, _SIZE = 4, 6  # pixels of a tile of the output and of the input, each way
_NARROW = 64  # channels; with fewer the transforms cost more than is saved
_FEW = 64  # tiles of all pictures; with fewer the transform of the kernel does
_FILLED = 0.6  # of the pixels of all tiles, those that are of the output; with fewer the products do

Pads = tuple[tuple[int, int], tuple[int, int]]
Tiles = Float[Array, "places tiles channels"]


def worth_it(x: Array, kernel: Array, stride: int, pads: Pads) -> bool:
    """Whether `convolve` can do this and is the quicker way on a CPU.

    On several devices it is not: XLA would send gradients and gathered kernels transformed, 36 values for 9.
    """
    if stride != 1 or kernel.shape[:2] != (3, 3) or not x.dtype == kernel.dtype == jnp.float32:
        return False
    mesh = meshes.mesh_in_use()
    if mesh is not None and mesh.size > 1:
        return False
    high, wide = _output_sides(x.shape, pads)
    tiles = _count(high) * _count(wide)
    filled = high * wide / (tiles * _TILE**2)
    few = isinstance(x.shape[0], int) and x.shape[0] * tiles < _FEW
    return filled >= _FILLED and min(kernel.shape[2:]) * filled >= _NARROW and min(high, wide) > 2 and not few


def convolve(
    x: Float[Array, "batch height width inputs"], kernel: Float[Array, "3 3 inputs outputs"], pads: Pads
) -> Float[Array, "batch height2 width2 outputs"]:
    """Cross-correlation at stride 1."""
    products = _products(_input_tiles(x, pads), _kernel_tiles(kernel), 1)
    return _picture(products, *_output_sides(x.shape, pads))


def input_gradient(
    dy: Float[Array, "batch height2 width2 outputs"], kernel: Float[Array, "3 3 inputs outputs"], pads: Pads
) -> Float[Array, "batch height width inputs"]:
    """Of the sum of `dy` times the output, by the input: the convolution of `dy` with the kernel turned around."""
    (top, bottom), (left, right) = pads
    around = ((2 - top, 2 - bottom), (2 - left, 2 - right))
    products = _products(_input_tiles(dy, around), _kernel_tiles(kernel[::-1, ::-1]), 2)
    return _picture(products, *_output_sides(dy.shape, around))


def kernel_gradient(
    x: Float[Array, "batch height width inputs"], dy: Float[Array, "batch height2 width2 outputs"], pads: Pads
) -> Float[Array, "3 3 inputs outputs"]:
    """Of the sum of `dy` times the output, by the kernel."""
    tiles = _input_tiles(x, pads), _output_tiles(dy)
    found = lax.optimization_barrier(lax.dot_general(*tiles, (((1,), (1,)), ((0,), (0,)))))
    found = found.reshape(_SIZE, _SIZE, *found.shape[1:])
    columns = jnp.stack(_combined(_KERNEL.T, [*found]))
    return jnp.stack(_combined(_KERNEL.T, [*columns.swapaxes(0, 1)]))


def _products(tiles: Tiles, kernel: Tiles, axis: int) -> Tiles:
    """Of each place, summed over this axis of the kernel."""
    return lax.optimization_barrier(lax.dot_general(tiles, kernel, (((2,), (axis,)), ((0,), (0,)))))


# --------------------------------------------------------------------------------------------------------- transforms
# Places of a tile, 36 of them, are in order of columns.


def _input_tiles(x: Array, pads: Pads) -> Tiles:
    high, wide = _output_sides(x.shape, pads)
    down, across = _count(high), _count(wide)
    sides = [(before, count * _TILE + 2 - side - before)
             for (before, _), count, side in zip(pads, (down, across), x.shape[1:3], strict=True)]  # fmt: skip
    x = jnp.pad(x, ((0, 0), *sides, (0, 0)))
    rows = [x[:, i : i + (down - 1) * _TILE + 1 : _TILE] for i in range(_SIZE)]
    return _placed(_INPUT, rows, lambda lines, j: lines[:, :, :, j : j + (across - 1) * _TILE + 1 : _TILE])


def _picture(products: Tiles, high: int, wide: int) -> Array:
    down, across, channels = _count(high), _count(wide), products.shape[2]
    lines = products.reshape(_SIZE, _SIZE, -1, down, across, channels)
    lines = lax.optimization_barrier(jnp.stack(_combined(_BACK, [*lines]), 4))  # columns of a tile, before channels
    y = jnp.stack(_combined(_BACK, [*lines]), 2)
    return y.reshape(-1, down * _TILE, across * _TILE, channels)[:, :high, :wide]


def _output_tiles(dy: Array) -> Tiles:
    """The transposed of what makes a picture of products."""
    sides = [(0, _count(side) * _TILE - side) for side in dy.shape[1:3]]
    dy = jnp.pad(dy, ((0, 0), *sides, (0, 0)))
    return _placed(_BACK.T, [dy[:, i::_TILE] for i in range(_TILE)], lambda lines, j: lines[:, :, :, j::_TILE])


def _kernel_tiles(kernel: Array) -> Tiles:
    rows = jnp.stack(_combined(_KERNEL, [*kernel]))
    places = jnp.stack(_combined(_KERNEL, [*rows.swapaxes(0, 1)]))
    return lax.optimization_barrier(places.reshape(_SIZE * _SIZE, *kernel.shape[2:]))


def _placed(matrix: np.ndarray, rows: list[Array], column: Callable[[Array, int], Array]) -> Tiles:
    """`rows`, which are those of every tile, and then what `column` takes of them combined as `matrix` says."""
    lines = lax.optimization_barrier(jnp.stack(_combined(matrix, rows)))
    places = jnp.stack(_combined(matrix, [column(lines, j) for j in range(len(rows))]))
    return lax.optimization_barrier(places.reshape(_SIZE * _SIZE, -1, places.shape[-1]))


def _combined(matrix: np.ndarray, parts: list[Array]) -> list[Array]:
    """matrix @ parts, without the products by 0 and 1."""
    combinations = []
    for row in matrix:
        terms = [
            part if factor == 1 else float(factor) * part for factor, part in zip(row, parts, strict=True) if factor
        ]
        combinations.append(sum(terms[1:], terms[0]))
    return combinations


def _output_sides(shape: tuple[int, ...], pads: Pads) -> tuple[int, int]:
    high, wide = (side + sum(around) - 2 for side, around in zip(shape[1:3], pads, strict=True))
    return high, wide


def _count(side: int) -> int:
    """Tiles that cover it."""
    return -(-side // _TILE)


def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What transforms the input, the kernel, and products back, each along one axis.

    With polynomials evaluated at the points, the output is the transposed of Lagrange's interpolation.
    """
    points = np.array([0, -np.sqrt(0.5), np.sqrt(0.5), -np.sqrt(2), np.sqrt(2)])
    others = [np.delete(points, place) for place in range(len(points))]
    inputs = np.zeros((_SIZE, _SIZE))
    for place, roots in enumerate([*others, points]):
        inputs[place, : len(roots) + 1] = np.poly(roots)[::-1].round(12)
    kernel = np.zeros((_SIZE, 3))
    kernel[:-1] = np.vander(points, 3, increasing=True)
    kernel[:-1] /= np.array([np.prod(p - rest) for p, rest in zip(points, others, strict=True)])[:, None]
    back = np.zeros((_TILE, _SIZE))
    back[:, :-1] = np.vander(points, _TILE, increasing=True).T
    kernel[-1, -1] = back[-1, -1] = 1
    return inputs, kernel, back


_INPUT, _KERNEL, _BACK = _matrices()
