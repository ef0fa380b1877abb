"""Compiled programs as text (XLA's HLO), read into computations and instructions.

Backends print the same grammar: `%name = type opcode(%operands), attributes`, computations in braces. What is read here
is what the other modules of this package ask for: shapes, operands, what is called, how often a loop runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

WIDTHS = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "s64": 8, "u64": 8,
    "f16": 2, "bf16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16, "f8e4m3fn": 1, "f8e5m2": 1, "f8e4m3": 1,
}  # fmt: skip
"""Bytes of an element by the name of its type; tokens and other things without a size are not here."""
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_ASSIGNED = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"\b(?:calls|body|condition|to_apply|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_NAME = re.compile(r"%([\w.\-]+)")


@dataclass(frozen=True)
class Array:
    """One array of a type: the name of its elements' type, and its dimensions."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return math.ceil(self.elements * WIDTHS.get(self.dtype, 0))

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True, eq=False)
class Instruction:
    """One line of a computation.

    Attributes:
        name, opcode: as printed.
        arrays: of its result, those of a tuple one after the other.
        is_tuple: whether the result is a tuple.
        operands: names of instructions of the same computation.
        attributes: the text after the operands.
        is_root: whether it is the computation's result.
        text: what stands between the parentheses.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    is_tuple: bool
    operands: tuple[str, ...]
    attributes: str
    is_root: bool
    text: str

    @property
    def bytes(self) -> int:
        return sum(array.bytes for array in self.arrays)

    @cached_property
    def called(self) -> tuple[str, ...]:
        """Computations that it runs; a reduction's `to_apply` too."""
        found = _CALLED.findall(self.attributes)
        return tuple(name.strip(" %") for group in found for name in group.strip("{}").split(","))

    def attribute(self, name: str) -> str | None:
        """The value of `name=value` or `name={value}` as text, without the braces."""
        found = re.search(rf"\b{name}=(?:\{{([^}}]*)\}}|([^,\s]+))", self.attributes)
        return None if found is None else (found[1] if found[1] is not None else found[2])

    @cached_property
    def op_name(self) -> str:
        """Where it comes from, as jax tells: the transformations and the primitive."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


@dataclass(eq=False)
class Computation:
    """Instructions in the order in which they run, by name."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)

    @property
    def root(self) -> Instruction:
        return next((each for each in self.instructions.values() if each.is_root), [*self.instructions.values()][-1])

    def operands(self, instruction: Instruction) -> list[Instruction]:
        return [self.instructions[name] for name in instruction.operands if name in self.instructions]


