"""What one compiled step costs on each device: put together from its jaxpr, its text and the compiler's account."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np

from bigctl.planning import collectives as messages
from bigctl.planning import flops, hlo, liveness, roofline
from bigctl.planning.targets import Target

PARAMETERS, OPTIMIZER, OTHER, BATCH = "parameters", "optimizer", "other_state", "batch"
GRADIENTS, ACTIVATIONS, TEMPORARIES = "gradients", "activations", "temporaries"
_SHOWN = 12
Tree = Any
Program = Any
"""A traced or compiled program, or its compiler's account of memory: jax has no names for them that stay."""


@dataclass(frozen=True)
class Holding:
    """One array that a device holds.

    Attributes:
        path: of what is kept between steps its path in the state; of others the operation and the line it comes from.
        part: what it is a part of: "parameters", "optimizer", "activations", ...
        what: type and shape on the device.
        bytes: that it takes there.
    """

    path: str
    part: str
    what: str
    bytes: int


@dataclass(frozen=True)
class Memory:
    """Bytes on each device.

    Attributes:
        parts: by what they are for; their sum is `peak`.
        peak: the most that is taken at once, by the compiler's account: arguments, results that take no argument's
            place, temporaries, and the program itself.
        available: what the device has; None where that is not known.
        largest: the largest arrays.
    """

    parts: Mapping[str, int]
    peak: int
    available: int | None
    largest: Sequence[Holding]

    def to_json(self) -> dict[str, Any]:
        return {
            **{f"{part}_bytes": count for part, count in self.parts.items()},
            "peak_bytes": self.peak,
            "available_bytes": self.available,
            "headroom_bytes": self.headroom,
            "fits": self.fits,
            "largest": [asdict(each) for each in self.largest],
        }

    @property
    def headroom(self) -> int | None:
        return None if self.available is None else self.available - self.peak

    @property
    def fits(self) -> bool:
        return self.available is None or self.peak <= self.available


@dataclass(frozen=True)
class Costs:
    """What a step costs.

    Attributes:
        memory: on each device.
        flops: of all devices together, by what they are.
        flops_per_device: that each device computes, what others compute too among it.
        traffic: bytes that each device reads and writes in its memory.
        collectives: what devices send each other.
        untold: loops of unknown length, counted once.
    """

    memory: Memory
    flops: Mapping[str, float]
    flops_per_device: float
    traffic: float
    collectives: Sequence[messages.Collective]
    untold: int

    @property
    def flops_per_step(self) -> float:
        return sum(self.flops.values())

    def repeated(self, devices: int) -> float:
        """How often each operation is computed, on average; 1 where devices share them all."""
        share = self.flops_per_step / devices
        return max(1.0, self.flops_per_device / share) if share else 1.0

    def time(self, target: Target, precision: str) -> roofline.Time:
        return roofline.time_of_step(target, precision, self.flops_per_device, self.traffic, self.collectives)

    def collectives_json(self) -> list[dict[str, Any]]:
        found = []
        for each in self.collectives:
            told = asdict(each)
            del told["first"], told["places"]
            found.append({**told, "axes": list(each.axes), "from": [place for place in each.places if place][:3]})
        return found


def of_step(
    traced: Program, compiled: Program, state: Mapping[str, Tree], batch: Tree, mesh: Mapping[str, int], target: Target
) -> Costs:
    """The costs of a step.

    Args:
        traced: of `jax.jit(...).trace`.
        compiled: the same, lowered and compiled.
        state: trees of ShapeDtypeStructs with placements, by what they are for: "parameters", "optimizer", ...
        batch: the tree of what each step is given.
        mesh: sizes of its axes, the outermost first.
        target: the machine.
    """
    counted = flops.count(traced.jaxpr, target.chip.platform)
    module = hlo.parse(compiled.as_text())
    devices = math.prod(mesh.values())
    share = counted.total / devices
    found = roofline.computed(module)
    untold = counted.untold
    return Costs(
        memory=memory_of(module, compiled.memory_analysis(), {**state, BATCH: batch}, target.chip.memory or None),
        flops=dict(counted.by),
        flops_per_device=share if found is None or module.loops_untold else max(share, found),
        traffic=roofline.traffic(module),
        collectives=messages.collectives(module, mesh),
        untold=untold,
    )


def memory_of(module: hlo.Module, analysis: Program, kept: Mapping[str, Tree], available: int | None) -> Memory:
    """The memory of a step on each device.

    Args:
        module: the compiled program.
        analysis: what its compiler says, `memory_analysis()`.
        kept: trees of what is there before the step, by what it is for.
        available: bytes that the device has.
    """
    parts = {part: sum(_bytes(leaf) for leaf in jax.tree.leaves(tree)) for part, tree in kept.items()}
    grown = analysis.output_size_in_bytes - analysis.alias_size_in_bytes + analysis.generated_code_size_in_bytes
    temporary = analysis.temp_size_in_bytes
    peak = analysis.argument_size_in_bytes + grown + temporary
    held = liveness.fullest(module)
    shapes = {}
    for path, leaf in _leaves(kept.get(PARAMETERS, {})):
        for shape in (leaf.shape, _shard(leaf)):
            shapes[liveness.shape_key(f"x[{','.join(map(str, shape))}]")] = path
    activations, gradients = liveness.split(held, shapes)
    scale = min(1.0, temporary / max(1, activations + gradients))
    parts[GRADIENTS], parts[ACTIVATIONS] = int(gradients * scale), int(activations * scale)
    parts[TEMPORARIES] = peak - sum(parts.values())
    return Memory(parts, peak, available, _largest(kept, held, shapes))


def _largest(kept: Mapping[str, Any], held: Sequence[liveness.Held], shapes: Mapping[str, str]) -> Sequence[Holding]:
    found = []
    for part, tree in kept.items():
        for path, leaf in _leaves(tree):
            what = f"{np.dtype(leaf.dtype).name}[{','.join(map(str, _shard(leaf)))}]"
            found.append(Holding(path, part, what, _bytes(leaf)))
    alike: dict[tuple[str, str, str], list[liveness.Held]] = {}
    for each in held:
        part = ACTIVATIONS if each.forward else TEMPORARIES
        if each.backward and liveness.shape_key(each.what) in shapes:
            part = GRADIENTS
        path = " ".join(filter(None, (each.made_by, each.place)))
        alike.setdefault((path, part, each.what), []).append(each)
    for (path, part, what), group in alike.items():
        times = f" x {len(group)}" if len(group) > 1 else ""
        found.append(Holding(path, part, what + times, sum(each.bytes for each in group)))
    return sorted(found, key=lambda each: -each.bytes)[:_SHOWN]


def _leaves(tree: Tree) -> list[tuple[str, Any]]:
    named = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [
        ("/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path), leaf)
        for path, leaf in named
    ]


def _shard(leaf: Tree) -> tuple[int, ...]:
    sharding = getattr(leaf, "sharding", None)
    return tuple(sharding.shard_shape(leaf.shape)) if sharding is not None else tuple(leaf.shape)


def _bytes(leaf: Tree) -> int:
    return math.prod(_shard(leaf)) * np.dtype(leaf.dtype).itemsize
