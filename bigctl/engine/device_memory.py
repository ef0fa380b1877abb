"""Whether what an experiment is made of fits the memory there is: asked of shapes before anything is allocated, and of
compiled programs before they run. Steps of training are in `step_memory`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from bigctl import memory
from bigctl.errors import ConfigError
from bigctl.formatting import size
from bigctl.parallel import mesh as meshes

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from bigctl.config.schema import Config
    from bigctl.planning.costs import Holding
    from bigctl.training.calls import Check
    from bigctl.training.compiled import Executable
    from bigctl.training.programs import ModelPrograms, Programs
    from bigctl.training.state import Tree
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


# ---------------------------------------------------------------------------------------------------- compiled programs

_NAMED = 4


@dataclass(frozen=True)
class Room:
    """Memory of a device.

    Attributes:
        limit: bytes that it has; of simulated devices each has its share of the machine.
        taken: by what is there and no argument of the step.
        sharing: devices of this process that share it.
    """

    limit: int
    taken: int = 0
    sharing: int = 1

    @property
    def free(self) -> int:
        """Bytes that a step may take, its arguments among them."""
        return self.limit - self.taken


def room(mesh: Mesh, arguments: int | None = None) -> Room:
    """The memory of the fullest device of this process.

    Args:
        mesh: the devices.
        arguments: bytes of the step's arguments, where these are on the device by now.
    """
    local = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    stats = [device.memory_stats() or {} for device in local if device.platform != "cpu"]
    told = [(int(each["bytes_limit"]), int(each.get("bytes_in_use", 0))) for each in stats if "bytes_limit" in each]
    if not told:
        sharing = max(1, len(local))
        return Room(memory.limit() // sharing, sharing=sharing)
    limit, used = min(told, key=lambda each: each[0] - each[1])
    return Room(limit, max(0, used - (arguments or 0)))


def peak(compiled: Executable) -> int:
    """Bytes that a step takes on a device, by the compiler's account."""
    analysis = compiled.memory_analysis()
    grown = analysis.output_size_in_bytes - analysis.alias_size_in_bytes + analysis.generated_code_size_in_bytes
    return int(analysis.argument_size_in_bytes + grown + analysis.temp_size_in_bytes)


def check_of_evaluation(programs: ModelPrograms) -> Check:
    """What refuses a compiled evaluation that the devices have no memory for, see `require`."""
    said = "a batch of an evaluation", "eval.batch_size", "a smaller eval.batch_size takes less"
    return partial(require, programs.mesh, programs.weights, said)


def check_of_pack(programs: Programs, width: int) -> Check:
    """The same of steps of so many trials side by side."""
    states = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((width, *leaf.shape), leaf.dtype, sharding=meshes.replicated(programs.mesh)),
        programs.carried_state,
    )
    said = f"a step of {width} trials side by side", "packed trials", "train them one by one, or by smaller batches"
    return partial(require, programs.mesh, states, said)


def require(mesh: Mesh, kept: Tree, said: tuple[str, str, str], compiled: Executable) -> None:
    """Refuse a compiled program that the devices have no memory for.

    Args:
        mesh: the devices.
        kept: a tree of what is there before it runs, besides data.
        said: what it is, its key, and what would take less.
        compiled: the program, whose arguments are on the devices by now.

    Raises:
        ConfigError: naming the largest arrays.
    """
    from bigctl.planning import costs, hlo

    analysis = compiled.memory_analysis()
    if analysis is None:
        return
    found, needed, (what, where, hint) = room(mesh, int(analysis.argument_size_in_bytes)), peak(compiled), said
    if needed > found.free:
        told = costs.memory_of(hlo.parse(compiled.as_text()), analysis, {costs.PARAMETERS: kept}, found.free)
        raise ConfigError(too_large(what, needed, found, told.largest), where=where, hint=hint)


def too_large(what: str, needed: int, found: Room, largest: Sequence[Holding]) -> str:
    """What is said of a program that takes more bytes on a device than are free."""
    names = ", ".join(f"{each.path} ({each.part}, {size(each.bytes)})" for each in largest[:_NAMED])
    return f"{what} takes {size(needed)} on each device, which has {size(max(0, found.free))}; largest: {names}"