@dataclass(frozen=True, eq=False)
class Module:
    """A compiled program: of one device, the same for all of them.

    Attributes:
        header: the first line.
        computations: by name.
        entry: the one that is run.
        places: for each stack frame, by its number, "file:line" of the user's code; empty if not told.
    """

    header: str
    computations: dict[str, Computation]
    entry: Computation
    places: dict[str, str]

    def walk(self) -> Iterator[tuple[Computation, Instruction, float, bool]]:
        """All instructions with how often each runs, and whether that is inside a fusion."""
        yield from self._walked(self.entry, 1.0, False)

    def _walked(
        self, computation: Computation, times: float, fused: bool
    ) -> Iterator[tuple[Computation, Instruction, float, bool]]:
        for instruction in computation.instructions.values():
            yield computation, instruction, times, fused
            if instruction.opcode in _APPLIED:
                continue
            loops = (self.trips(instruction) or 1) if instruction.opcode == "while" else 1
            for name in instruction.called:
                if name in self.computations:
                    inside = fused or instruction.opcode == "fusion"
                    yield from self._walked(self.computations[name], times * loops, inside)

    def trips(self, loop: Instruction) -> int | None:
        """How often the body of a `while` runs; None where the text does not tell."""
        told = _TRIPS.search(loop.attributes)
        if told:
            return int(told[1])
        condition = self._named(loop, "condition")
        limits = [
            int(each.text)
            for each in (condition.instructions.values() if condition else ())
            if each.opcode == "constant" and each.arrays[0].shape == () and each.text.isdigit()
        ]
        return -(-limits[0] // self._step(loop)) if len(limits) == 1 and limits[0] > 0 else None

    def _named(self, loop: Instruction, attribute: str) -> Computation | None:
        return self.computations.get((loop.attribute(attribute) or "").lstrip("%"))

    def _step(self, loop: Instruction) -> int:
        """What a loop adds to its counter: products of a TPU that gather weights meanwhile take two parts a round."""
        condition, body = self._named(loop, "condition"), self._named(loop, "body")
        if condition is None or body is None:
            return 1
        for value in condition.operands(condition.root):
            place = value.attribute("index") if value.opcode == "get-tuple-element" else None
            if place is None or int(place) >= len(body.root.operands):
                continue
            counted = body.instructions.get(body.root.operands[int(place)])
            added = body.operands(counted) if counted is not None and counted.opcode == "add" else []
            steps = [int(each.text) for each in added if each.opcode == "constant" and each.text.isdigit()]
            return max(steps, default=1) or 1
        return 1

    @property
    def loops_untold(self) -> list[str]:
        """Loops whose length the text does not tell, and which are counted once."""
        loops = (each for computation in self.computations.values() for each in computation.instructions.values())
        return [each.name for each in loops if each.opcode == "while" and self.trips(each) is None]

    def origin(self, instruction: Instruction) -> Instruction:
        """The instruction itself where jax's names are on it; of a fusion without, the last part that has one."""
        if instruction.op_name or instruction.opcode != "fusion":
            return instruction
        parts = [each for name in instruction.called for each in self.computations[name].instructions.values()]
        return next((each for each in reversed(parts) if each.op_name), instruction)

    def place(self, instruction: Instruction) -> str:
        """ "file:line" of the code that an instruction comes from; empty if not told."""
        frame = instruction.attribute("stack_frame_id") or re.search(r"stack_frame_id=(\d+)", instruction.attributes)
        if frame is not None:
            number = frame if isinstance(frame, str) else frame[1]
            return self.places.get(number.rstrip("}"), "")
        found = re.search(r'source_file="([^"]*)" source_line=(\d+)', instruction.attributes)
        return f"{found[1].rsplit('/', 1)[-1]}:{found[2]}" if found else ""


_APPLIED = {
    "all-reduce", "all-reduce-start", "reduce-scatter", "reduce", "reduce-window", "scatter", "sort", "map",
    "select-and-scatter",
}  # fmt: skip
"""What calls a computation on scalars, an element at a time, of which nothing is to be counted."""


def parse(text: str) -> Module:
    """Read a compiled program.

    Raises:
        ValueError: where it has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry: Computation | None = None
    current: Computation | None = None
    lines = text.splitlines()
    for line in lines:
        if current is None:
            header = _HEADER.match(line)
            if header and " -> " in line:
                current = computations[header[2]] = Computation(header[2])
                entry = current if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif (instruction := _instruction(line)) is not None:
            current.instructions[instruction.name] = instruction
    if entry is None:
        raise ValueError("a program without an entry computation")
    return Module(lines[0], computations, entry, _places(lines))


def _instruction(line: str) -> Instruction | None:
    line = re.sub(r"/\*.*?\*/", "", line)
    found = _ASSIGNED.match(line)
    if found is None:
        return None
    rest = line[found.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    start = rest.find("(")
    if start < 0:
        return None
    stop = _closing(rest, start)
    inside = rest[start + 1 : stop]
    arrays = tuple(
        Array(dtype, tuple(int(n) for n in shape.split(",") if n)) for dtype, shape in _ARRAY.findall(_unlaid(kind))
    )
    return Instruction(
        name=found[2],
        opcode=rest[:start],
        arrays=arrays,
        is_tuple=kind.startswith("("),
        operands=tuple(_NAME.findall(inside)),
        attributes=rest[stop + 1 :],
        is_root=bool(found[1]),
        text=inside.strip(),
    )


def _unlaid(kind: str) -> str:
    """A type without its layouts."""
    return re.sub(r"\{[^{}]*\}", "", kind)


def _closing(text: str, start: int) -> int:
    """Where the parenthesis closes that opens at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    return len(text) - 1


def _places(lines: list[str]) -> dict[str, str]:
    """From the tables at the head of the text: the innermost place of each stack frame."""
    tables: dict[str, dict[str, str]] = {}
    current: dict[str, str] | None = None
    for line in lines[1:]:
        if line in ("FileNames", "FileLocations", "StackFrames", "FunctionNames"):
            current = tables.setdefault(line, {})
        elif not line.strip():
            current = None
        elif current is not None:
            number, _, value = line.partition(" ")
            current[number] = value
        elif line.startswith(("%", "ENTRY")):
            break
    files = {number: name.strip('"') for number, name in tables.get("FileNames", {}).items()}
    located = {}
    for number, value in tables.get("FileLocations", {}).items():
        file, number_of_line = re.search(r"file_name_id=(\d+)", value), re.search(r"\bline=(\d+)", value)
        if file and number_of_line:
            located[number] = f"{'/'.join(files.get(file[1], '?').split('/')[-2:])}:{number_of_line[1]}"
    found = {}
    for number, value in tables.get("StackFrames", {}).items():
        location = re.search(r"file_location_id=(\d+)", value)
        found[number] = located.get(location[1], "") if location else ""
    return found
