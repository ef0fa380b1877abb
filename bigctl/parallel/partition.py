"""Parameter path and shape -> PartitionSpec. The first rule that matches decides.

Optimizer state and averaged weights end in the same paths as the parameters they belong to, so the same rules place
them beside those.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Shape = tuple[int, ...]
Rule = tuple[str, Callable[[Shape, int], PartitionSpec]]


def whole(shape: Shape, shards: int) -> PartitionSpec:
    """Every device holds all of it."""
    return PartitionSpec()


def largest_dimension(shape: Shape, shards: int) -> PartitionSpec:
    """Cut the longest dimension that `shards` divides, the last one on a tie; whole where none is divisible."""
    fitting = [(size, axis) for axis, size in enumerate(shape) if size % shards == 0]
    if not fitting:
        return PartitionSpec()
    axis = max(fitting)[1]
    return PartitionSpec(*(None,) * axis, "fsdp")


RULES: list[Rule] = [
    (r"(^|/)(step|bad_step|(sums|guard)/.*)$", whole),
    (r"(^|/)(bias|scale|mean|var|count)$", whole),
    (r".*", largest_dimension),
]


def spec(path: str, shape: Shape, shards: int, min_shard: int) -> PartitionSpec:
    """Where a leaf of the state lives.

    Args:
        path: its keys joined by "/", such as "params/layers/0/kernel".
        shape: its global shape.
        shards: size of the `fsdp` axis.
        min_shard: leaves of fewer elements stay whole: cutting them costs more messages than it saves memory.
    """
    if shards == 1 or math.prod(shape) < min_shard:
        return PartitionSpec()
    for pattern, place in RULES:
        if re.search(pattern, path):
            return place(shape, shards)
    raise ValueError(f"no rule places {path!r}")


def shardings(mesh: Mesh, tree: Any, min_shard: int) -> Any:
    """NamedShardings for a tree of arrays or ShapeDtypeStructs, of the same structure."""
    shards = mesh.shape["fsdp"]

    def place(path: Any, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, spec(path_name(path), tuple(leaf.shape), shards, min_shard))

    return jax.tree_util.tree_map_with_path(place, tree)


def path_name(path: Any) -> str:
    """A key path as text: its keys joined by "/"."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
