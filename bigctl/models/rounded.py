"""A model that computes while it is trained what its export in eight bits will: weights and what layers are given are
rounded on the way, and gradients pass as if they were not (Jacob et al. 2018, arXiv 1712.05877; Liu et al. 2023,
LLM-QAT, arXiv 2305.17888).

Weights have a scale a column, of tables a row; they are those integers that `bigctl.interop.onnx.quantise` writes.
What a layer is given has a range of its own for each token, or row, so that no example depends on others of its batch.
The export of an LSTM multiplies in float32: there what its layers are given is rounded in training alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from bigctl.parallel.partition import path_name

PRODUCT_LEVELS, TABLE_LEVELS = 64, 127
"""The largest integer of a weight that multiplies (seven of the eight bits) and of one that is looked up."""
_MATRICES = ("kernel",)
_STAYS = ("position", "segment")
"""Tables that are added whole, not looked up, which the export leaves as they are."""


@jax.custom_vjp
def _straight_through(given: Array, rounded: Array) -> Array:
    """The second, with its gradient given to the first."""
    return rounded


_straight_through.defvjp(lambda given, rounded: (rounded, None), lambda saved, dy: (dy, jnp.zeros_like(dy)))


def rounded_weights(params: PyTree[Array]) -> PyTree[Array]:
    """The same tree with its matrices and tables rounded; other arrays as they are."""

    def one(path: tuple[Any, ...], leaf: Array) -> Array:
        names = path_name(path).split("/")
        if leaf.ndim != 2 or not (names[-1].endswith(_MATRICES) or is_table(names)):
            return leaf
        table = is_table(names)
        return rounded_matrix(leaf, axis=1 if table else 0, levels=TABLE_LEVELS if table else PRODUCT_LEVELS)

    return jax.tree_util.tree_map_with_path(one, params)


def is_table(names: list[str]) -> bool:
    """Whether the array at this path is a table whose rows are looked up."""
    return names[-1] == "embedding" and not any(name in _STAYS for name in names)


def rounded_matrix(values: Float[Array, "rows columns"], axis: int, levels: int) -> Float[Array, "rows columns"]:
    """Integers up to `levels` times one scale for all that lie along `axis`; 0 stays 0."""
    wide = jax.lax.stop_gradient(values).astype(jnp.float32)
    scale = jnp.abs(wide).max(axis, keepdims=True) / levels
    found = jnp.rint(wide / jnp.where(scale > 0, scale, 1)) * scale
    return _straight_through(values, found.astype(values.dtype))


def rounded_inputs(x: Float[Array, "*dims features"]) -> Float[Array, "*dims features"]:
    """Each vector as 256 values from its least to its largest element, 0 among them."""
    wide = jax.lax.stop_gradient(x).astype(jnp.float32)
    low = jnp.minimum(wide.min(-1, keepdims=True), 0)
    scale = (jnp.maximum(wide.max(-1, keepdims=True), 0) - low) / 255
    scale = jnp.where(scale > 0, scale, 1)
    zero = jnp.clip(jnp.rint(-low / scale), 0, 255)
    found = (jnp.clip(jnp.rint(wide / scale) + zero, 0, 255) - zero) * scale
    return _straight_through(x, found.astype(x.dtype))


def _rounding_product(x: Array, kernel: Array, *arguments: object, **more: object) -> Array:
    """`jax.lax.dot_general` for `nnx.Linear`."""
    product: Callable[..., Array] = jax.lax.dot_general
    return product(rounded_inputs(x), kernel, *arguments, **more)


def rounding(model: nnx.Module) -> nnx.Module:
    """The model, whose dense layers round what they are given; its weights are rounded by `rounded_weights`."""
    for _, module in nnx.iter_graph(model):
        if isinstance(module, nnx.Linear):
            module.dot_general = _rounding_product
        elif hasattr(module, "rounds_inputs"):
            module.rounds_inputs = True
    return model
