"""Convolution whose gradients are quick on CPU; elsewhere it is the ordinary XLA operation.

XLA's own code for the gradient of a convolution's kernel takes several times what is below on CPU, and thirty times in
the body of a loop. Large convolutions train by fewer products (`winograd`). There are reverse-mode rules alone for that
reason, and where XLA convolves on a CPU no second derivatives by kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from bigctl.models import winograd
from bigctl.models.ops import matmul
from bigctl.parallel import mesh as meshes

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_FEW_COLUMNS = 64  # below, all shifts of the input fit side by side in cache
_PIECE = 2**21  # bytes of dy that stay in a processor's cache while every place of the kernel meets them
_MOST_PIECES = 8  # each is a convolution to compile

Pads = tuple[tuple[int, int], tuple[int, int]]
_NO_PADS: Pads = ((0, 0), (0, 0))


def conv2d(
    x: Float[Array, "batch height width inputs"], kernel: Float[Array, "rows columns inputs outputs"], padding: str
) -> Float[Array, "batch height2 width2 outputs"]:
    """Cross-correlation at stride 1, `padding` "same" or "valid", as `torch.nn.Conv2d` defines it."""
    rows, columns = kernel.shape[:2]
    return _conv(x, kernel, 1, (_pads(rows, padding), _pads(columns, padding)))


def strided_conv2d(
    x: Float[Array, "batch height width inputs"],
    kernel: Float[Array, "size size inputs outputs"],
    stride: int,
    pad: int,
) -> Float[Array, "batch height2 width2 outputs"]:
    """Cross-correlation with `pad` zeros on every side, as `torch.nn.Conv2d` defines it."""
    return _conv(x, kernel, stride, ((pad, pad), (pad, pad)))


def conv1x1(
    x: Float[Array, "batch height width inputs"], kernel: Float[Array, "inputs outputs"], stride: int
) -> Float[Array, "batch height2 width2 outputs"]:
    """Every stride-th pixel, each way, times the kernel."""
    kept = x[:, ::stride, ::stride]
    if stride > 1 and meshes.platform_in_use() == "gpu":
        kept = lax.optimization_barrier(kept)  # XLA's fusion of the two ends in a failed check (jax 0.10.2 and 0.11.2)
    return matmul(kept, kernel)


def _pads(size: int, padding: str) -> tuple[int, int]:
    """Pixels added before and after an axis, as XLA does at stride 1."""
    return ((size - 1) // 2, size - 1 - (size - 1) // 2) if padding == "same" else (0, 0)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x: Array, kernel: Array, stride: int, pads: Pads) -> Array:
    def by_xla(x: Array, kernel: Array) -> Array:
        return _convolve(x, kernel, stride, pads)

    if not _kernel_is_larger(x, kernel):
        return by_xla(x, kernel)
    quick = partial(_quickest, stride=stride, pads=pads)
    y: Array = lax.platform_dependent(x, kernel, cpu=quick, default=by_xla)
    return y


def _convolve(x: Array, kernel: Array, stride: int, pads: Pads) -> Array:
    return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=_LAYOUT)


def _quickest(x: Array, kernel: Array, stride: int, pads: Pads) -> Array:
    """`_convolve` on a CPU, where XLA takes the larger of image and kernel for the image, and then twenty times as
    long: instead as a product of all that each place sees."""
    if not _kernel_is_larger(x, kernel):
        return _convolve(x, kernel, stride, pads)
    rows, columns = kernel.shape[:2]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*ends, 0) for ends in pads), (0, 0, 0)])
    high, wide = (x.shape[1] - rows) // stride + 1, (x.shape[2] - columns) // stride + 1
    down, across = (high - 1) * stride + 1, (wide - 1) * stride + 1
    seen = [x[:, i : i + down : stride, j : j + across : stride] for i in range(rows) for j in range(columns)]
    return jnp.concatenate(seen, -1) @ kernel.reshape(-1, kernel.shape[3])


def _kernel_is_larger(x: Array, kernel: Array) -> bool:
    return kernel.shape[0] * kernel.shape[1] > x.shape[1] * x.shape[2]


def _forward(x: Array, kernel: Array, stride: int, pads: Pads) -> tuple[Array, tuple[Array, Array]]:
    """Where gradients are asked for; all else is given XLA's convolution."""
    if not winograd.worth_it(x, kernel, stride, pads):
        return _conv(x, kernel, stride, pads), (x, kernel)

    def quick(x: Array, kernel: Array) -> Array:
        return winograd.convolve(x, kernel, pads)

    def by_xla(x: Array, kernel: Array) -> Array:
        return _convolve(x, kernel, stride, pads)

    y: Array = lax.platform_dependent(x, kernel, cpu=quick, default=by_xla)
    return y, (x, kernel)


