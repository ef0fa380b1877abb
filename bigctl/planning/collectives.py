"""What devices send each other in a compiled step, by kind, element type and the axes of the mesh.

Bytes are those that each device sends, for the ring algorithms that NCCL and TPUs use (Patarasuk and Yuan 2009): of an
operand of b bytes among n devices all-reduce 2 (n - 1) / n b, reduce-scatter and all-to-all (n - 1) / n b, all-gather
(n - 1) b, a permutation b.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bigctl.planning.hlo import Array, Computation, Instruction, Module

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
Groups = list[list[int]]


@dataclass(frozen=True)
class Collective:
    """Messages of one kind over the same axes.

    Attributes:
        kind: such as "all-gather".
        axes: of the mesh over which it goes, outermost first; empty where the devices of a group are no such set.
        dtype: of what is sent.
        group: devices that take part together.
        first: the first group, by places in the mesh.
        count: how often in a step.
        bytes: that each device sends in a step.
        places: "file:line" -> bytes, of the code it comes from.
    """

    kind: str
    axes: tuple[str, ...]
    dtype: str
    group: int
    first: tuple[int, ...]
    count: float
    bytes: float
    places: Mapping[str, float]


def collectives(module: Module, mesh: Mapping[str, int]) -> list[Collective]:
    """All messages of a program, the largest first; those of one element, such as a loss, among them.

    Args:
        module: the compiled program of each device.
        mesh: sizes of the axes, the outermost first.
    """
    devices = math.prod(mesh.values())
    found: dict[tuple[str, tuple[str, ...], str, int], list[tuple[float, float, str, Groups]]] = {}
    seen: set[str] = set()
    for computation, instruction, times, fused in module.walk():
        kind = _between_slices(instruction) or instruction.opcode.removesuffix("-start")
        channel = instruction.attribute("channel_id") or instruction.name
        if chain := re.search(r'chain_id="(\d+)"', instruction.attributes):
            channel += f" {chain[1]}"
        # A TPU's text has one that runs beside others in the fusion of each of those, with the number of their chain; a
        # channel alone says nothing, as all that a `shard_map` sends has the same.
        if kind not in KINDS or (fused and channel in seen):
            continue
        seen.add(channel)
        groups = _groups(instruction, devices)
        size = len(groups[0])
        if size == 1:
            continue
        if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):  # TPUs fuse the two
            kind = "reduce-scatter"
        promoted = "_promoted" in (instruction.attribute("to_apply") or "")  # a CPU adds 16 bits in 32
        arrays = _operands(computation, instruction)
        dtype = "bf16" if promoted else max(arrays, key=lambda array: array.bytes).dtype
        operand = sum(array.bytes for array in arrays) / (2 if promoted else 1)
        key = (kind, axes_of(groups[0], mesh), dtype, size)
        sent = times * operand * _share(kind, size)
        found.setdefault(key, []).append((times, sent, module.place(instruction), groups))
    summed = [_summed(key, parts) for key, parts in found.items()]
    return sorted(summed, key=lambda each: -each.bytes)


def _summed(
    key: tuple[str, tuple[str, ...], str, int], parts: Sequence[tuple[float, float, str, Groups]]
) -> Collective:
    kind, axes, dtype, size = key
    places: dict[str, float] = {}
    for _, sent, place, _ in parts:
        places[place] = places.get(place, 0.0) + sent
    ordered = dict(sorted(places.items(), key=lambda item: -item[1]))
    count, sent = sum(part[0] for part in parts), sum(part[1] for part in parts)
    return Collective(kind, axes, dtype, size, tuple(parts[0][3][0]), count, sent, ordered)


def _operands(computation: Computation, instruction: Instruction) -> list[Array]:
    found = [array for operand in computation.operands(instruction) for array in operand.arrays]
    return found or list(instruction.arrays)


def _share(kind: str, size: int) -> float:
    """Bytes sent for each byte of the operand."""
    if kind == "all-reduce":
        return 2 * (size - 1) / size
    if kind == "all-gather":
        return size - 1
    if kind in ("collective-permute", "collective-broadcast"):
        return 1
    return (size - 1) / size


def _between_slices(instruction: Instruction) -> str | None:
    """What a TPU sends to other slices, which its text has as messages of hosts: their kind."""
    told = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
    if told is None or instruction.opcode != "send":
        return None
    kind = told[1].lower().replace("_", "-")
    return kind if kind in KINDS else "collective-permute"


def _groups(instruction: Instruction, devices: int) -> Groups:
    if instruction.opcode == "send":  # "{1,2}x{0:15}": slices, and the devices of each
        target = re.search(r'_xla_megascale_target="\{([\d,:]+)\}', instruction.attributes)
        ends = [[int(n) for n in each.split(":")] for each in target[1].split(",")] if target else [[0]]
        slices = sum(each[-1] - each[0] + 1 for each in ends)
        return [[i * (devices // slices) for i in range(slices)]]
    if instruction.opcode.startswith("collective-permute"):
        pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", instruction.attributes)
        told = re.findall(r"\{(\d+),(\d+)", pairs[0]) if pairs else []
        moves = [[int(a), int(b)] for a, b in told if a != b]
        return moves[:1] or [[0]]
    return replica_groups(instruction.attributes, devices)


def replica_groups(attributes: str, devices: int) -> Groups:
    """The groups of devices that take part together, by their places in the mesh, in any of the forms XLA prints.

    These are lists, `{{0,1},{2,3}}`, with `{}` for all; counted ones, `[2,4]<=[4,2]T(1,0)`; and those of a mesh,
    `mesh['axis_0'=4,'axis_1'=2] {'axis_0'}`, in which an axis may be divided, `'axis_0':(2)4`.

    Raises:
        ValueError: for any other form.
    """
    if found := re.search(r"replica_groups=\{(\{[\d,{}]*\})?\}", attributes):
        told = [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", found[1] or "")]
        return told or [list(range(devices))]
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        return _counted(_numbers(found[1]), _numbers(found[2]), _numbers(found[3]))
    if found := re.search(
        r"replica_groups=(?:@?mesh\w*)\[([^\]]*)\](?:,?\s*device_ids=\((.*?\)?)\))?\s*\{([^}]*)\}", attributes
    ):
        return _of_mesh(found[1], found[2], found[3])
    if "replica_groups" not in attributes:
        return [list(range(devices))]
    raise ValueError(f"groups of devices in a form that is not known: {attributes[:200]}")


def _numbers(text: str | None) -> list[int]:
    return [int(n) for n in (text or "").split(",") if n]


def _counted(shape: list[int], counted: list[int], order: list[int]) -> Groups:
    ids = np.arange(math.prod(counted)).reshape(counted)
    ids = ids.transpose(order) if order else ids
    groups: Groups = ids.reshape(shape[0], -1).tolist()
    return groups


def _of_mesh(axes: str, order: str | None, chosen: str) -> Groups:
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    ids = np.arange(math.prod(sizes.values()))
    if order and (counted := re.search(r"\[([\d,]+)\](?:T\(([\d,]+)\))?$", order.strip())):
        shape, turned = _numbers(counted[1]), _numbers(counted[2])
        ids = ids.reshape(shape).transpose(turned).ravel() if turned else ids
    elif order and re.fullmatch(r"[\d, ]+", order):
        ids = np.array(_numbers(order.replace(" ", "")))
    split: list[tuple[str, int, int]] = []  # (axis, elements before it, size) of what is chosen
    for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", chosen):
        split.append((name, int(before or 1), int(size or sizes[name])))
    shape, places = [], {}
    for name, size in sizes.items():
        cuts = {1, size} | {b for n, b, s in split if n == name} | {b * s for n, b, s in split if n == name}
        ordered = sorted(cuts)
        for before, after in zip(ordered, ordered[1:], strict=False):
            places[len(shape)] = (name, before)
            shape.append(after // before)
    inner = [
        axis
        for name, before, size in split
        for axis, (other, start) in places.items()
        if other == name and before <= start < before * size
    ]
    outer = [axis for axis in range(len(shape)) if axis not in inner]
    width = math.prod(shape[axis] for axis in inner)
    groups: Groups = ids.reshape(shape).transpose(outer + inner).reshape(-1, width).tolist()
    return groups


def axes_of(group: Sequence[int], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The axes along which the devices of a group differ."""
    places = np.array(np.unravel_index(np.array(group), tuple(mesh.values())))
    return tuple(name for name, along in zip(mesh, places, strict=True) if len(set(along.tolist())) > 1)
