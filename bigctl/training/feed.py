"""How batches reach the compiled step: gathered from columns on the devices, or sent by a prefetching thread."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any, Protocol

import jax
import numpy as np

from bigctl.config import schema
from bigctl.data.sampler import BatchPlan
from bigctl.parallel import mesh as meshes
from bigctl.training.state import TrainState
from bigctl.training.step import LARGEST_LOOP, Programs

Columns = dict[str, np.ndarray]


class Feed(Protocol):
    """Draws the batches from a position on and trains on them."""

    waited: float
    """Seconds spent waiting for data so far."""

    def advance(self, state: TrainState, position: int, limit: int) -> tuple[TrainState, int]:
        """Train up to `limit` steps from `position` on; gives the new state and how many steps it were."""

    def program(self) -> Any:
        """The compiled program in use, for its cost and its number of compilations."""

    def close(self) -> None: ...


def make(programs: Programs, columns: Columns, config: schema.Config) -> Feed:
    """The feed for a training split: resident where it fits `data.resident_mib` on each device."""
    frozen = config.train.batch_size if config.train.overfit_one_batch else 0
    plan = BatchPlan(len(columns["label"]), config.seed, frozen)
    if fits(columns, config):
        arrays = place(programs, columns)
        if loops(programs, config):
            return LoopFeed(programs, arrays, plan, config)
        return ResidentFeed(programs, arrays, plan, config)
    return SentFeed(programs, columns, plan, config)


def fits(columns: Columns, config: schema.Config) -> bool:
    return sum(values.nbytes for values in columns.values()) <= config.data.resident_mib * 2**20


def place(programs: Programs, columns: Columns) -> dict[str, jax.Array]:
    """Columns on every device of the mesh."""
    where = meshes.replicated(programs.mesh)
    return {name: jax.device_put(np.asarray(values), where) for name, values in columns.items()}


def loops(programs: Programs, config: schema.Config) -> bool:
    """Whether several steps go into one dispatch: wherever the model's code in a loop is as good as outside of one."""
    if config.train.steps_per_dispatch is not None:
        return config.train.steps_per_dispatch > 1
    from bigctl.lazy import load_class

    on_cpu = programs.mesh.devices.flat[0].platform == "cpu"
    return bool(getattr(load_class(config.model), "loops_on_cpu", True)) if on_cpu else True


class _Ahead:
    """Indices at successive positions, out of blocks computed at once: a call to the plan costs what thousands of
    indices do."""

    def __init__(self, plan: BatchPlan, length: int = 2**14):
        self.plan, self.length = plan, length
        self._start, self._block = 0, np.empty(0, np.int32)

    def __call__(self, position: int, count: int) -> np.ndarray:
        offset = position - self._start
        if not 0 <= offset <= len(self._block) - count:
            self._start, self._block = position, self.plan.indices(position, max(count, self.length))
            offset = 0
        return self._block[offset : offset + count]


class ResidentFeed:
    """One step a dispatch, on data that is on the devices; only indices travel."""

    def __init__(self, programs: Programs, arrays: dict[str, jax.Array], plan: BatchPlan, config: schema.Config):
        self.programs, self.arrays, self.plan = programs, arrays, plan
        self.batch_size = config.train.batch_size
        self.waited = 0.0
        self._indices = _Ahead(plan)

    def advance(self, state: TrainState, position: int, limit: int) -> tuple[TrainState, int]:
        indices = self._indices(position, self.batch_size)
        return self.programs.step_resident(state, self.arrays, indices, self.programs.numbers), 1

    def program(self) -> Any:
        return self.programs.step_resident

    def close(self) -> None:
        pass


class LoopFeed:
    """Many steps a dispatch, about a second of them at most, on data that is on the devices."""

    def __init__(self, programs: Programs, arrays: dict[str, jax.Array], plan: BatchPlan, config: schema.Config):
        self.programs, self.arrays, self.plan = programs, arrays, plan
        self.batch_size = config.train.batch_size
        self.largest = min(LARGEST_LOOP, config.train.steps_per_dispatch or LARGEST_LOOP)
        self.waited = 0.0
        self._indices = _Ahead(plan)
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
        state = self.programs.steps_resident(state, self.arrays, indices, np.int32(count), self.programs.numbers)
        if timing:
            jax.block_until_ready(state)
            self._length = int(np.clip(1.0 / max(time.perf_counter() - start, 1e-6), 1, self.largest))
        self._warm = True
        return state, count

    def program(self) -> Any:
        return self.programs.steps_resident

    def close(self) -> None:
        pass


class SentFeed:
    """One step a dispatch, on batches that a thread gathers from the memory-mapped arrays and sends ahead."""

    def __init__(self, programs: Programs, columns: Columns, plan: BatchPlan, config: schema.Config, depth: int = 3):
        self.programs, self.columns, self.plan = programs, columns, plan
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

    def _restart(self, position: int) -> None:
        self.close()
        self._stop.clear()
        self._next = position
        self._thread = threading.Thread(target=self._produce, args=(position,), name="prefetch", daemon=True)
        self._thread.start()

    def _produce(self, position: int) -> None:
        try:
            ahead = _Ahead(self.plan)
            while not self._stop.is_set():
                indices = ahead(position, self.batch_size)
                batch = {name: jax.device_put(values[indices], self.sharding) for name, values in self.columns.items()}
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
