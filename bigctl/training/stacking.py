"""Like layers as one: while a model is trained with `model.scan`, each parameter of its layers is one array
[layers, ...], and so are what the optimizer keeps of it and its average.

Everywhere else (checkpoints, weights that are taken over, exports, patterns of `optimizer.freeze`) each layer has names
of its own. Both hold the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bigctl.config import schema
from bigctl.training.state import Tree, Weights

PATTERN = r"(^|/)layers/(?!\d)"
"""Of the paths of stacked parameters: "layers/up/kernel" in place of "layers/0/up/kernel"."""
_LAYERS = "layers"


@dataclass(frozen=True, eq=False)
class Form:
    """A model whose like layers are one.

    Attributes:
        graphdef: its structure.
        hyperparameters: path in it -> the hparam that stands there.
        weights: shapes, dtypes and placements of its weights, as ShapeDtypeStructs.
        count: of the layers.
    """

    graphdef: nnx.GraphDef[nnx.Module]
    hyperparameters: Mapping[tuple[Any, ...], str]
    weights: Weights
    count: int


def stacked(tree: Tree) -> Tree:
    """A tree of parameters, or of what belongs to each of them, with like layers as one."""

    def together(node: Tree) -> Any:
        if not _has_layers(node):
            return node
        layers = [node[_LAYERS][number] for number in range(len(node[_LAYERS]))]
        return {**node, _LAYERS: jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}

    return jax.tree.map(together, tree, is_leaf=_has_layers)


def unstacked(tree: Tree, count: int) -> Tree:
    """`stacked` the other way round; of arrays on the host views."""

    def one_by_one(node: Tree) -> Any:
        if not _has_stack(node):
            return node
        layers = {number: jax.tree.map(lambda leaf, i=number: leaf[i], node[_LAYERS]) for number in range(count)}
        return {**node, _LAYERS: layers}

    return jax.tree.map(one_by_one, tree, is_leaf=_has_stack)


def is_stacked(tree: Tree) -> bool:
    """Whether like layers are one in it."""
    return any(map(_has_stack, jax.tree.leaves(tree, is_leaf=_has_stack)))


def of_one(tree: Tree) -> Tree:
    """What is said of each layer, which is the same of all, said once."""

    def first(node: Tree) -> Any:
        return {**node, _LAYERS: node[_LAYERS][0]} if _has_layers(node) else node

    return jax.tree.map(first, tree, is_leaf=_has_layers)


def layers_of(params: Tree, trained: Callable[[Tree], Tree]) -> int:
    """How many like layers the parameters have; 0 where there are none, or they are not all alike or trained alike."""
    holders = [node for node in jax.tree.leaves(params, is_leaf=_has_layers) if _has_layers(node)]
    marks = [node for node in jax.tree.leaves(trained(params), is_leaf=_has_layers) if _has_layers(node)]
    if len(holders) != 1:
        return 0
    ((shapes, flags),) = ((node[_LAYERS], mark[_LAYERS]) for node, mark in zip(holders, marks, strict=True))
    kinds = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), layer) for layer in shapes.values()]
    alike = all(kind == kinds[0] for kind in kinds) and all(flag == flags[0] for flag in flags.values())
    return len(kinds) if alike else 0


def is_asked(config: schema.Config) -> bool:
    """Whether a training keeps like layers as one: with `model.scan`, and where nothing looks at single layers."""
    train, optimizer = config.train, config.optimizer
    single = train.quantize is not None or train.keep_zeros or train.privacy.on or train.federated.on
    single = single or bool(optimizer.unfreeze) or optimizer.layer_decay != 1
    own = not type(optimizer).__module__.startswith("bigctl.")  # which may know of no stacks
    return bool(getattr(config.model, "scan", False)) and not single and not own


def _is_list(node: Tree) -> bool:
    return isinstance(node, dict) and bool(node) and all(isinstance(key, int) for key in node)


def _has_layers(node: Tree) -> bool:
    return isinstance(node, dict) and _is_list(node.get(_LAYERS))


def _has_stack(node: Tree) -> bool:
    return isinstance(node, dict) and isinstance(node.get(_LAYERS), dict) and not _is_list(node[_LAYERS])
