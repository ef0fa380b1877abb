"""A step and an evaluation as functions of a batch that the host sends, or of rows of data on the devices: what
`programs` compiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp

from bigctl.data.layouts.layout import Layout
from bigctl.parallel import mesh as meshes
from bigctl.training.metrics import Sums
from bigctl.training.state import TrainState, Tree
from bigctl.training.step import Hparams, Step, add_places
from bigctl.training.task import Batch

Arrays = Mapping[str, jax.Array]
T = TypeVar("T")
OfBatch = Callable[[TrainState, Batch, Hparams], T]
"""A step, or a part of it."""


def gather_on_devices(
    step: Step, layout: Layout, arrays: Arrays, indices: jax.Array, length: int | None, mask: jax.Array | None = None
) -> Batch:
    """A batch out of columns on the devices, split over them as batches are."""
    batch = layout.gather(arrays, indices, length, jnp)
    batch = jax.lax.with_sharding_constraint(batch, meshes.batch_sharding(step.mesh))
    return add_places(batch, len(indices), mask)


def on_sent(compute: OfBatch[T]) -> Callable[[TrainState, Batch, Hparams], T]:
    def run(state: TrainState, batch: Batch, hparams: Hparams) -> T:
        rows = len(next(iter(batch.values())))
        return compute(state, add_places(batch, rows), hparams)

    return run


def on_resident(step: Step, compute: OfBatch[T]) -> Callable[..., T]:
    def run(
        state: TrainState, arrays: Arrays, indices: jax.Array, hparams: Hparams, layout: Layout, length: int | None
    ) -> T:
        return compute(state, gather_on_devices(step, layout, arrays, indices, length), hparams)

    return run


def steps_on_resident(step: Step) -> Callable[..., TrainState]:
    one = on_resident(step, step.train)

    def run(
        state: TrainState,
        arrays: Arrays,
        indices: jax.Array,
        count: jax.Array,
        hparams: Hparams,
        layout: Layout,
        length: int | None,
    ) -> TrainState:
        def body(i: jax.Array, state: TrainState) -> TrainState:
            return one(state, arrays, indices[i], hparams, layout, length)

        return jax.lax.fori_loop(0, count, body, state)

    return run


def evaluation_of_sent(step: Step) -> Callable[..., Sums]:
    def run(params: Tree, variables: Tree, batch: Batch, mask: jax.Array, hparams: Hparams) -> Sums:
        return step.evaluate(params, variables, add_places(batch, len(mask), mask), hparams)

    return run


def evaluation_of_resident(step: Step) -> Callable[..., Sums]:
    def run(
        params: Tree,
        variables: Tree,
        arrays: Arrays,
        indices: jax.Array,
        mask: jax.Array,
        hparams: Hparams,
        layout: Layout,
        length: int | None,
    ) -> Sums:
        batch = gather_on_devices(step, layout, arrays, indices, length, mask)
        return step.evaluate(params, variables, batch, hparams)

    return run
