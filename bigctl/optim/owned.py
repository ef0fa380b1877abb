"""Rules that need a matrix as a whole, on a mesh: each matrix goes to one device, which computes it alone.

Matrices of one shape that lie on the mesh alike are stacked; the stack is cut into whole matrices, an all-to-all where
the mesh cuts the matrices themselves, and so are the results back (Liu et al. 2025, arXiv 2502.16982, distribute Muon
so). No device repeats what another does, except that a stack is filled with zeros until it can be shared out evenly,
and that slices, which are far from each other, all compute all of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, PyTree

from bigctl.parallel import mesh as meshes
from bigctl.parallel.axes import FAR
from bigctl.parallel.partition import Rules, path_name

Rule = Callable[[Float[Array, "inputs outputs"]], Float[Array, "inputs outputs"]]
Placed = tuple[str | None, ...]
"""The axis of the mesh that cuts each dimension."""


@dataclass(frozen=True)
class _Leaf:
    """A parameter as matrices [count, rows, columns], wide or square, and how those lie on the mesh."""

    place: int
    matrices: Array
    shape: tuple[int, ...]
    placed: Placed
    turned: bool

    def put_back(self, matrices: Array) -> Array:
        return (matrices.swapaxes(1, 2) if self.turned else matrices).reshape(self.shape)


def applied(tree: PyTree[Array], rule: Rule, rules: Rules) -> PyTree[Array]:
    """The rule applied to every matrix of a tree of parameters' updates.

    Args:
        tree: leaves [inputs, outputs], [..., inputs, outputs] that are taken for one matrix, or, where `rules.stacked`
            names them, several of those one after the other.
        rule: of one matrix, wide or square; of its transpose it gives the transpose.
        rules: where the parameters live; on the mesh that the program is traced for.
    """
    named, structure = jax.tree_util.tree_flatten_with_path(tree)
    leaves = [_leaf(number, path_name(path), leaf, rules) for number, (path, leaf) in enumerate(named)]
    found: list[Array | None] = [None] * len(leaves)
    for _, group in itertools.groupby(sorted(leaves, key=_kind), key=_kind):
        for leaf, result in _of_group(list(group), rule, rules):
            found[leaf.place] = leaf.put_back(result)
    return jax.tree.unflatten(structure, found)


def _leaf(number: int, path: str, leaf: Array, rules: Rules) -> _Leaf:
    leading = rules.leading(path)
    spec = rules.spec(path, leaf.shape)
    placed = (*spec, *(None,) * (leaf.ndim - len(spec)))
    matrices = leaf.reshape(math.prod(leaf.shape[:leading]), -1, leaf.shape[-1])
    whole = leaf.ndim - leading == 2  # else a kernel's dimensions are one, which no axis may cut
    rows, columns = placed[-2:] if whole else (None, placed[-1])
    high = matrices.shape[1] - matrices.shape[2]
    turned = high > 0 or (high == 0 and (rows or "") > (columns or ""))  # so that more of them are alike
    if turned:
        matrices, rows, columns = matrices.swapaxes(1, 2), columns, rows
    return _Leaf(number, matrices, leaf.shape, (rows, columns), turned)


def _kind(leaf: _Leaf) -> tuple[tuple[int, ...], tuple[str, ...]]:
    return leaf.matrices.shape[1:], tuple(axis or "" for axis in leaf.placed)


def _of_group(leaves: list[_Leaf], rule: Rule, rules: Rules) -> Iterator[tuple[_Leaf, Array]]:
    """Of matrices of one shape, in the same place, each leaf's results."""
    devices = math.prod(size for name, size in rules.sizes.items() if name != FAR)
    counts = [len(leaf.matrices) for leaf in leaves]
    together = jnp.concatenate([leaf.matrices for leaf in leaves])
    together = jnp.pad(together, ((0, -sum(counts) % devices), (0, 0), (0, 0)))
    ways = _ways(leaves[0].placed, rules)
    for way in ways:
        together = jax.lax.with_sharding_constraint(together, way)

    def alone(part: Float[Array, "few inputs outputs"]) -> Float[Array, "few inputs outputs"]:
        return jnp.stack([rule(matrix) for matrix in part])  # no batch: see `muon`

    results = jax.shard_map(alone, mesh=meshes.mesh_in_use(), in_specs=ways[-1], out_specs=ways[-1])(together)
    for way in reversed(ways):
        results = jax.lax.with_sharding_constraint(results, way)
    for leaf, start, count in zip(leaves, itertools.accumulate(counts, initial=0), counts, strict=False):
        yield leaf, results[start : start + count]


def _ways(placed: Placed, rules: Rules) -> list[PartitionSpec]:
    """Placements of a stack on its way from cut matrices to whole ones, one axis after the other: XLA knows such a step
    as an all-to-all, and might gather everything for several at once."""
    rows, columns = placed
    cutting = [axis for axis in (columns, rows) if axis is not None]
    ways = [PartitionSpec(None, rows, columns)]
    for number in range(1, len(cutting) + 1):
        left = [None if axis in cutting[:number] else axis for axis in (rows, columns)]
        ways.append(PartitionSpec(tuple(cutting[:number]), *left))
    others = [name for name, size in rules.sizes.items() if size > 1 and name not in (*cutting, FAR)]
    if others:
        ways.append(PartitionSpec((*cutting, *others)))
    return ways
