"""Operations with gradients that are written out, as those of autodiff take longer on a CPU, or more memory.

They have reverse-mode rules alone.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from bigctl.parallel import mesh as meshes


@jax.custom_vjp
def matmul(x: Float[Array, "*dims inputs"], kernel: Float[Array, "inputs outputs"]) -> Float[Array, "*dims outputs"]:
    """x @ kernel, with a gradient of the kernel that XLA's CPU code computes at full speed.

    Left to itself, autodiff contracts the other way round and transposes the result: up to three times the time for a
    kernel that is wider than it is high. There is no forward-mode rule.
    """
    return x @ kernel


def _matmul_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _matmul_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    if cut_over_devices(x.shape):  # whose parts do not lie together as rows
        return dy @ kernel.T, jax.lax.dot_general(x, dy, (((0, 1), (0, 1)), ((), ())))
    rows, columns = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    return dy @ kernel.T, jax.lax.dot_general(rows, columns, (((0,), (0,)), ((), ())))


matmul.defvjp(_matmul_forward, _matmul_backward)


def cut_over_devices(shape: tuple[int, ...]) -> bool:
    """Whether activations [batch, length, features] are of texts that are cut over devices."""
    return len(shape) == 3 and meshes.token_shards_in_use(shape[1])[1] > 1


@jax.custom_vjp
def gelu(x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """x times the normal distribution function of x (Hendrycks & Gimpel 2016), exact, by erf as torch has it.

    `jax.nn.gelu` goes by erfc, which XLA computes as two arrays, one for each part of its range, and keeps several for
    the backward pass; this keeps x alone. It is computed in float32 whatever the type of x is.
    """
    return _gelu(x)


def _gelu(x: Array) -> Array:
    wide = x.astype(jnp.float32)
    return (wide * (lax.erf(wide / math.sqrt(2)) + 1) * 0.5).astype(x.dtype)


def _gelu_forward(x: Array) -> tuple[Array, Array]:
    return _gelu(x), x


def _gelu_backward(x: Array, dy: Array) -> tuple[Array]:
    wide = lax.optimization_barrier(x).astype(jnp.float32)  # or XLA would keep the error function of the forward pass
    below = 0.5 * (lax.erf(wide / math.sqrt(2)) + 1)
    density = jnp.exp(-0.5 * wide * wide) / math.sqrt(2 * math.pi)
    return (dy * (below + wide * density).astype(dy.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)
