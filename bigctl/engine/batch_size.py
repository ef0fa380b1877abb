"""`train.batch_size=auto`: the largest batch that fits, measured once, when a run begins, which then keeps it.

Sizes double from a small one on. Of each the step is compiled, and what the compiler says that it takes on a device is
held against what is free there. On a CPU, which has memory for batches that are of no use to it, steps are timed too:
the search ends where examples a second grow no more. On other devices one step of each size is run. A size is a power
of two times what the mesh and `train.accumulate` divide a batch by, and no larger than the training split.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from bigctl.config.schema import Config
from bigctl.data.dataset import Dataset
from bigctl.engine import device_memory, distil, resolve
from bigctl.engine import experiment as experiments
from bigctl.engine import teacher as teachers
from bigctl.errors import ConfigError
from bigctl.formatting import size as in_bytes
from bigctl.parallel import distributed
from bigctl.parallel import mesh as meshes
from bigctl.training import feed, plans
from bigctl.training.compiled import compiled

if TYPE_CHECKING:
    from bigctl.interop.sources import Source
    from bigctl.training.compiled import Compiled
    from bigctl.training.programs import Programs
    from bigctl.training.state import TrainState

KEY = "train.batch_size"
START = 8
SHARE = 0.85
"""Of what is free on a device; the rest is for what runs beside the step: evaluations, and copies being saved."""
GAIN = 1.1
"""By how much examples a second must grow for a larger batch to be worth it on a CPU."""
PATIENCE = 2
"""Sizes in a row that are not, before the search ends."""
DATA, MEMORY, RATE = "data", "memory", "rate"
"""What a search ends with: all examples are in one batch, one does not fit, one is not faster."""
SECONDS = 0.3
"""How long steps of a size are timed [s]; at least one is."""


@dataclass(frozen=True)
class Tried:
    """One size: bytes that its step takes on a device, examples a second where steps were timed, and why not."""

    size: int
    bytes: int | None = None
    rate: float | None = None
    refused: str = ""


@dataclass(frozen=True)
class Measured:
    """What was found.

    Attributes:
        size: examples a batch.
        sentence: for people: what it was measured by.
        free: bytes that were free on each device.
        tried: all sizes, in order.
    """

    size: int
    sentence: str
    free: int
    tried: tuple[Tried, ...]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def settled(config: Config) -> tuple[Config, Measured | None]:
    """The configuration of what is no run, its batch size measured where that is open.

    Raises:
        BigctlError: as `measure`, and for whatever is wrong with data or weights.
    """
    if not config.train.measures_batch_size or config.recipe.whole_batch:
        return config, None
    source = resolve.locate_weights(config)
    config = resolve.with_architecture(config, source)
    found = measure(config, resolve.prepare_data(config, source=source), source)
    return with_size(config, found.size), found


def with_size(config: Config, size: int) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=size))


def measure(config: Config, dataset: Dataset, source: Source | None = None, plugins: Sequence[str] = ()) -> Measured:
    """Find the largest batch that fits, or on a CPU the largest that is of use. All processes come here.

    A teacher that each step asks is in what is measured.

    Args:
        config: with its architecture, its batch size open.
        dataset: its data, prepared.
        source: the weights to start from.
        plugins: modules that may be imported for a teacher.

    Raises:
        ConfigError: if not even the smallest batch fits, or the experiment itself cannot be built.
        RunError: if its teacher cannot teach it.
    """
    mesh = meshes.make_mesh(config.mesh)
    unit = meshes.batch_shards(mesh) * config.train.accumulate
    sizes = candidates(unit, dataset.size("train"))
    bench = _Bench(config, dataset, source, mesh, plugins)
    best, tried, ended = _climb(bench, sizes)
    if best is None:
        tight = tried[0]
        raise ConfigError(
            f"not even a batch of {tight.size} fits: {tight.refused}",
            where=f"{KEY}=auto",
            hint="wait until other programs have freed their memory, make the model smaller or give train.accumulate=N",
        )
    return Measured(best.size, _sentence(config, bench, best, tried, ended), bench.free, tuple(tried))


def candidates(unit: int, examples: int) -> list[int]:
    """Sizes to try, ascending: powers of two times `unit`, up to the examples that there are."""
    count = max(1, (examples // unit).bit_length())
    return [unit * 2**n for n in range(count)]


def _climb(bench: _Bench, sizes: Sequence[int]) -> tuple[Tried | None, list[Tried], str]:
    """The size to take, None where none fits; all that were tried, ascending; and what the search ended with."""
    first = next((place for place, size in enumerate(sizes) if size >= START), len(sizes) - 1)
    tried: list[Tried] = []
    fastest, stale = 0.0, 0
    for size in sizes[first:]:
        tried.append(found := bench.try_size(size))
        if found.refused:
            break
        if found.rate is not None:
            stale = 0 if found.rate > GAIN * fastest else stale + 1
            fastest = max(fastest, found.rate)
            if stale == PATIENCE:
                break
    for size in reversed(sizes[:first]) if tried[0].refused else ():
        tried.insert(0, bench.try_size(size))
        if not tried[0].refused:
            break
    best = [each for each in tried if not each.refused and (each.rate is None or each.rate >= fastest / GAIN)]
    larger = [each for each in tried if best and each.size > best[-1].size]
    ended = DATA if not larger and stale < PATIENCE else MEMORY if larger and larger[0].refused else RATE
    return best[-1] if best else None, tried, ended


class _Bench:
    """Compiles steps of different sizes, and times or runs them.

    Attributes:
        free: bytes that are free on each device.
        timed: whether steps are timed: on a CPU.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        source: Source | None,
        mesh: jax.sharding.Mesh,
        plugins: Sequence[str] = (),
    ):
        self.config, self.dataset, self.source, self.plugins = config, dataset, source, plugins
        self.group = distributed.current()
        self.timed = mesh.devices.flat[0].platform == "cpu"
        self.free = self.group.first(lambda: device_memory.free_per_device(mesh))
        columns = dataset.splits["train"]
        fits = feed.fits_on_device(columns, config)
        self.resident = sum(values.nbytes for values in columns.values()) if fits else 0
        self._state: TrainState | None = None
        self._built = False
        self._teacher: distil.Asked | None = None

    def try_size(self, size: int) -> Tried:
        """What a batch of this size takes; the processes agree on what the first one finds."""
        found = self._tried(size)
        return self.group.first(lambda: found, pack=dataclasses.asdict, unpack=lambda said: Tried(**said))

    def _tried(self, size: int) -> Tried:
        try:
            resolved = resolve.with_data(with_size(self.config, size), self.dataset, self.source)
            programs = self._programs(resolved)
            device_memory.require_state(programs)
        except ConfigError as error:
            if not self._built:  # it is not the size that is wrong
                raise
            return Tried(size, refused=error.message)
        self._built = True
        try:
            columns = self.dataset.splits["train"]
            batch = plans.batch_shapes(programs, self.dataset.batches, columns, resolved.config)
            sent = feed.step_on_sent(programs, self.dataset.batches, columns, resolved.config)
            step = compiled(sent, programs.carried_state, batch, programs.hparams)
            taken = _bytes_of(step.memory_analysis(), self.resident)
            if taken is not None and taken > SHARE * self.free:
                told = f"its step takes {in_bytes(taken)} a device, and {in_bytes(self.free)} are free there"
                return Tried(size, taken, refused=told)
            return Tried(size, taken, self._run(programs, step, batch, size))
        except RuntimeError as error:  # of XLA, and what the compiler says of a program that cannot fit
            if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error).lower():
                raise
            self._state = None
            return Tried(size, refused=f"there was no memory for its step; {in_bytes(self.free)} were free a device")

    def _programs(self, resolved: resolve.Resolved) -> Programs:
        experiment = experiments.build_resolved(resolved)
        if not teachers.asked_each_step(self.config, self.dataset):
            return experiment.programs
        if self._teacher is None:
            self._teacher = distil.asked_by(experiment, self.plugins)
        return self._teacher.joined(experiment).programs

    def _run(
        self, programs: Programs, step: Compiled, shapes: Mapping[str, jax.ShapeDtypeStruct], size: int
    ) -> float | None:
        """Run steps on a batch of zeros; gives examples a second by the fastest of them, None where none is timed."""
        state = programs.initialise() if self._state is None else self._state
        batch = {name: meshes.put(np.zeros(x.shape, x.dtype), x.sharding) for name, x in shapes.items()}
        self._state = state = jax.block_until_ready(step(state, batch, programs.hparams))
        fastest, began = math.inf, time.perf_counter()
        while self.timed and (fastest == math.inf or time.perf_counter() < began + SECONDS):
            start = time.perf_counter()
            self._state = state = jax.block_until_ready(step(state, batch, programs.hparams))
            fastest = min(fastest, time.perf_counter() - start)
        return size / fastest if self.timed else None


