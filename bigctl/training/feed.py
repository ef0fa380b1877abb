"""How batches reach the compiled step: gathered from columns on the devices, or sent by a prefetching thread."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Generator, Iterator
from concurrent import futures
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Protocol, cast

import jax
import numpy as np
from jax.sharding import Mesh

from bigctl.config import schema
from bigctl.data.layouts.layout import Columns, FixedPlan, Layout, TrainingPlan
from bigctl.data.pictures.encoded_images import EncodedImages
from bigctl.data.text import token_shards
from bigctl.data.text.joined_tokens import JoinedTokens
from bigctl.data.text.token_shards import TokenShards
from bigctl.data.work import Work
from bigctl.parallel import distributed
from bigctl.parallel import mesh as meshes
from bigctl.training import plans
from bigctl.training.calls import Calls, Check
from bigctl.training.compiled import Compiled
from bigctl.training.on_batches import Arrays
from bigctl.training.prefetch import prefetched
from bigctl.training.programs import LARGEST_LOOP, Programs
from bigctl.training.state import TrainState
from bigctl.training.task import Batch

Observer = Callable[[Columns], None]
"""Told, for each step that is dispatched and before it is, what the step is given: the columns of the batch, and of
data on the devices its `indices`."""


class Feed(Protocol):
    """Draws the batches from a position on and trains on them."""

    waited: float
    """Seconds so far in which nothing was computed, for want of data."""
    waits_for_data: bool
    """Whether it is data that it waits for, or the other trainings of a pack."""
    shapes: int
    """How many shapes of batches there are, each of which is compiled once."""
    unforeseen: set[int | None]
    """Those that were met besides, of texts that found no room in the rows that there are."""

    @property
    def calls(self) -> Calls | None:
        """What runs the compiled step, and knows how long it took to compile."""

    @property
    def work(self) -> Work | None:
        """What making its batches took; None where nothing is made ahead."""

    @property
    def nbytes(self) -> int:
        """Of the training split, decoded."""

    def advance(self, state: TrainState, position: int, limit: int) -> tuple[TrainState, int]:
        """Train up to `limit` steps from `position` on; gives the new state and how many steps it were."""

    def shape(self, position: int) -> int | None:
        """The length that the texts of the next batch are padded to, or of its windows; how many rows texts share; None
        for other examples."""

    def program(self) -> Compiled:
        """The compiled program in use, for its cost and its number of compilations."""

    def close(self) -> None: ...


def make_feed(
    programs: Programs,
    layout: Layout,
    columns: Columns,
    config: schema.Config,
    observe: Observer | None = None,
    check: Check | None = None,
) -> Feed:
    """The feed for a training split: resident where it fits `data.resident_mib` on each device."""
    layout, plan = plans.planned(programs, layout, columns, config)
    if not fits_on_device(columns, config):
        return SentFeed(programs, layout, columns, plan, config, observe, check=check)
    arrays = place_columns(programs.mesh, columns)
    if isinstance(plan, FixedPlan) and loops(programs.mesh, config):  # which `step_on_sent` goes by, too
        return LoopFeed(programs, layout, arrays, plan, config, observe, check)
    return ResidentFeed(programs, layout, arrays, plan, observe, check)


def step_on_sent(programs: Programs, layout: Layout, columns: Columns, config: schema.Config) -> Compiled:
    """The step on a batch that is sent as training would run it, in one program or two."""
    plan = plans.planned(programs, layout, columns, config)[1]
    looped = fits_on_device(columns, config) and isinstance(plan, FixedPlan) and loops(programs.mesh, config)
    in_two = in_parts(programs.mesh, len(plan.lengths)) and not looped
    return programs.sent_in_parts if in_two else programs.step_sent


def fits_on_device(columns: Columns, config: schema.Config) -> bool:
    """Whether a split is kept on each device."""
    if any(isinstance(values, EncodedImages) for values in columns.values()):  # which are decoded as they are needed
        return False
    if any(len(values) >= 2**31 for values in columns.values()):  # which jax's int32 could not index
        return False
    if stays_in_files(columns):
        return False
    return sum(values.nbytes for values in columns.values()) <= config.data.resident_mib * 2**20


def stays_in_files(columns: Columns) -> bool:
    """Whether they are so many tokens in files that these are read as windows are drawn. An array of the cache is
    mapped, and on CPU not even copied; of tokens to be checked a copy would take seconds at each start."""
    tokens = (cast(object, values) for values in columns.values())
    return any(isinstance(each, TokenShards | JoinedTokens) and len(each) > token_shards.MANY for each in tokens)


def place_columns(mesh: Mesh, columns: Columns) -> Arrays:
    """Columns on every device of the mesh."""
    where = meshes.replicated(mesh)
    return {name: meshes.put(_narrow(np.asarray(values)), where) for name, values in columns.items()}


def _narrow(values: np.ndarray) -> np.ndarray:
    """64-bit integers as 32-bit ones, which is what jax has; what fits the device counts fewer than 2^31."""
    return values.astype(np.int32) if values.dtype == np.int64 else values


def loops(mesh: Mesh, config: schema.Config) -> bool:
    """Whether several steps go into one dispatch: wherever the model's code in a loop is as good as outside of one."""
    if config.train.steps_per_dispatch is not None:
        return config.train.steps_per_dispatch > 1
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return config.model.loops_on_cpu or not on_cpu


