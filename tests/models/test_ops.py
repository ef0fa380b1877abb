"""Operations with gradients of their own have the values and the gradients of the ordinary ones."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigctl.models.ops import gelu, matmul
from tests.models.test_conv import assert_close, numbers, values_and_gradients

POINTS = np.linspace(-12, 12, 4801)


def exact(x: float) -> tuple[float, float]:
    """GELU and its slope in double precision."""
    below = 0.5 * math.erfc(-x / math.sqrt(2))
    return x * below, below + x * math.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def test_gelu_is_exact_to_a_millionth() -> None:
    x = jnp.asarray(POINTS, jnp.float32)
    values, slopes = np.array([exact(float(each)) for each in x]).T
    np.testing.assert_allclose(jax.jit(gelu)(x), values, rtol=2e-7, atol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(gelu)))(x), slopes, rtol=1e-6, atol=1e-6)


def test_gelu_is_that_of_torch() -> None:
    torch = pytest.importorskip("torch")
    theirs = torch.tensor(POINTS.astype(np.float32), requires_grad=True)
    out = torch.nn.functional.gelu(theirs)
    out.sum().backward()
    x = jnp.asarray(POINTS, jnp.float32)
    np.testing.assert_allclose(gelu(x), out.detach().numpy(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda x: gelu(x).sum())(x), theirs.grad.numpy(), rtol=1e-6, atol=1e-6)


def test_gelu_of_bfloat16_is_rounded_once() -> None:
    x = jnp.asarray(POINTS, jnp.bfloat16)
    wide = x.astype(jnp.float32)
    out, vjp = jax.vjp(gelu, x)
    (slope,) = vjp(jnp.ones_like(x))
    assert out.dtype == slope.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, gelu(wide).astype(jnp.bfloat16))
    np.testing.assert_array_equal(slope, jax.vmap(jax.grad(gelu))(wide).astype(jnp.bfloat16))


def test_gelu_keeps_its_input_alone_for_the_gradient() -> None:
    _, vjp = jax.vjp(gelu, numbers(3, 5))
    assert [leaf.shape for leaf in jax.tree.leaves(vjp) if np.size(leaf) > 1] == [(3, 5)]


@pytest.mark.parametrize("shape", [(4, 3), (2, 4, 3), (2, 2, 5, 3)])
def test_matmul_has_the_ordinary_gradients(shape: tuple[int, ...]) -> None:
    def ordinary(x: Any, kernel: Any) -> Any:
        return x @ kernel

    arguments = numbers(*shape), numbers(3, 7, seed=1)
    assert_close(values_and_gradients(matmul, *arguments), values_and_gradients(ordinary, *arguments))