def _backward(stride: int, pads: Pads, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    def quick(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
        if winograd.worth_it(x, kernel, stride, pads):
            dx = winograd.input_gradient(dy, kernel, pads)
        else:
            dx = _input_gradient(dy, kernel, x.shape, stride, pads, _quickest)
        return dx, _kernel_gradient(x, dy, kernel, stride, pads)

    def by_xla(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
        dx, dk = jax.vjp(lambda x, kernel: _convolve(x, kernel, stride, pads), x, kernel)[1](dy)
        return (_input_gradient(dy, kernel, x.shape, stride, pads, _convolve) if stride == 1 else dx), dk

    gradients: tuple[Array, Array] = lax.platform_dependent(*saved, dy, cpu=quick, default=by_xla)
    return gradients


_conv.defvjp(_forward, _backward)


def _input_gradient(
    dy: Array, kernel: Array, shape: tuple[int, ...], stride: int, pads: Pads, convolve: Callable[..., Array]
) -> Array:
    """Pixels whose place leaves the same remainder meet the same entries of the kernel: a convolution for each of the
    stride x stride remainders, none of which multiplies by zeros between the pixels of `dy`."""

    def axis(place: int, size: int, side: int, before: int) -> tuple[slice, int, tuple[int, int]]:
        """Of the pixels place, place + stride, ...: entries they meet, how many they are, and zeros around `dy`."""
        first, far = (place + before) % stride, (place + before) // stride
        entries = slice(first, None, stride)
        met = len(range(size)[entries])
        count = -(-(side - place) // stride)
        return entries, count, (met - 1 - far, count + far)

    (rows, columns), (height, width) = kernel.shape[:2], shape[1:3]
    lines = []
    for top in range(stride):
        down, high, (above, below) = axis(top, rows, height, pads[0][0])
        line = []
        for left in range(stride):
            across, wide, (before, after) = axis(left, columns, width, pads[1][0])
            turned = kernel[down, across][::-1, ::-1].swapaxes(2, 3)
            around = ((above, below - dy.shape[1]), (before, after - dy.shape[2]))
            none = jnp.zeros((len(dy), high, wide, shape[3]), dy.dtype)  # where the kernel is smaller than the stride
            given, pads_left = _padded(dy, around)
            line.append(convolve(given, turned, 1, pads_left) if turned.size else none)
        lines.append(line)
    return lines[0][0] if stride == 1 else _interleave(lines, height, width)


def _padded(dy: Array, around: Pads) -> tuple[Array, Pads]:
    """`dy`, and what is left to pad: XLA on CPU gets some convolutions wrong where an axis is padded at one end and cut
    at the other (jax 0.10.2)."""
    if not any(min(ends) < 0 < max(ends) for ends in around):
        return dy, around
    return lax.pad(dy, jnp.zeros((), dy.dtype), [(0, 0, 0), *((*ends, 0) for ends in around), (0, 0, 0)]), _NO_PADS


def _interleave(lines: list[list[Array]], height: int, width: int) -> Array:
    """Pixel [i, j] of `lines[top][left]` at [i x stride + top, j x stride + left] of one picture."""
    stride, (batch, high, wide, channels) = len(lines), lines[0][0].shape
    room = [
        [jnp.pad(y, ((0, 0), (0, high - y.shape[1]), (0, wide - y.shape[2]), (0, 0))) for y in line] for line in lines
    ]
    together = jnp.stack([jnp.stack(line, 3) for line in room], 2)
    return together.reshape(batch, high * stride, wide * stride, channels)[:, :height, :width]


def _kernel_gradient(x: Array, dy: Array, kernel: Array, stride: int, pads: Pads) -> Array:
    """By convolutions; for several kernels at once, as under `jax.vmap`, by products, each in the time of its own."""
    if winograd.worth_it(x, kernel, stride, pads):
        return winograd.kernel_gradient(x, dy, pads)
    shape = kernel.shape

    @jax.custom_batching.custom_vmap
    def gradient(x: Array, dy: Array) -> Array:
        few = shape[0] * shape[1] * shape[2] <= _FEW_COLUMNS
        return (_by_products if few else _by_convolutions)(x, dy, shape, stride, pads)

    @gradient.def_vmap
    def _(size: int, batched: list[bool], x: Array, dy: Array) -> tuple[Array, bool]:
        axes = tuple(0 if each else None for each in batched)
        return jax.vmap(lambda x, dy: _by_products(x, dy, shape, stride, pads), in_axes=axes)(x, dy), True

    found: Array = gradient(x, dy)
    return found


def _by_convolutions(x: Array, dy: Array, shape: tuple[int, ...], stride: int, pads: Pads) -> Array:
    """The convolution of the input with `dy`, whose examples are channels, and whose channels examples.

    Columns and channels of the input are one axis, along which a column is `inputs` places away: so come out all
    columns of the kernel and its inputs as one row of pixels, as many as XLA's code for convolutions on CPU wants.
    It reads all of `dy` for a few of them at a time, hence the pieces.
    """
    rows, columns, inputs, outputs = shape
    (batch, height, width, _), (high, wide) = x.shape, dy.shape[1:3]
    (top, _), (left, _) = pads
    seen = (wide - 1) * stride + columns - left  # columns of the input, zeros behind it among them
    sides = (left * inputs, max(seen - width, 0) * inputs)
    pieces = min(high, _MOST_PIECES, -(-dy.size * dy.dtype.itemsize // _PIECE))
    each = -(-high // pieces)
    found: Array | None = None
    for first in range(0, high, each):
        piece = dy[:, first : first + each].transpose(1, 2, 0, 3)
        low = first * stride - top
        end = low + (len(piece) - 1) * stride + rows
        part = x[:, max(low, 0) : min(end, height), :seen].transpose(1, 2, 3, 0)
        more = lax.conv_general_dilated(
            part.reshape(1, len(part), -1, batch), piece, (1, 1), ((max(-low, 0), max(end - height, 0)), sides),
            rhs_dilation=(stride, stride * inputs), dimension_numbers=_LAYOUT,
        )  # fmt: skip
        found = more if found is None else found + more
    assert found is not None
    return found.reshape(rows, columns, inputs, outputs)


def _by_products(x: Array, dy: Array, shape: tuple[int, ...], stride: int, pads: Pads) -> Array:
    """Matrix products of the shifted input with `dy`: of several kernels XLA would make a grouped convolution, half as
    long again."""
    rows, columns, inputs, outputs = shape
    high, wide = dy.shape[1:3]
    down, across = (high - 1) * stride + 1, (wide - 1) * stride + 1  # pixels from the first to the last one met
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    dy = dy.reshape(-1, outputs)
    columnwise = [x[:, :, j : j + across : stride] for j in range(columns)]
    if rows * columns * inputs <= _FEW_COLUMNS:
        shifts = [line[:, i : i + down : stride] for i in range(rows) for line in columnwise]
        patches = jnp.concatenate(shifts, -1).reshape(-1, rows * columns * inputs)
        return (patches.T @ dy).reshape(shape)
    side = jnp.concatenate(columnwise, -1)
    products = [side[:, i : i + down : stride].reshape(-1, columns * inputs).T @ dy for i in range(rows)]
    return jnp.stack(products).reshape(shape)
