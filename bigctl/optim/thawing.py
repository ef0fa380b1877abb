"""Gradual unfreezing (Howard & Ruder 2018, ULMFiT, section 3.3): the head is trained from the start, groups of layers
below it join from the top down.

A group that is not open yet is left as it is, decay included, has no share in the gradient's norm, and its optimizer
state begins when it opens. Which groups are open is a function of the step alone: a resumed run needs no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from bigctl.config import schema
from bigctl.optim.masks import Path, layers_of
from bigctl.parallel.partition import path_name

if TYPE_CHECKING:
    from bigctl.config.schema.optimizers import Scalar

Groups = Mapping[str, int]
"""By the path of each trained parameter: 0 of what is above all layers, 1 of the topmost group of layers, and so on."""


@dataclass(frozen=True)
class Thaw:
    """Which parameters a step trains.

    Attributes:
        groups: of all trained parameters.
        opened: whether each group is trained, bool [groups].
    """

    groups: Groups
    opened: jax.Array


def groups_of(trained: PyTree[bool], levels: Sequence[str], count: int) -> Groups:
    """The layers that are trained, divided into `count` groups as evenly as can be, from the top; the upper are larger.

    Args:
        trained: a tree of all parameters, see `masks.trained`; what is frozen for good is in no group.
        levels: the model's patterns of layers, see `schema.Model.levels`.
        count: of groups, besides what is above all layers. Where there are fewer layers the last groups are empty.
    """
    layers = layers_of(trained, levels)
    parts = np.array_split(np.arange(1, max(layers.values(), default=0) + 1), count)
    group = {0: 0} | {int(layer): number for number, part in enumerate(parts, 1) for layer in part}
    return {name: group[layer] for name, layer in layers.items()}


def times(config: schema.Config, total_steps: int) -> list[int]:
    """The step, counted from 0, from which on each group of layers is trained."""
    horizon = config.schedule.horizon or total_steps
    return [round(at * horizon if at < 1 else at) for at in config.optimizer.unfreeze]


def thaw(config: schema.Config, trained: PyTree[bool], step: Scalar, total_steps: int) -> Thaw | None:
    """What is trained in the update number `step`; None where nothing waits."""
    if not config.optimizer.unfreeze:
        return None
    begins = jnp.array([0, *times(config, total_steps)])
    return Thaw(groups_of(trained, config.model.levels, len(begins) - 1), jnp.asarray(step) >= begins)


def gated(params: PyTree, state: Thaw | None) -> PyTree:
    """The same parameters, of which those that wait get a gradient of zeros."""
    if state is None:
        return params

    def one(path: Path, leaf: jax.Array) -> jax.Array:
        group = state.groups.get(path_name(path), 0)
        return jnp.where(state.opened[group], leaf, jax.lax.stop_gradient(leaf)) if group else leaf

    return jax.tree_util.tree_map_with_path(one, params)


def closed(updates: PyTree, state: Thaw | None) -> PyTree:
    """The same updates, or gradients, with zeros for those that wait."""
    if state is None:
        return updates

    def one(path: Path, leaf: jax.Array) -> jax.Array:
        group = state.groups.get(path_name(path), 0)
        return jnp.where(state.opened[group], leaf, 0) if group else leaf

    return jax.tree_util.tree_map_with_path(one, updates)


def by_groups(rule: optax.GradientTransformation, state: Thaw) -> optax.GradientTransformation:
    """The rule for each group by itself, whose state waits with it: moments and counts begin when the group opens."""
    count = len(state.opened)

    def own(group: int) -> optax.GradientTransformation:
        def mask(tree: PyTree) -> PyTree[bool]:
            found = jax.tree_util.tree_map_with_path(lambda path, _: state.groups.get(path_name(path)) == group, tree)
            return found

        return optax.masked(rule, mask)

    def init(params: PyTree) -> tuple[optax.OptState, ...]:
        return tuple(own(group).init(params) for group in range(count))

    def update(
        updates: PyTree, states: tuple[optax.OptState, ...], params: PyTree | None = None
    ) -> tuple[PyTree, tuple[optax.OptState, ...]]:
        after = []
        for group, before in enumerate(states):
            updates, new = own(group).update(updates, before, params)
            now = state.opened[group]
            after.append(jax.tree.map(lambda n, b, now=now: jnp.where(now, n, b), new, before) if group else new)

        return closed(updates, state), tuple(after)

    return optax.GradientTransformation(init, update)


def told(config: schema.Config, trained: PyTree[bool], total_steps: int) -> list[str]:
    """What is trained from when on, a line for each group of layers."""
    if not config.optimizer.unfreeze:
        return []
    begins = times(config, total_steps)
    groups = groups_of(trained, config.model.levels, len(begins))
    lines = ["optimizer.unfreeze: what is above all layers is trained from the start"]
    for group, begin in enumerate(begins, 1):
        names = sorted({_layer(name) for name, own in groups.items() if own == group}, key=_by_number)
        lines.append(f"optimizer.unfreeze: from step {begin:,} on {', '.join(names)}")
    return lines


def _layer(path: str) -> str:
    """A parameter's path up to the number of its layer, or to its first part."""
    parts = path.split("/")
    end = next((place for place, part in enumerate(parts) if part.isdigit()), 0 if len(parts) < 3 else 1)
    return "/".join(parts[: end + 1])


def _by_number(name: str) -> tuple[str, int]:
    head, _, tail = name.rpartition("/")
    return (head, int(tail)) if tail.isdigit() else (name, -1)
