"""Which parameters are trained, decay, or are slowed down: trees and functions of their paths and shapes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import optax
from jaxtyping import PyTree

from bigctl.optim.patterns import found_in
from bigctl.parallel.partition import path_name

if TYPE_CHECKING:
    from bigctl.config.schema.optimizers import Scalar

Path = tuple[Any, ...]
"""Of a leaf, as jax gives it: the keys from the root."""

USUAL_LEVELS = (r"(?:^|/)(?:embeddings?|token|position)/", r"(?:^|/)layers/(\d+)/")
"""Levels of a model that does not tell its own: embeddings, and numbered layers on top of them."""


def zeros_kept(before: PyTree, after: PyTree) -> PyTree:
    """The weights after an update, with 0 where those before it were 0: a network that was pruned stays so.

    It is asked of the kernels that pruning takes: all but the head, and none that is 0 throughout, which has only not
    been trained yet.
    """

    def kept(path: Path, old: jax.Array, new: jax.Array) -> jax.Array:
        name = path_name(path)
        if not name.endswith("kernel") or name.startswith("head/"):
            return new
        return jax.numpy.where((old == 0) & (old != 0).any(), old, new)

    return jax.tree_util.tree_map_with_path(kept, before, after)


def trained(params: PyTree, frozen: Sequence[str]) -> PyTree[bool]:
    """Which leaves are trained, as a tree of bool: those whose path no pattern is found in.

    Args:
        params: the parameters, or their shapes.
        frozen: regular expressions, searched for in paths such as "encoder/layers/0/up/kernel".

    Raises:
        ConfigError: for a pattern that takes too long to search for.
    """
    names = tuple(path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0])
    kept = {name for pattern in frozen for name, found in zip(names, found_in(pattern, names), strict=True) if found}
    return jax.tree_util.tree_map_with_path(lambda path, _: path_name(path) not in kept, params)


def stacked_axes(path: Path, stacked: Sequence[str]) -> int:
    """How many leading axes of a parameter count layers or experts; each pattern found in its path is one."""
    return sum(bool(re.search(pattern, path_name(path))) for pattern in stacked)


def decays(params: PyTree, stacked: Sequence[str] = ()) -> PyTree[bool]:
    """Which leaves weight decay acts on: matrices and kernels, never biases, norms and other vectors."""
    return jax.tree_util.tree_map_with_path(lambda p, leaf: leaf.ndim - stacked_axes(p, stacked) >= 2, params)


def named(params: PyTree, pattern: str) -> PyTree[str]:
    """Which leaves' paths a pattern is found in: "rows" of those, "others" of the rest."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "rows" if re.search(pattern, path_name(path)) else "others", params
    )


_BIAS = re.compile(r"(?:^|[/_])bias$")
_NORM_BIAS = re.compile(r"(?:^|/)\w*norm\w*/(?:.+/)?bias$")


def biases(params: PyTree) -> PyTree[bool]:
    """Which leaves are biases, of normalisation layers too."""
    return jax.tree_util.tree_map_with_path(lambda path, _: bool(_BIAS.search(path_name(path))), params)


def norm_biases(params: PyTree) -> PyTree[bool]:
    """Which leaves are biases of normalisation layers."""
    return jax.tree_util.tree_map_with_path(lambda path, _: bool(_NORM_BIAS.search(path_name(path))), params)


def by_layer(
    decay: Scalar, everything: PyTree | None = None, levels: Sequence[str] = USUAL_LEVELS
) -> optax.GradientTransformation:
    """Layer-wise learning-rate decay (Clark et al. 2020): what is above all layers is trained at the full rate, each
    layer at `decay` times the rate of what is above it.

    Args:
        decay: a float or traced scalar.
        everything: a tree of all parameters, frozen ones too, which count as layers; None for what is updated.
        levels: the model's patterns of layers from the bottom up, see `schema.Model.levels`.
    """

    def scale(updates: PyTree, params: PyTree | None = None) -> PyTree:
        below = depths(updates if everything is None else everything, levels)

        def apply(path: Path, update: jax.Array) -> jax.Array:
            depth = below[path_name(path)]
            return update if depth is None else update * decay**depth

        return jax.tree_util.tree_map_with_path(apply, updates)

    return optax.stateless(scale)


def depths(params: PyTree, levels: Sequence[str] = USUAL_LEVELS) -> dict[str, int | None]:
    """By path, how far each parameter is below the top of the model: 1 in the highest layer, None above all layers."""
    names = [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    places = {name: _place(name, levels) for name in names}
    tops: list[int | None] = [
        max((place[1] for place in places.values() if place and place[0] == level), default=None)
        for level in range(len(levels))
    ]
    found: dict[str, int | None] = {}
    for name, place in places.items():
        if place is None:
            found[name] = None
            continue
        level, number = place
        above = sum(top + 1 for top in tops[level + 1 :] if top is not None)
        found[name] = above + (tops[level] or 0) - number + 1
    return found


def layers_of(trained: PyTree[bool], levels: Sequence[str] = ()) -> dict[str, int]:
    """By path, the layer of each parameter that is trained: 1 for the highest that is, 0 above all layers."""
    kept = {path_name(path) for path, leaf in jax.tree_util.tree_flatten_with_path(trained)[0] if leaf}
    below = {name: depth or 0 for name, depth in depths(trained, levels or USUAL_LEVELS).items() if name in kept}
    number = {depth: layer for layer, depth in enumerate(sorted({0, *below.values()}))}
    return {name: number[depth] for name, depth in below.items()}


def _place(path: str, levels: Sequence[str]) -> tuple[int, int] | None:
    """Which of the levels a parameter belongs to, the topmost that fits, and the number of its layer there."""
    for level in reversed(range(len(levels))):
        if match := re.search(levels[level], path):
            return level, int(match[1]) if match.re.groups else 0
    return None