def _bytes_of(analysis: object, resident: int) -> int | None:
    """What a step takes on a device, the training split there included; None where the compiler does not tell."""
    if analysis is None:
        return None
    signs = {"argument": 1, "output": 1, "alias": -1, "temp": 1}
    return resident + sum(sign * int(getattr(analysis, f"{part}_size_in_bytes")) for part, sign in signs.items())


def _sentence(config: Config, bench: _Bench, best: Tried, tried: Sequence[Tried], ended: str) -> str:
    """What was found, by what, and what it does not change."""
    if ended == RATE:
        span = f"tried {tried[0].size:,} to {tried[-1].size:,}"
        why = f"on this CPU examples/s stop growing there, {best.rate:,.0f} of them ({span})"
    elif ended == DATA:
        why = f"twice as many are more than the {bench.dataset.size('train'):,} training examples"
    else:
        larger = next(each for each in tried if each.size > best.size)
        why = f"of {larger.size:,}, {larger.refused}"
    if best.bytes is not None:
        why += f"; a step takes {in_bytes(best.bytes)} of {in_bytes(bench.free)} free"
    rate = getattr(config.optimizer, "lr", None)
    kept = "" if rate is None else f"; optimizer.lr={rate:g} stays, --find-lr looks for another"
    return f"{KEY}={best.size}: {why}{kept}"
