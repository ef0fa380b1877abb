"""The machines that a step can be planned for: their names, shapes and peaks. Free of jax.

Peaks are those of data sheets, dense and without sparsity:

- H100 SXM5 80 GB: NVIDIA H100 datasheet (bfloat16 989 TFLOPS, TF32 495; HBM3 3.35 TB/s; NVLink 900 GB/s both ways).
- A100 SXM4 80 GB: NVIDIA A100 datasheet (312, TF32 156; HBM2e 2.04 TB/s; NVLink 600 GB/s both ways).
- TPU v4, v5e, v5p, v6e: Google Cloud's pages of each version, and "How to Scale Your Model" (Austin et al. 2025, table
  of TPU specifications) for the bandwidth of a link: 45, 45, 90 and 90 GB/s one way; an axis sends both ways.

Between hosts a GPU has a 400 (H100) or 200 (A100) Gbit/s card of its own, as in DGX systems; between slices a chip has
its part of the host's network, 6.25 GB/s (v4, v5p), 3.1 (v5e) and 12.5 (v6e), from the same book.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass

from bigctl.errors import ConfigError

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """What one device can do.

    Attributes:
        name: as in targets, such as "v5e".
        platform: "cpu", "gpu" or "tpu".
        bfloat16, float32: operations a second in products of matrices of these types, at jax's default precision.
        memory: bytes.
        bandwidth: of its memory [bytes/s].
        near: bytes a second that it sends to its neighbours along one axis of the mesh, both ways together on a torus.
        far: bytes a second that it sends to other hosts or slices.
        host: devices that are near each other without a torus: the GPUs of a host.
        dimensions: of the torus; 0 for others.
        topology: how libtpu calls it.
    """

    name: str
    platform: str
    bfloat16: float
    float32: float
    memory: int
    bandwidth: float
    near: float
    far: float
    host: int = 8
    dimensions: int = 0
    topology: str = ""

    def peak(self, precision: str) -> float:
        return self.bfloat16 if precision in ("bfloat16", "float16") else self.float32


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("h100", "gpu", 989e12, 495e12, 84_942_979_072, 3.35e12, 450e9, 50e9),
        Chip("a100", "gpu", 312e12, 156e12, 85_091_090_432, 2.04e12, 300e9, 25e9),
        Chip("v4", "tpu", 275e12, 275e12, 32 * GIB, 1.2e12, 90e9, 6.25e9, dimensions=3, topology="v4"),
        Chip("v5e", "tpu", 197e12, 197e12, 16 * GIB, 8.2e11, 90e9, 3.1e9, dimensions=2, topology="v5e"),
        Chip("v5p", "tpu", 459e12, 459e12, 95 * GIB, 2.8e12, 180e9, 6.25e9, dimensions=3, topology="v5p"),
        Chip("v6e", "tpu", 918e12, 918e12, 32 * GIB, 1.6e12, 180e9, 12.5e9, dimensions=2, topology="v6e"),
    )
}
_FLAT = {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)}
_CUBES = {
    4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4), 128: (4, 4, 8), 256: (4, 8, 8),
    512: (8, 8, 8), 1024: (8, 8, 16), 2048: (8, 16, 16), 4096: (16, 16, 16),
}  # fmt: skip
"""Usual shapes of slices by their number of chips. Of a torus in two dimensions there are no
others, of one in three those whose sides are all multiples of 4 (Google Cloud's pages of each version)."""
MOST = 4096
FORMS = "h100:8, h100:8x2 (GPUs a host x hosts), a100:8, v5e-16 or v5e-4x4, v5p-2x2x4, v6e-256:slices=2, cpu:8"


@dataclass(frozen=True)
class Target:
    """Machines to plan for.

    Attributes:
        text: as given.
        chip: what its devices are.
        shape: of GPUs (a host, hosts), of TPUs the torus, of CPUs (devices,).
        slices: of TPUs.
    """

    text: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def devices(self) -> int:
        return math.prod(self.shape) * self.slices

    @property
    def near(self) -> int:
        """Devices whose neighbours are near: of a host, or of a slice."""
        return self.shape[0] if self.chip.platform == "gpu" else math.prod(self.shape)

    @property
    def topology(self) -> str:
        """How jax's compile-only clients call it."""
        if self.chip.platform == "gpu":
            return f"{self.shape[1]}x{self.shape[0]}x1"
        return f"{self.chip.topology}:{_sides(self.shape)}"

    @property
    def said(self) -> str:
        if self.chip.platform == "cpu":
            return f"{self.devices} simulated CPU device{'s' if self.devices > 1 else ''}"
        if self.chip.platform == "gpu":
            return f"{self.devices} {self.chip.name.upper()}" + (
                f" on {self.shape[1]} hosts" if self.shape[1] > 1 else ""
            )
        slices = f"{self.slices} slices of " if self.slices > 1 else ""
        return f"{slices}TPU {self.chip.name} {_sides(self.shape)}"


def parse(text: str, cpu: Chip) -> Target:
    """The target of a name such as "h100:8x2", "v5e-16x16", "v6e-256:slices=2", "cpu:8".

    Args:
        text: the name.
        cpu: what a simulated device of this machine can do.

    Raises:
        ConfigError: for a name that is none, with close ones; for a shape that there is not.
    """
    given = text.strip().lower()
    base, _, rest = given.partition(":slices=")
    found = re.fullmatch(r"([a-z]+\d*[a-z]?)(?:[:-](\d+(?:x\d+)*))?", base)
    name = found[1] if found else re.split(r"[:\-]", base)[0]
    if found is None or (name not in CHIPS and name != "cpu"):
        close = difflib.get_close_matches(name, [*CHIPS, "cpu"], n=3, cutoff=0.4)
        near = f"did you mean {' or '.join(close)}? targets are {FORMS}" if close else f"targets are {FORMS}"
        raise ConfigError(f"there is no target {text[:60]!r}", where="--target", hint=near)
    shape = tuple(int(n) for n in (found[2] or "1").split("x"))
    if rest and not (rest.isdigit() and 1 <= int(rest) <= 64 and name.startswith("v")):
        hint = "slices are of TPUs, 1 to 64 of them: v6e-256:slices=2"
        raise ConfigError(f"{text[:60]!r}: slices={rest[:20]} cannot be", where="--target", hint=hint)
    chip = cpu if name == "cpu" else CHIPS[name]
    target = Target(text, chip, _shaped(text, chip, shape), int(rest or 1))
    if not 1 <= target.devices <= MOST:
        hint = f"give 1 to {MOST:,} devices"
        raise ConfigError(f"{text[:60]!r} is {target.devices:,} devices", where="--target", hint=hint)
    return target


def _shaped(text: str, chip: Chip, shape: tuple[int, ...]) -> tuple[int, ...]:
    if chip.platform == "tpu":
        table = _FLAT if chip.dimensions == 2 else _CUBES
        if len(shape) == 1:
            if shape[0] not in table:
                near = sorted(sorted(table, key=lambda n: abs(n - shape[0]))[:2])
                hint = f"close ones are {' and '.join(f'{chip.name}-{n}' for n in near)}; or give a shape"
                raise ConfigError(
                    f"{text[:60]!r}: no slice of {chip.name} has {shape[0]} chips", where="--target", hint=hint
                )
            return table[shape[0]]
        if len(shape) != chip.dimensions:
            hint = f"slices of {chip.name} have {chip.dimensions} dimensions: {chip.name}-{_sides(table[16])}"
            raise ConfigError(f"{text[:60]!r} is no shape of {chip.name}", where="--target", hint=hint)
        if shape not in table.values() and not _is_cube(shape):
            count, turned = math.prod(shape), tuple(sorted(shape))
            close = sorted(sorted(table, key=lambda n: abs(n - count))[:2])
            exact = turned in table.values() or _is_cube(turned)
            named = [f"{chip.name}-{_sides(s)}" for s in ([turned] if exact else [table[n] for n in close])]
            said = f"{text[:60]!r}: there is no slice of {chip.name} of {_sides(shape)} chips"
            raise ConfigError(
                said, where="--target", hint=f"close {'is' if exact else 'ones are'} {' and '.join(named)}"
            )
        return shape
    if chip.platform == "cpu":
        return (math.prod(shape),)
    if len(shape) > 2 or shape[0] > chip.host:
        hint = f"a host has up to {chip.host} GPUs: {chip.name}:8, or {chip.name}:8x2 on two hosts"
        raise ConfigError(f"{text[:60]!r} is no number of GPUs", where="--target", hint=hint)
    return (shape[0], shape[1] if len(shape) == 2 else 1)


def _is_cube(shape: tuple[int, ...]) -> bool:
    """Whether whole cubes of 4 x 4 x 4 chips make up a slice."""
    return len(shape) == 3 and list(shape) == sorted(shape) and all(side % 4 == 0 and side for side in shape)


def _sides(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def of_at_least(target: Target, devices: int) -> str | None:
    """The name of a usual machine of the same chips that has so many devices; None where there is none."""
    if target.chip.platform == "tpu":
        table = _FLAT if target.chip.dimensions == 2 else _CUBES
        count, slices = min(max(table), MOST), -(-devices // max(table))
        if slices * count > MOST:
            return None
        count = next((n for n in sorted(table) if n >= devices), count)
        return f"{target.chip.name}-{count}" + (f":slices={slices}" if slices > 1 else "")
    if target.chip.platform == "cpu" or devices > MOST:
        return None  # simulated devices share one memory, however many they are
    host = target.chip.host
    near = next(n for n in (1, 2, 4, host) if n >= min(devices, host))
    return f"{target.chip.name}:{near}" + (f"x{-(-devices // host)}" if devices > host else "")
