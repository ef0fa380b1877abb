"""Parameter path and shape -> PartitionSpec, by the rules of the axes (see `axes`).

Optimizer state and averaged weights end in the same paths as the parameters they belong to, so the same rules place
them beside those.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, TypeVar

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bigctl.parallel.axes import AXES, Axis, Shape

Tree = TypeVar("Tree")


def spec(
    path: str,
    shape: Shape,
    sizes: Mapping[str, int],
    min_shard: int,
    *,
    stacked: Sequence[str] = (),
    axes: Sequence[Axis] = AXES,
) -> PartitionSpec:
    """Where a leaf of the state lives: the innermost axis chooses its dimension first, and none takes another's.

    Args:
        path: its keys joined by "/", such as "params/layers/0/kernel".
        shape: its global shape.
        sizes: devices along each axis, by name; 1 for those that are not named.
        min_shard: leaves of fewer elements are not cut by axes that skip small ones.
        stacked: `schema.Model.stacked`. Each pattern found in the path stands for one leading dimension, which only
            axes that cut stacks cut; the others are cut as those of the single parameter.
        axes: the outermost first.
    """
    names: list[str | None]
    leading = sum(bool(re.search(pattern, path)) for pattern in stacked)
    if leading:
        single = spec(path, shape[leading:], sizes, min_shard, axes=[axis for axis in axes if not axis.cuts_stacks])
        stack = spec(path, shape[:leading], sizes, min_shard, axes=[axis for axis in axes if axis.cuts_stacks])
        names = [*stack, *(None,) * (leading - len(stack)), *single]
        return PartitionSpec(*_without_end(names))
    names = [None] * len(shape)
    left = shape
    for axis in reversed(axes):
        shards = sizes.get(axis.name, 1)
        if shards == 1 or not shape or (axis.skips_small and math.prod(shape) < min_shard):
            continue
        dimension = axis.dimension(path, left, shards)
        if dimension is not None:
            names[dimension] = axis.name
            left = (*left[:dimension], 1, *left[dimension + 1 :])  # which nothing can cut again
    return PartitionSpec(*_without_end(names))


def _without_end(names: list[str | None]) -> list[str | None]:
    """Without what stands for whole dimensions at the end."""
    while names and names[-1] is None:
        names.pop()
    return names


def shardings(mesh: Mesh, tree: Tree, min_shard: int, stacked: Sequence[str] = ()) -> Tree:
    """NamedShardings for a tree of arrays or ShapeDtypeStructs, of the same structure; arguments as for `spec`."""
    sizes = dict(mesh.shape)

    def place(path: jax.tree_util.KeyPath, leaf: jax.Array | jax.ShapeDtypeStruct) -> NamedSharding:
        return NamedSharding(mesh, spec(path_name(path), tuple(leaf.shape), sizes, min_shard, stacked=stacked))

    placed: Tree = jax.tree_util.tree_map_with_path(place, tree)
    return placed


class Rules(NamedTuple):
    """What `spec` is asked with on a mesh: sizes of its axes, `mesh.min_shard`, `schema.Model.stacked`."""

    sizes: Mapping[str, int]
    min_shard: int
    stacked: tuple[str, ...] = ()

    def leading(self, path: str) -> int:
        """How many leading dimensions of a parameter count layers or experts."""
        return sum(bool(re.search(pattern, path)) for pattern in self.stacked)

    def spec(self, path: str, shape: Shape) -> PartitionSpec:
        return spec(path, shape, self.sizes, self.min_shard, stacked=self.stacked)


_rules: ContextVar[Rules | None] = ContextVar("rules", default=None)


@contextmanager
def placing(rules: Rules) -> Iterator[None]:
    """What is traced in this context can ask `rules_in_use` where parameters live."""
    token = _rules.set(rules)
    try:
        yield
    finally:
        _rules.reset(token)


def rules_in_use() -> Rules | None:
    """The rules of the mesh that a program is traced for; None on one device."""
    return _rules.get()


def path_name(path: jax.tree_util.KeyPath) -> str:
    """A key path as text: its keys joined by "/"."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
