"""Which parameters are trained, decay, or are slowed down: trees and functions of their paths and shapes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import optax
from jaxtyping import PyTree

from bigctl.parallel.partition import path_name

if TYPE_CHECKING:
    from bigctl.config.schema.optimizers import Scalar

Path = tuple[Any, ...]
"""Of a leaf, as jax gives it: the keys from the root."""


def trained(params: PyTree, frozen: Sequence[str]) -> PyTree[bool]:
    """Which leaves are trained, as a tree of bool: those whose path no pattern is found in.

    Args:
        params: the parameters, or their shapes.
        frozen: regular expressions, searched for in paths such as "encoder/layers/0/up/kernel".
    """
    patterns = [re.compile(pattern) for pattern in frozen]
    return jax.tree_util.tree_map_with_path(lambda p, _: not any(r.search(path_name(p)) for r in patterns), params)


def stacked_axes(path: Path, stacked: Sequence[str]) -> int:
    """How many leading axes of a parameter count layers or experts; each pattern found in its path is one."""
    return sum(bool(re.search(pattern, path_name(path))) for pattern in stacked)


def decays(params: PyTree, stacked: Sequence[str] = ()) -> PyTree[bool]:
    """Which leaves weight decay acts on: matrices and kernels, never biases, norms and other vectors."""
    return jax.tree_util.tree_map_with_path(lambda p, leaf: leaf.ndim - stacked_axes(p, stacked) >= 2, params)


def by_layer(decay: Scalar, everything: PyTree | None = None) -> optax.GradientTransformation:
    """Layer-wise learning-rate decay (Clark et al. 2020): the top is trained at the full rate, each layer below it at
    `decay` times that of the one above, embeddings at the bottom.

    `everything` is a tree of all parameters, frozen ones too, which count as layers; None for what is updated.
    """

    def scale(updates: PyTree, params: PyTree | None = None) -> PyTree:
        whole = updates if everything is None else everything
        names = [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(whole)[0]]
        top = 1 + max((number for number in map(_layer, names) if number is not None), default=-1) + 1

        def apply(path: Path, update: jax.Array) -> jax.Array:
            number = _layer(path_name(path))
            return update if number is None else update * decay ** (top - number - 1)

        return jax.tree_util.tree_map_with_path(apply, updates)

    return optax.stateless(scale)


def _layer(path: str) -> int | None:
    """The layer that a parameter belongs to: -1 for embeddings, None for what is above all layers."""
    match = re.search(r"(^|/)layers/(\d+)/", path)
    if match:
        return int(match[2])
    return -1 if re.search(r"(^|/)(embeddings?|token|position)/", path) else None
