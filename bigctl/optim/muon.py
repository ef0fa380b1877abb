"""Muon (Jordan et al. 2024): momentum whose matrices are made orthogonal before they are applied.

The update is that of `optax.contrib.muon`, to rounding. Two things are computed otherwise, because they take most of
the time of a small model's step on a CPU: a matrix is never a batch of one, whose products XLA does not hand to its
matrix multiplication, and the iteration of an oblong matrix runs on its small square product.

On several devices each matrix is made orthogonal on one of them, see `owned`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from bigctl.config import schema
from bigctl.optim import owned
from bigctl.optim.masks import Path, stacked_axes
from bigctl.optim.optimizers import decay_and_rate, decay_of_vectors
from bigctl.parallel import partition
from bigctl.parallel.partition import path_name

if TYPE_CHECKING:
    from bigctl.config.schema.optimizers import Hparams, Scalar

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic a x + b x^3 + c x^5, which brings all singular values to about 1; Jordan's."""

_EPS = 1e-8


class MuonState(NamedTuple):
    count: jax.Array  # type: ignore[assignment]  # the name of a method of tuples
    mu: PyTree


def muon(
    config: schema.Muon, hparams: Hparams, factor: Scalar, stacked: tuple[str, ...]
) -> tuple[optax.GradientTransformation]:
    """Muon for the matrices inside, Adam for all else."""
    scaled = scale_by_muon(config.momentum, config.iterations, stacked)
    matrices = optax.chain(scaled, *decay_and_rate(config, hparams, factor, stacked))
    adam = optax.scale_by_adam(nesterov=True), decay_of_vectors(config, hparams, stacked)
    others = optax.chain(*adam, optax.scale(-hparams["optimizer.adam_lr"] * factor))
    return (optax.partition({"muon": matrices, "adam": others}, partial(_muon_or_adam, stacked=stacked)),)


def _muon_or_adam(params: PyTree, stacked: Sequence[str]) -> PyTree[str]:
    """Whose each leaf is: Muon's, or Adam's.

    Vectors, embeddings and the output layer are for Adam (Jordan et al. 2024): rows of an embedding, or columns of the
    output, stand for single tokens or classes.
    """

    def whose(path: Path, leaf: jax.Array) -> str:
        matrix = leaf.ndim - stacked_axes(path, stacked) >= 2
        return "muon" if matrix and not re.search(r"(^|/)embedding$|^head/", path_name(path)) else "adam"

    return jax.tree_util.tree_map_with_path(whose, params)


def scale_by_muon(momentum: float, iterations: int, stacked: Sequence[str] = ()) -> optax.GradientTransformation:
    """Nesterov momentum, made orthogonal, times sqrt(max(1, outputs / inputs)).

    Every leaf is a matrix [inputs, outputs], or a kernel [..., inputs, outputs] that is taken for one; of a leaf
    [layers or experts, ...] that `stacked` names each part is.
    """

    def init(params: PyTree) -> MuonState:
        return MuonState(jnp.int32(0), optax.tree.zeros_like(params))

    def scaled(path: Path, leaf: jax.Array) -> jax.Array:
        rule = partial(_scaled, iterations=iterations)
        for _ in range(stacked_axes(path, stacked)):
            rule = jax.vmap(rule)
        return rule(leaf)

    def lengthened(path: Path, leaf: jax.Array) -> jax.Array:
        return leaf * _factor(math.prod(leaf.shape[stacked_axes(path, stacked) : -1]), leaf.shape[-1])

    def update(updates: PyTree, state: MuonState, params: PyTree | None = None) -> tuple[PyTree, MuonState]:
        count = state.count + 1
        mu = optax.tree.update_moment(updates, state.mu, momentum, 1)
        now = optax.tree.bias_correction(updates, momentum, count)
        ahead = optax.tree.bias_correction(mu, momentum, count + 1)
        ahead = jax.tree.map(lambda m, g: momentum * m + (1 - momentum) * g, ahead, now)
        rules = partition.rules_in_use()
        if rules is None:
            return jax.tree_util.tree_map_with_path(scaled, ahead), MuonState(count, mu)
        whole = owned.applied(ahead, partial(orthogonal, iterations=iterations), rules)
        return jax.tree_util.tree_map_with_path(lengthened, whole), MuonState(count, mu)

    return optax.GradientTransformation(init, update)


def _scaled(leaf: jax.Array, iterations: int) -> jax.Array:
    matrix = leaf.reshape(-1, leaf.shape[-1])
    inputs, outputs = matrix.shape
    return (orthogonal(matrix, iterations) * _factor(inputs, outputs)).reshape(leaf.shape)


def _factor(inputs: int, outputs: int) -> float:
    return math.sqrt(max(1.0, outputs / inputs))


def orthogonal(x: Float[Array, "inputs outputs"], iterations: int) -> Float[Array, "inputs outputs"]:
    """A matrix with the singular vectors of `x` and singular values near 1, by Newton and Schulz's iteration
    x <- (a + b A + c A^2) x, A = x x^T.

    Where one side is longer, only A is iterated, and the factors are collected: A <- P A P, with P the polynomial.
    """
    if x.shape[0] > x.shape[1]:
        return orthogonal(x.T, iterations).T
    a, b, c = COEFFICIENTS
    x = x / (jnp.linalg.norm(x) + _EPS)
    if x.shape[0] == x.shape[1]:
        for _ in range(iterations):
            square = x @ x.T
            x = a * x + (b * square + c * (square @ square)) @ x
        return x
    square, factors = x @ x.T, jnp.eye(x.shape[0], dtype=x.dtype)
    for number in range(iterations):
        polynomial = a * jnp.eye(x.shape[0], dtype=x.dtype) + b * square + c * (square @ square)
        factors = polynomial @ factors if number else polynomial
        if number < iterations - 1:
            square = polynomial @ square @ polynomial
    return factors @ x