def in_parts(mesh: Mesh, shapes: int) -> bool:
    """Whether a step is two programs: on one CPU, where there are several shapes of batches and the update is the same
    for all. An accelerator updates weights while it computes gradients, and frees these as it goes."""
    return shapes > 1 and mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"


class _Resident:
    """What both feeds on data on the devices have in common."""

    def __init__(
        self, programs: Programs, layout: Layout, arrays: Arrays, observe: Observer | None, check: Check | None
    ):
        self.programs, self.layout, self.arrays = programs, layout, arrays
        self.calls = Calls(check)
        self.waited, self.waits_for_data = 0.0, True
        self.unforeseen: set[int | None] = set()
        self.work: Work | None = None
        self._observe = observe
        self._on_host: Columns = {}

    @property
    def nbytes(self) -> int:
        return sum(values.nbytes for values in self.arrays.values())

    def _tell(self, indices: np.ndarray, length: int | None) -> None:
        if self._observe is None:
            return
        if not self._on_host:
            self._on_host = {name: np.asarray(values) for name, values in self.arrays.items()}
        indices = np.asarray(indices)
        self._observe({"indices": indices, **self.layout.gather(self._on_host, indices, length)})

    def close(self) -> None:
        pass


class ResidentFeed(_Resident):
    """One step a dispatch, on data that is on the devices; only indices travel."""

    def __init__(
        self,
        programs: Programs,
        layout: Layout,
        arrays: Arrays,
        plan: TrainingPlan,
        observe: Observer | None = None,
        check: Check | None = None,
    ):
        super().__init__(programs, layout, arrays, observe, check)
        self.plan, self.shapes = plan, len(plan.lengths)

    def advance(self, state: TrainState, position: int, limit: int) -> tuple[TrainState, int]:
        indices, length = self.plan.batch(position)
        self.unforeseen |= {length} - set(self.plan.lengths)
        self._tell(indices, length)
        programs = self.programs
        given = state, self.arrays, indices, programs.hparams, self.layout, length
        return self.calls.run(self.program(), length, *given), 1

    def shape(self, position: int) -> int | None:
        return self.plan.batch(position)[1]

    def program(self) -> Compiled:
        programs = self.programs
        return programs.resident_in_parts if in_parts(programs.mesh, self.shapes) else programs.step_resident


class LoopFeed(_Resident):
    """Many steps a dispatch, about a second of them at most, on data that is on the devices."""

    def __init__(
        self,
        programs: Programs,
        layout: Layout,
        arrays: Arrays,
        plan: FixedPlan,
        config: schema.Config,
        observe: Observer | None = None,
        check: Check | None = None,
    ):
        super().__init__(programs, layout, arrays, observe, check)
        self.plan, self.shapes = plan, len(plan.lengths)
        self.largest = min(LARGEST_LOOP, config.train.steps_per_dispatch or LARGEST_LOOP)
        self._length: int | None = config.train.steps_per_dispatch
        self._warm = False

    def advance(self, state: TrainState, position: int, limit: int) -> tuple[TrainState, int]:
        # Short first dispatches find out how long a step takes. The count is an argument of one program, so how steps
        # are grouped changes nothing in the result.
        count = self.plan.alike(position, min(limit, self.largest, self._length or 1))
        length = self.plan.length_at(position)
        indices = np.zeros((LARGEST_LOOP, self.plan.rows), np.int32)
        indices[:count] = self.plan.batches(position, count)
        for each in indices[:count] if self._observe is not None else ():
            self._tell(each, length)
        programs = self.programs
        timing = self._warm and self._length is None
        if timing:
            jax.block_until_ready(state)
        start = time.perf_counter()
        given = state, self.arrays, indices, np.int32(count), programs.hparams, self.layout, length
        state = self.calls.run(programs.steps_resident, length, *given)
        if timing:
            jax.block_until_ready(state)
            seconds = max(time.perf_counter() - start, 1e-6)
            self._length = distributed.current().first(lambda: int(np.clip(1.0 / seconds, 1, self.largest)))
        self._warm = True
        return state, count

    def shape(self, position: int) -> int | None:
        return self.plan.length_at(position)

    def program(self) -> Compiled:
        return self.programs.steps_resident


