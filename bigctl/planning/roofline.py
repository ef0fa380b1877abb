"""How long a step takes at least and at most, by roofline (Williams et al. 2009), and which term binds.

Three terms: products of matrices at the device's rate, bytes read and written in its memory, and bytes sent. The low
end has them overlap entirely, at rates that good kernels reach; the high end has them one after the other, at rates
that ordinary ones reach. No end knows launches, hosts or input.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from bigctl.planning.collectives import Collective
from bigctl.planning.hlo import Computation, Instruction, Module
from bigctl.planning.targets import Target

COMPUTE, MEMORY, NETWORK = "compute", "memory", "network"
BEST = {COMPUTE: 0.85, MEMORY: 0.9, NETWORK: 0.9}
"""Shares of a peak that the low end takes for reached."""
ORDINARY = {COMPUTE: 0.45, MEMORY: 0.6, NETWORK: 0.6}
"""Shares of a peak that the high end takes for reached."""
LATENCY = {"gpu": 10e-6, "tpu": 2e-6, "cpu": 50e-6}
"""Seconds that a message takes beside its bytes."""


@dataclass(frozen=True)
class Time:
    """A range of the time of a step.

    Attributes:
        low, high: seconds.
        terms: seconds of each term at the peak: "compute", "memory", "network".
        binds: the largest of them.
    """

    low: float
    high: float
    terms: dict[str, float]
    binds: str


def time_of_step(target: Target, precision: str, flops: float, traffic: float, sent: Iterable[Collective]) -> Time:
    """The range for one device of a target.

    Args:
        target: the machines.
        precision: `train.precision`.
        flops: that each device computes.
        traffic: bytes that each device reads and writes in its memory.
        sent: what devices send each other.
    """
    chip = target.chip
    network = sum(seconds_of(each, target) for each in sent)
    terms = {COMPUTE: flops / chip.peak(precision), MEMORY: traffic / chip.bandwidth, NETWORK: network}
    if chip.platform == "cpu":  # simulated devices share the cores and the memory of one machine
        terms = {name: seconds * target.devices for name, seconds in terms.items()}
    low = {name: seconds / BEST[name] for name, seconds in terms.items()}
    high = {name: seconds / ORDINARY[name] for name, seconds in terms.items()}
    least = sum(low.values()) if chip.platform == "cpu" else max(low.values())
    return Time(least, sum(high.values()), terms, max(terms, key=lambda name: terms[name]))


def seconds_of(collective: Collective, target: Target) -> float:
    """Of messages of one kind: by the slowest link that they take."""
    far = len({place // target.near for place in collective.first}) > 1
    bandwidth = target.chip.far if far else target.chip.near
    return collective.bytes / bandwidth + collective.count * LATENCY[target.chip.platform]


# ------------------------------------------------------------------------------------------- what a program says


_FREE = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call", "partition-id",
    "after-all", "iota", "opt-barrier", "optimization-barrier",
}  # fmt: skip
_SLICES = {"dynamic-slice", "gather", "slice"}


def traffic(module: Module) -> float:
    """Bytes that a device reads and writes in its memory: operands and results of all that is not inside a fusion.

    What is only sliced, or looked up in, counts by what is taken from it; what is updated in place by the update.
    """
    total = 0.0
    for computation, instruction, times, fused in module.walk():
        if fused or instruction.opcode in _FREE or instruction.opcode.endswith("-done"):
            continue
        total += times * _moved(module, computation, instruction)
    return total


def _moved(module: Module, computation: Computation, instruction: Instruction) -> float:
    operands = computation.operands(instruction)
    if instruction.opcode in _SLICES:
        return 2 * instruction.bytes
    if instruction.opcode in ("dynamic-update-slice", "scatter"):
        return 2 * sum(each.bytes for each in operands[1:])
    written = instruction.bytes
    if instruction.opcode != "fusion" or not instruction.called:
        return written + sum(each.bytes for each in operands)
    inner = module.computations.get(instruction.called[0])
    if inner is None:
        return written + sum(each.bytes for each in operands)
    root = inner.root
    if root.opcode == "dynamic-update-slice" and len(root.operands) > 1 and root.operands[1] in inner.instructions:
        written = inner.instructions[root.operands[1]].bytes
    read = 0.0
    for number, operand in enumerate(operands):
        read += min(operand.bytes, _read(inner, number, operand.bytes))
    return written + read


def _read(inner: Computation, number: int, whole: int) -> float:
    """Bytes that a fusion reads of one of its operands."""
    parameter = next(
        (each for each in inner.instructions.values() if each.opcode == "parameter" and each.text == str(number)), None
    )
    if parameter is None:
        return whole
    users = [each for each in inner.instructions.values() if parameter.name in each.operands]
    if users and all(user.opcode in _SLICES and user.operands[0] == parameter.name for user in users):
        return sum(user.bytes for user in users)
    if users and all(user.opcode == "dynamic-update-slice" and user.operands[0] == parameter.name for user in users):
        return 0.0
    return whole


def computed(module: Module) -> float | None:
    """Operations of the products that the compiled program of one device has; None where kernels hide them.

    More than its share of the whole means that devices compute the same things.
    """
    total = 0.0
    for computation, instruction, times, _ in module.walk():
        if instruction.opcode == "custom-call" and re.search(r"gemm|matmul|conv", instruction.attributes):
            gemm = _gemm(computation, instruction)
            if gemm is None:
                return None
            total += times * gemm
        elif instruction.opcode == "dot":
            total += times * _dot(computation, instruction)
        elif instruction.opcode == "convolution":
            total += times * _convolution(computation, instruction)
    return total or None


def _dot(computation: Computation, instruction: Instruction) -> float:
    lhs = computation.instructions.get(instruction.operands[0]) if instruction.operands else None
    axes = instruction.attribute("lhs_contracting_dims")
    if lhs is None or axes is None:
        return 0.0
    contracted = 1
    for axis in axes.split(","):
        contracted *= lhs.arrays[0].shape[int(axis)] if axis.strip() else 1
    return 2.0 * instruction.arrays[0].elements * contracted


def _gemm(computation: Computation, instruction: Instruction) -> float | None:
    """Of a call of cuBLAS, which keeps the numbers of a dot in its configuration."""
    told = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.attributes)
    lhs = computation.instructions.get(instruction.operands[0]) if instruction.operands else None
    if told is None or lhs is None:
        return None
    contracted = 1
    for axis in re.findall(r"\d+", told[1]):
        contracted *= lhs.arrays[0].shape[int(axis)]
    return 2.0 * instruction.arrays[0].elements * contracted


def _convolution(computation: Computation, instruction: Instruction) -> float:
    """By the window's size and the inputs of the kernel; TPUs make convolutions of all products."""
    kernel = computation.instructions.get(instruction.operands[1]) if len(instruction.operands) > 1 else None
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if kernel is None or labels is None:
        return 0.0
    shape = kernel.arrays[0].shape
    taps = shape[labels[2].index("i")]
    size = re.search(r"window=\{[^}]*size=(\d+(?:x\d+)*)", instruction.attributes)
    for n in size[1].split("x") if size else ():
        taps *= int(n)
    dilation = re.search(r"window=\{[^}]*lhs_dilate=(\d+(?:x\d+)*)", instruction.attributes)
    zeros = 1
    for n in dilation[1].split("x") if dilation else ():
        zeros *= int(n)
    return 2.0 * instruction.arrays[0].elements * taps / zeros
