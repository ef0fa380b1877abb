"""Whether what an experiment is made of fits the memory there is: asked of shapes, before anything is allocated."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from bigctl import memory
from bigctl.errors import ConfigError
from bigctl.formatting import size

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from bigctl.config.schema import Config
    from bigctl.training.programs import Programs
    from bigctl.training.task import Task

_INDEX = 64
"""Bytes that the host takes to know which example is which in a batch, for each of them."""


def bytes_per_device(tree: Any) -> int:
    """Of the arrays of a tree with placements, abstract ones too."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )


def require_batches(config: Config, task: Task) -> None:
    """Refuse batches that the host has no memory for. Raises ConfigError."""
    example = sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in task.example_shapes(1).values()) + _INDEX
    room = memory.limit()
    for name, count in (("train.batch_size", config.train.batch_size), ("eval.batch_size", config.eval.batch_size)):
        if count is not None and count * example > room:
            taken = f"a batch of {count:,} examples takes {size(count * example)}"
            message = f"{taken}; this machine has {size(room)} of memory"
            raise ConfigError(message, where=name, hint="choose a smaller batch")


def require_state(programs: Programs) -> None:
    """Refuse a model that cannot be trained by any means: whose state and gradients are larger than the memory.

    Raises:
        ConfigError: saying how much it would take.
    """
    state = programs.abstract_state
    room, devices = _room(programs.mesh)
    needed = devices * (bytes_per_device(state) + bytes_per_device(state.params))
    if needed > room:
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
        raise ConfigError(
            f"{count:,} parameters take {size(needed)} with optimizer and gradients; there are {size(room)} of memory",
            where="model",
            hint="make the model smaller, or share it out over more devices: mesh.fsdp",
        )


def free_per_device(mesh: Mesh) -> int:
    """Bytes that are free on the fullest device of this process; simulated ones share what the machine has."""
    local = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    stats = [device.memory_stats() or {} for device in local if device.platform != "cpu"]
    if stats and all("bytes_limit" in each for each in stats):
        return min(int(each["bytes_limit"]) - int(each.get("bytes_in_use", 0)) for each in stats)
    return memory.available() // max(1, len(local))


def _room(mesh: Mesh) -> tuple[int, int]:
    """Bytes of memory, and how many devices of the mesh have them together: of a GPU it is its own."""
    local = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    stats = (local[0].memory_stats() or {}) if local and local[0].platform != "cpu" else {}
    if limit := stats.get("bytes_limit"):
        return int(limit), 1
    return memory.limit(), max(1, len(local))
