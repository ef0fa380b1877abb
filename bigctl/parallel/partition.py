"""Parameter path and shape -> PartitionSpec. The first rule that matches decides.

Optimizer state and averaged weights end in the same paths as the parameters they belong to, so the same rules place
them beside those.

Over `tensor` the layers of a transformer are cut as in Megatron (Shoeybi et al. 2019): what makes the heads, and the
wide part of an MLP, by its outputs, what reads them by its inputs, so that devices add up once after either; embedding
and output by the vocabulary. `fsdp` cuts another dimension.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Shape = tuple[int, ...]
Rule = tuple[str, Callable[[Shape, int], int | None]]
"""Which paths, and (shape, shards) -> the dimension that is cut; None where every device holds all of it."""


def whole(shape: Shape, shards: int) -> int | None:
    """Every device holds all of it."""
    return None


def largest_dimension(shape: Shape, shards: int) -> int | None:
    """The longest dimension that `shards` divides, the last one on a tie; whole where none is divisible."""
    fitting = [(size, axis) for axis, size in enumerate(shape) if size % shards == 0]
    return max(fitting)[1] if fitting else None


def first_dimension(shape: Shape, shards: int) -> int | None:
    """Rows or inputs; whole where they are not divisible."""
    return None if shape[0] % shards else 0


def last_dimension(shape: Shape, shards: int) -> int | None:
    """Outputs; whole where they are not divisible."""
    return None if shape[-1] % shards else len(shape) - 1


RULES: list[Rule] = [
    (r"(^|/)(step|bad_step|(sums|guard)/.*)$", whole),
    (r"(^|/)(bias|scale|mean|var|count)$", whole),
    (r".*", largest_dimension),
]
"""Over `fsdp`."""

TENSOR_RULES: list[Rule] = [
    (r"(^|/)attention/(query|key|value)/(kernel|bias)$", last_dimension),
    (r"(^|/)attention/output/kernel$", first_dimension),
    (r"(^|/)layers/\d+/(up|gate)/(kernel|bias)$", last_dimension),
    (r"(^|/)layers/\d+/down/kernel$", first_dimension),
    (r"(^|/)token/embedding$", first_dimension),
    (r"(^|/)head/kernel$", last_dimension),
    (r".*", whole),
]
"""Over `tensor`."""


def spec(path: str, shape: Shape, shards: int, min_shard: int, tensor: int = 1) -> PartitionSpec:
    """Where a leaf of the state lives.

    Args:
        path: its keys joined by "/", such as "params/layers/0/kernel".
        shape: its global shape.
        shards: size of the `fsdp` axis.
        min_shard: leaves of fewer elements are not cut over `fsdp`: that costs more messages than it saves memory.
        tensor: size of the `tensor` axis.
    """
    axes: list[str | None] = [None] * len(shape)
    rest = shape
    if tensor > 1 and shape:
        dimension = _place(TENSOR_RULES, path, shape, tensor)
        if dimension is not None:
            axes[dimension] = "tensor"
            rest = (*shape[:dimension], 1, *shape[dimension + 1 :])  # which nothing can cut again
    if shards > 1 and math.prod(shape) >= min_shard:
        dimension = _place(RULES, path, rest, shards)
        if dimension is not None:
            axes[dimension] = "fsdp"
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)


def _place(rules: list[Rule], path: str, shape: Shape, shards: int) -> int | None:
    for pattern, place in rules:
        if re.search(pattern, path):
            return place(shape, shards)
    raise ValueError(f"no rule places {path!r}")


def shardings(mesh: Mesh, tree: Any, min_shard: int) -> Any:
    """NamedShardings for a tree of arrays or ShapeDtypeStructs, of the same structure."""
    shards, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]

    def place(path: Any, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, spec(path_name(path), tuple(leaf.shape), shards, min_shard, tensor))

    return jax.tree_util.tree_map_with_path(place, tree)


def path_name(path: Any) -> str:
    """A key path as text: its keys joined by "/"."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
