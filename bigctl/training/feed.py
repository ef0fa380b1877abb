"""How batches reach the compiled step: gathered from columns on the devices, or sent by a prefetching thread."""

from __future__ import annotations

import copy
import queue
import threading
import time
from functools import partial
from typing import Any, Protocol

import jax
import numpy as np

from bigctl.config import schema
from bigctl.data.layouts import ragged, windows
from bigctl.data.layouts.ragged import LengthPlan
from bigctl.data.layouts.windows import WindowPlan
from bigctl.data.sampler import BatchPlan
from bigctl.parallel import distributed
from bigctl.parallel import mesh as meshes
from bigctl.training.state import TrainState
from bigctl.training.step import LARGEST_LOOP, Programs

Columns = dict[str, np.ndarray]


class Feed(Protocol):
    """Draws the batches from a position on and trains on them."""

    waited: float
    """Seconds spent waiting for data so far."""
    shapes: int
    """How many shapes of batches there are, each of which is compiled once."""

    def advance(self, state: TrainState, position: int, limit: int) -> tuple[TrainState, int]:
        """Train up to `limit` steps from `position` on; gives the new state and how many steps it were."""

    def shape(self, position: int) -> int | None:
        """The length that the texts of the next batch are padded to, or of its windows; None for other examples."""

    def program(self) -> Any:
        """The compiled program in use, for its cost and its number of compilations."""

    def close(self) -> None: ...


def make(programs: Programs, columns: Columns, config: schema.Config) -> Feed:
    """The feed for a training split: resident where it fits `data.resident_mib` on each device."""
    block, edges, plan = config.block, edges_of(columns, config), plan_of(columns, config)
    if edges is not None and isinstance(plan, BatchPlan):
        window = config.recipe.bucketing.window  # type: ignore[attr-defined]
        batches: _Batches = LengthPlan(plan, ragged.lengths_of(columns), config.train.batch_size, edges, window)
    else:
        batches = Ahead(plan, config.train.batch_size, block)
    if not fits(columns, config):
        return SentFeed(programs, columns, batches, config)
    arrays = place(programs, columns)
    if edges is None and loops(programs, config):
        return LoopFeed(programs, arrays, plan, config, block)
    return ResidentFeed(programs, arrays, batches, config)


def plan_of(columns: Columns, config: schema.Config) -> BatchPlan | WindowPlan:
    """The order of the examples of a training split, or of its windows."""
    frozen = config.train.batch_size if config.train.overfit_one_batch else 0
    if config.block is not None:
        return WindowPlan(len(columns["inputs"]), config.block, config.seed, frozen)
    return BatchPlan(len(columns["label"]), config.seed, frozen)


def edges_of(columns: Columns, config: schema.Config) -> tuple[int, ...] | None:
    """The lengths that texts like those of a training split are padded to; None for what is no text."""
    if "offsets" not in columns:
        return None
    shapes = config.recipe.bucketing.shapes  # type: ignore[attr-defined]
    return ragged.edges(ragged.lengths_of(columns), config.train.batch_size, shapes)


def gather(columns: Columns, indices: np.ndarray, length: int | None = None) -> Columns:
    """A batch on the host: its texts padded to `length`, or windows of that length."""
    if length is None:
        return {name: values[indices] for name, values in columns.items()}
    take = ragged.take if "offsets" in columns else windows.take
    return take(columns, indices, length)


def fits(columns: Columns, config: schema.Config) -> bool:
    if any(len(values) >= 2**31 for values in columns.values()):  # which jax's int32 could not index
        return False
    return sum(values.nbytes for values in columns.values()) <= config.data.resident_mib * 2**20


def place(programs: Programs, columns: Columns) -> dict[str, jax.Array]:
    """Columns on every device of the mesh."""
    where = meshes.replicated(programs.mesh)
    return {name: meshes.put(_narrow(np.asarray(values)), where) for name, values in columns.items()}


def _narrow(values: np.ndarray) -> np.ndarray:
    """64-bit integers as 32-bit ones, which is what jax has; what fits the device counts fewer than 2^31."""
    return values.astype(np.int32) if values.dtype == np.int64 else values


def loops(programs: Programs, config: schema.Config) -> bool:
    """Whether several steps go into one dispatch: wherever the model's code in a loop is as good as outside of one."""
    if config.train.steps_per_dispatch is not None:
        return config.train.steps_per_dispatch > 1
    on_cpu = programs.mesh.devices.flat[0].platform == "cpu"
    return bool(getattr(config.model.implementing(), "loops_on_cpu", True)) if on_cpu else True


class _Batches(Protocol):
    """Which examples make up the batch at a position."""

    def batch(self, position: int) -> tuple[np.ndarray, int | None]:
        """Indices, or starts of windows, int [batch]; and the length that texts are padded to, or of the windows."""


class Ahead:
    """Indices at successive positions, out of blocks computed at once: a call to the plan costs what thousands of
    indices do."""

    def __init__(
        self, plan: BatchPlan | WindowPlan, batch_size: int = 0, block: int | None = None, length: int = 2**14
    ):
        self.plan, self.batch_size, self.block, self.length = plan, batch_size, block, length
        self._start, self._block = 0, np.empty(0, np.int32)

    def __call__(self, position: int, count: int) -> np.ndarray:
        offset = position - self._start
        if not 0 <= offset <= len(self._block) - count:
            self._start, self._block = position, self.plan.indices(position, max(count, self.length))
            offset = 0
        return self._block[offset : offset + count]

    def batch(self, position: int) -> tuple[np.ndarray, int | None]:
        return self(position, self.batch_size), self.block