_LOOK = 1e-3
"""How often it is asked whether the devices still compute, while a batch is waited for [s]."""


class SentFeed:
    """One step a dispatch, on batches that threads gather from the memory-mapped arrays, or decode, and send ahead."""

    def __init__(
        self,
        programs: Programs,
        layout: Layout,
        columns: Columns,
        plan: TrainingPlan,
        config: schema.Config,
        observe: Observer | None = None,
        depth: int = 3,
        check: Check | None = None,
    ):
        self.programs, self.layout, self.plan = programs, layout, plan
        self.calls = Calls(check)
        self.work = Work()
        self.columns = {
            name: replace(values, work=self.work) if isinstance(values, EncodedImages) else values
            for name, values in columns.items()
        }
        self.shapes = len(plan.lengths)
        self.unforeseen: set[int | None] = set()
        self._rows: int | None = None
        self.batch_size = config.train.batch_size
        self.sharding = meshes.batch_sharding(programs.mesh)
        self.waited, self.waits_for_data = 0.0, True
        self.depth = depth
        self._observe = observe
        self._batches: Generator[Batch] | None = None
        self._next: int | None = None
        self._reads = not any(isinstance(values, EncodedImages) for values in columns.values())
        self._trains = False
        self._transfer = math.inf
        self._before: TrainState | None = None

    def advance(self, state: TrainState, position: int, limit: int) -> tuple[TrainState, int]:
        if self._batches is None or self._next != position:
            self.close()
            self._batches = prefetched(self._makers(position), self.depth, self._drawn)
        waited, self._before = self.waited, state
        try:
            batch = next(self._batches)
        except BaseException:
            self.close()
            raise
        if not self._trains:
            self.work.add(first=self.waited - waited)
        self._next = position + self.batch_size
        if self._observe is not None:
            self._observe({name: np.asarray(values) for name, values in batch.items()})
        length, rows = self.shape(position), len(next(iter(batch.values())))
        self._rows = self._rows or rows
        if rows != self._rows:
            self.unforeseen.add(rows)
        shape = rows if length is None else length
        result = self.calls.run(self.program(), shape, state, batch, self.programs.hparams)
        self._trains = True
        return result, 1

    def shape(self, position: int) -> int | None:
        return self.plan.batch(position)[1] if self.shapes > 1 else None

    @property
    def nbytes(self) -> int:
        return sum(values.nbytes for values in self.columns.values())

    def _makers(self, position: int) -> Iterator[Callable[[], Batch]]:
        """What makes each batch from a position on."""
        plan = copy.copy(self.plan)  # a cursor of its own
        for place in itertools.count(position, self.batch_size):
            indices, length = plan.batch(place)
            gather = partial(self.layout.gather, self.columns, length=length)
            yield partial(self._make, gather, indices)

    def _make(self, gather: Callable[[np.ndarray], Columns], indices: np.ndarray) -> Batch:
        """One batch, once it is on the devices; what that took is taken note of."""
        gathering = 0.0

        def timed(indices: np.ndarray) -> Columns:
            nonlocal gathering
            start = time.perf_counter()
            columns = gather(indices)
            gathering += time.perf_counter() - start
            return columns

        start, idle = time.perf_counter(), not self._trains
        batch = meshes.put_batch(timed, indices, self.sharding)
        if idle:  # no step is under way that this could wait for
            jax.block_until_ready(batch)
        # Later transfers may wait for steps that are under way too: they are taken to last as long as the first did.
        transfer = time.perf_counter() - start - gathering
        if idle:
            self._transfer = min(self._transfer, transfer)
        elif math.isfinite(self._transfer):
            transfer = max(transfer, self._transfer)
        self.work.add(read=gathering if self._reads else 0.0, transfer=transfer)
        return jax.block_until_ready(batch)

    def _drawn(self, ready: int, batch: Future[Batch]) -> None:
        """Waits for a batch, and counts the time in which the devices had nothing to do: the host dispatches steps long
        before they are computed, and whoever is ahead loses nothing by waiting."""
        self.work.add(batches=1, ready=ready)
        while not batch.done():
            start, busy = time.perf_counter(), self._computes()
            futures.wait([batch], timeout=_LOOK)
            if not busy:
                self.waited += time.perf_counter() - start

    def _computes(self) -> bool:
        """Whether a step that was dispatched is still under way on the devices of this process."""
        return self._before is not None and not self._before.step.addressable_data(0).is_ready()  # type: ignore[attr-defined]

    def program(self) -> Compiled:
        programs = self.programs
        return programs.sent_in_parts if in_parts(programs.mesh, self.shapes) else programs.step_sent

    def close(self) -> None:
        if self._batches is not None:
            self._batches.close()
            self._batches = None
