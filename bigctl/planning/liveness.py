"""Which arrays of a compiled step are held at the moment that takes most memory.

The text of a compiled program is in the order in which it runs, so what each instruction makes is held from there to
where it is used last. What XLA shares further (an element-wise result in the place of its operand) is followed where
the sizes are equal; the compiler's own number, `memory_analysis()`, stays the one that counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bigctl.planning.hlo import Computation, Instruction, Module

_VIEWS = {
    "get-tuple-element", "tuple", "bitcast", "while", "optimization-barrier", "opt-barrier", "dynamic-update-slice",
    "scatter", "all-reduce", "copy-done", "all-gather-done", "all-reduce-done", "collective-permute-done", "async-done",
    "async-update",
}  # fmt: skip
"""What has its result in the place of its operands."""
_NOTHING = {"parameter", "constant", "iota", "partition-id", "after-all"}
_LEAST = 1024
"""Bytes of the smallest array that is followed."""


@dataclass(frozen=True)
class Held:
    """An array that is held when memory is fullest.

    Attributes:
        what: its type and shape on one device.
        bytes: that it takes.
        made_by: the operation, as jax tells it.
        place: "file:line" of the code it comes from.
        backward: whether a gradient is what made it; `forward` whether it was made on the way to the loss.
    """

    what: str
    bytes: int
    made_by: str
    place: str
    forward: bool
    backward: bool


def fullest(module: Module) -> list[Held]:
    """What is held beside arguments and results when most is, the largest first."""
    _, held = _peak(module, module.entry, {})
    return sorted((_held(module, each) for each in held), key=lambda each: -each.bytes)


def _held(module: Module, made: Instruction) -> Held:
    origin = module.origin(made)
    name = origin.op_name
    backward = "transpose(" in name
    forward = not backward and ("jvp(" in name or "rematted" in name)
    largest = max(made.arrays, key=lambda array: array.bytes)
    what = str(largest) + (" and others" if made.bytes > 1.2 * largest.bytes else "")
    return Held(what, made.bytes, _short(name) or made.opcode, module.place(origin), forward, backward)


def _short(op_name: str) -> str:
    """The end of where an operation comes from: modules and the primitive, without the transformations."""
    parts = [part for part in op_name.split("/") if "(" not in part and part not in ("while", "body", "closed_call")]
    return "/".join(parts[-3:]).rstrip(")")


def _peak(
    module: Module, computation: Computation, seen: dict[str, tuple[int, list[Instruction]]]
) -> tuple[int, list[Instruction]]:
    """Bytes at the fullest moment of a computation, and what made them."""
    order = list(computation.instructions.values())
    sources = _sources(computation, order)
    root = computation.root
    elsewhere = set()  # results, which have a place of their own or that of an argument
    if computation is module.entry:
        outs = [sources.get(name, {name}) for name in root.operands] if root.opcode == "tuple" else [{root.name}]
        elsewhere = {name for names in outs for name in names}
    last: dict[str, int] = {}
    for number, instruction in enumerate(order):
        for operand in instruction.operands:
            for name in sources.get(operand, ()):
                last[name] = number
    for name in sources.get(root.name, ()):
        last[name] = len(order)
    most, at_most = 0, list[Instruction]()
    held: dict[str, Instruction] = {}
    total = 0
    for number, instruction in enumerate(order):
        inner, inside = _inside(module, instruction, seen)
        own = instruction.opcode not in _VIEWS | _NOTHING and instruction.name not in elsewhere
        ending = [name for name in held if last.get(name, number) <= number]
        if own and instruction.bytes >= _LEAST:
            reused = _reused(instruction, [held[name] for name in ending if name in instruction.operands])
            if reused is not None:
                total -= held.pop(reused).bytes
            held[instruction.name] = instruction
            total += instruction.bytes
        if total + inner > most:
            most, at_most = total + inner, [*held.values(), *inside]
        for name in [name for name in held if last.get(name, number) <= number]:
            total -= held.pop(name).bytes
    return most, at_most


def _sources(computation: Computation, order: list[Instruction]) -> dict[str, set[str]]:
    """For each instruction, those whose buffers its result is in."""
    found: dict[str, set[str]] = {}
    for instruction in order:
        if instruction.opcode in _VIEWS:
            first = (
                instruction.operands[:1] if instruction.opcode in ("dynamic-update-slice",) else instruction.operands
            )
            if instruction.opcode == "get-tuple-element":
                first = _element(computation, instruction)
            found[instruction.name] = {name for each in first for name in found.get(each, ())}
        else:
            found[instruction.name] = {instruction.name}
    return found


def _element(computation: Computation, instruction: Instruction) -> tuple[str, ...]:
    """The operand of a tuple that an element of it is; the tuple itself where it is made otherwise."""
    made = computation.instructions.get(instruction.operands[0]) if instruction.operands else None
    index = instruction.attribute("index")
    while made is not None and made.opcode in ("while", "opt-barrier", "optimization-barrier") and made.operands:
        made = computation.instructions.get(made.operands[0])
    if made is not None and made.opcode == "tuple" and index is not None and int(index) < len(made.operands):
        return (made.operands[int(index)],)
    return instruction.operands


def _inside(
    module: Module, instruction: Instruction, seen: dict[str, tuple[int, list[Instruction]]]
) -> tuple[int, list[Instruction]]:
    """What the computations that an instruction runs hold besides."""
    if instruction.opcode not in ("while", "conditional", "call", "async-start"):
        return 0, []
    best: tuple[int, list[Instruction]] = (0, [])
    for name in instruction.called:
        if name not in module.computations:
            continue
        if name not in seen:
            seen[name] = _peak(module, module.computations[name], seen)
        best = max(best, seen[name], key=lambda each: each[0])
    return best


def _reused(instruction: Instruction, ending: list[Instruction]) -> str | None:
    """Of the operands that end here, one whose place the result of a fusion can take."""
    if instruction.opcode not in ("fusion", "add", "multiply", "subtract", "select", "convert"):
        return None
    return next((each.name for each in ending if each.bytes == instruction.bytes), None)


def split(held: list[Held], gradient_shapes: Mapping[str, str]) -> tuple[int, int]:
    """Of what is held: bytes of activations, made on the way to the loss; and of gradients of parameters.

    Args:
        held: see `fullest`.
        gradient_shapes: shapes of parameters on one device or whole, sorted, as text -> the parameter.
    """
    activations = sum(each.bytes for each in held if each.forward)
    gradients = sum(each.bytes for each in held if each.backward and shape_key(each.what) in gradient_shapes)
    return activations, gradients


def shape_key(what: str) -> str:
    """The shape in "f32[2,3]", sorted, as layouts differ; dimensions of 1 left out."""
    inner = what.partition("[")[2].partition("]")[0]
    return ",".join(map(str, sorted(int(n) for n in inner.split(",") if n and n != "1")))