class ResidentFeed:
    """One step a dispatch, on data that is on the devices; only indices travel."""

    def __init__(self, programs: Programs, arrays: dict[str, jax.Array], batches: _Batches, config: schema.Config):
        self.programs, self.arrays, self.batches = programs, arrays, batches
        self.shapes = len(getattr(batches, "edges", (0,)))
        self.waited = 0.0

    def advance(self, state: TrainState, position: int, limit: int) -> tuple[TrainState, int]:
        indices, length = self.batches.batch(position)
        return self.programs.step_resident(state, self.arrays, indices, self.programs.numbers, length), 1

    def shape(self, position: int) -> int | None:
        return self.batches.batch(position)[1]

    def program(self) -> Any:
        return self.programs.step_resident

    def close(self) -> None:
        pass


class LoopFeed:
    """Many steps a dispatch, about a second of them at most, on data that is on the devices."""

    shapes = 1

    def __init__(
        self,
        programs: Programs,
        arrays: dict[str, jax.Array],
        plan: BatchPlan | WindowPlan,
        config: schema.Config,
        block: int | None = None,
    ):
        self.programs, self.arrays, self.plan, self.block = programs, arrays, plan, block
        self.batch_size = config.train.batch_size
        self.largest = min(LARGEST_LOOP, config.train.steps_per_dispatch or LARGEST_LOOP)
        self.waited = 0.0
        self._indices = Ahead(plan)
        self._length: int | None = config.train.steps_per_dispatch
        self._warm = False

    def advance(self, state: TrainState, position: int, limit: int) -> tuple[TrainState, int]:
        # Short first dispatches find out how long a step takes. The count is an argument of one program, so how steps
        # are grouped changes nothing in the result.
        count = min(limit, self.largest, self._length or 1)
        indices = np.zeros((LARGEST_LOOP, self.batch_size), np.int32)
        indices[:count] = self._indices(position, count * self.batch_size).reshape(count, self.batch_size)
        timing = self._warm and self._length is None
        if timing:
            jax.block_until_ready(state)
        start = time.perf_counter()
        state = self.programs.steps_resident(
            state, self.arrays, indices, np.int32(count), self.programs.numbers, self.block
        )
        if timing:
            jax.block_until_ready(state)
            seconds = max(time.perf_counter() - start, 1e-6)
            self._length = distributed.current().first(lambda: int(np.clip(1.0 / seconds, 1, self.largest)))
        self._warm = True
        return state, count

    def shape(self, position: int) -> int | None:
        return self.block

    def program(self) -> Any:
        return self.programs.steps_resident

    def close(self) -> None:
        pass


class SentFeed:
    """One step a dispatch, on batches that a thread gathers from the memory-mapped arrays and sends ahead."""

    def __init__(self, programs: Programs, columns: Columns, batches: _Batches, config: schema.Config, depth: int = 3):
        self.programs, self.columns, self.batches = programs, columns, batches
        self.shapes = len(getattr(batches, "edges", (0,)))
        self.batch_size = config.train.batch_size
        self.sharding = meshes.batch_sharding(programs.mesh)
        self.waited = 0.0
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._next: int | None = None
        self._thread: threading.Thread | None = None

    def advance(self, state: TrainState, position: int, limit: int) -> tuple[TrainState, int]:
        if self._next != position:
            self._restart(position)
        start = time.perf_counter()
        batch = self._queue.get()
        self.waited += time.perf_counter() - start
        if isinstance(batch, BaseException):
            raise batch
        self._next = position + self.batch_size
        return self.programs.step_sent(state, batch, self.programs.numbers), 1

    def shape(self, position: int) -> int | None:
        return self.batches.batch(position)[1] if self.shapes > 1 else None

    def _restart(self, position: int) -> None:
        self.close()
        self._stop.clear()
        self._next = position
        self._thread = threading.Thread(target=self._produce, args=(position,), name="prefetch", daemon=True)
        self._thread.start()

    def _produce(self, position: int) -> None:
        try:
            batches = copy.copy(self.batches)  # a cursor of this thread's own
            while not self._stop.is_set():
                indices, length = batches.batch(position)
                batch = meshes.put_batch(partial(gather, self.columns, length=length), indices, self.sharding)
                position += self.batch_size
                while not self._stop.is_set():
                    try:
                        self._queue.put(batch, timeout=0.1)
                        break
                    except queue.Full:
                        continue
        except BaseException as error:
            self._queue.put(error)

    def program(self) -> Any:
        return self.programs.step_sent

    def close(self) -> None:
        self._stop.set()
        self._next = None
        if self._thread is not None:
            while self._thread.is_alive():
                while not self._queue.empty():
                    self._queue.get_nowait()
                self._thread.join(timeout=0.05)
            self._thread = None
        while not self._queue.empty():
            self._queue.get_nowait()
