"""Max-pooling gives each gradient to the first maximum, in every transformation, as torch does."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bigctl.models.pooling import max_pool, overlapping_max_pool
from tests.models.test_conv import numbers, values_and_gradients

VALUES = ["distinct", "ties", "all equal"]


def pool_by_hand(
    x: np.ndarray, size: int, dy: np.ndarray | None = None, stride: int | None = None, pad: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Maxima; and where `dy` goes: to the first of equal maxima, in row order."""
    stride = stride or size
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=-np.inf)
    batch, height, width, channels = x.shape
    rows, columns = (height - size) // stride + 1, (width - size) // stride + 1
    out, dx = np.zeros((batch, rows, columns, channels), x.dtype), np.zeros_like(x)
    for b, i, j, c in np.ndindex(out.shape):
        top, left = i * stride, j * stride
        window = x[b, top : top + size, left : left + size, c]
        y, z = np.unravel_index(np.argmax(window), window.shape)
        out[b, i, j, c] = window[y, z]
        if dy is not None:
            dx[b, top + y, left + z, c] += dy[b, i, j, c]
    return out, dx[:, pad : height - pad, pad : width - pad]


def drawn(values: str, shape: tuple[int, ...]) -> np.ndarray:
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return {"distinct": x, "ties": np.round(x), "all equal": np.zeros_like(x)}[values]


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize(
    ("shape", "size"), [((2, 6, 6, 3), 2), ((2, 7, 5, 3), 2), ((1, 8, 7, 2), 3), ((1, 5, 5, 1), 5)]
)
def test_the_first_maximum_gets_the_gradient(shape: tuple[int, ...], size: int, values: str) -> None:
    x = drawn(values, shape)
    out, vjp = jax.vjp(lambda x: max_pool(x, size), jnp.asarray(x))
    dy = np.random.default_rng(1).normal(size=out.shape).astype(np.float32)
    expected, dx = pool_by_hand(x, size, dy)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(vjp(jnp.asarray(dy))[0], dx)


OVERLAPPING = [  # shape, size, stride, pad
    ((2, 8, 8, 3), 3, 2, 1), ((2, 9, 7, 2), 3, 2, 1), ((2, 9, 7, 2), 3, 2, 0), ((1, 8, 7, 2), 3, 1, 1),
    ((1, 11, 9, 2), 4, 3, 2), ((1, 6, 6, 2), 2, 2, 0), ((1, 3, 3, 2), 3, 2, 0),
]  # fmt: skip


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize(("shape", "size", "stride", "pad"), OVERLAPPING)
def test_so_it_is_where_windows_overlap(shape: tuple[int, ...], size: int, stride: int, pad: int, values: str) -> None:
    x = drawn(values, shape)
    out, vjp = jax.vjp(jax.jit(lambda x: overlapping_max_pool(x, size, stride, pad)), jnp.asarray(x))
    dy = np.random.default_rng(1).normal(size=out.shape).astype(np.float32)
    expected, dx = pool_by_hand(x, size, dy, stride, pad)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_allclose(vjp(jnp.asarray(dy))[0], dx, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("shape", "size", "stride", "pad"), OVERLAPPING)
def test_and_so_it_is_in_torch(shape: tuple[int, ...], size: int, stride: int, pad: int) -> None:
    torch = pytest.importorskip("torch")
    x = np.maximum(drawn("distinct", shape), 0)  # as after a rectifier: many zeros
    out, vjp = jax.vjp(lambda x: overlapping_max_pool(x, size, stride, pad), jnp.asarray(x))
    dy = np.random.default_rng(1).normal(size=out.shape).astype(np.float32)
    theirs = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    y = torch.nn.functional.max_pool2d(theirs, size, stride, pad)
    y.backward(torch.tensor(dy.transpose(0, 3, 1, 2)))
    np.testing.assert_array_equal(out, y.detach().numpy().transpose(0, 2, 3, 1))
    np.testing.assert_allclose(vjp(jnp.asarray(dy))[0], theirs.grad.numpy().transpose(0, 2, 3, 1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pool", [lambda x: max_pool(x, 2), lambda x: overlapping_max_pool(x, 3, 2, 1)])
def test_it_is_the_same_under_jit_scan_and_vmap(pool: Any) -> None:
    x = jnp.round(numbers(3, 2, 7, 6, 2))

    def plain(x: Any) -> Any:
        return jnp.stack([pool(part) for part in x])

    def scanned(x: Any) -> Any:
        return lax.scan(lambda _, part: (None, pool(part)), None, x)[1]

    expected = values_and_gradients(plain, x)
    for transformed in (jax.vmap(pool), scanned):
        jax.tree.map(np.testing.assert_array_equal, values_and_gradients(transformed, x), expected)


def test_accelerators_get_the_ordinary_gradient() -> None:
    gradient = jax.jit(jax.grad(lambda x: overlapping_max_pool(x, 3, 2, 1).sum()))
    lowered = {
        platform: gradient.trace(numbers(2, 8, 8, 3)).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cuda", "cpu")
    }
    found = {platform: "select_and_scatter" in text for platform, text in lowered.items()}
    assert found == {"cuda": True, "cpu": False}
