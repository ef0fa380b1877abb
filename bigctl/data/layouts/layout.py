"""What a layout is: how the examples of one shape family become batches.

A layout is chosen once, when data is prepared (see `choose`), and kept on the `Dataset`. Whoever needs batches asks it
and never what kind of data it is. Layouts are frozen and hashable, so a compiled program can take one as a static
argument.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

Columns = dict[str, np.ndarray]
"""Arrays of a split by name, or of a batch, on the host."""

Arrays = Mapping[str, Any]
"""Columns as arrays of numpy or of jax."""

Indices = Any
"""Integers [batch], an array of numpy or of jax."""

EvaluationBatch = tuple[np.ndarray, np.ndarray, int | None]
"""Indices or starts [batch], mask float32 [batch] (0 where an index only pads), and the length."""


Stages = tuple[tuple[int, int], ...]
"""Of a training whose pictures grow: the position up to which each side is seen, and that side [pixels]."""


class TrainingPlan(Protocol):
    """Which examples make up the batch at a position: a pure function of (seed, position)."""

    @property
    def lengths(self) -> tuple[int | None, ...]:
        """What batches are padded to, the length of windows, the shorter side of pictures, or how many rows texts
        share; (None,) for fixed shapes. One program each."""

    def batch(self, position: int) -> tuple[np.ndarray, int | None]:
        """Indices of examples, or starts of windows, int [batch], [rows, most] of texts that share rows; and the length
        that they are gathered with."""


class EvaluationPlan(Protocol):
    """Every example of a split exactly once."""

    def batches(self) -> Iterator[EvaluationBatch]: ...


class Layout(Protocol):
    """How examples become batches."""

    kind: ClassVar[str]

    def size(self, columns: Arrays, *, training: bool) -> int:
        """Examples of a split, as training or as an evaluation counts them."""

    def training_plan(self, columns: Columns, *, batch_size: int, seed: int, frozen: bool = False) -> TrainingPlan:
        """The batches of training; `frozen` repeats the first one for ever."""

    def evaluation_plan(self, columns: Columns, *, batch_size: int | None, shards: int) -> EvaluationPlan:
        """The batches of an evaluation, of `batch_size` or else of the layout's own largest size, a multiple of
        `shards`."""

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """The places, counted from 0, of the examples that an evaluation plan gives."""

    def gather(self, columns: Arrays, indices: Indices, length: int | None, xp: ModuleType = np) -> dict[str, Any]:
        """The batch of these indices: columns [batch, ...].

        Args:
            columns: of a split, as arrays of numpy or, with `xp=jax.numpy`, of jax.
            indices: integers [batch], as a plan gives them.
            length: as the plan gives it.
        """

    def lengths(self, columns: Columns) -> np.ndarray | None:
        """Tokens of each example, int [N]; None where all examples have one shape."""

    def extra_sums(self, columns: Columns) -> Columns:
        """What an evaluation of this split has among its sums besides what the task computes."""


@runtime_checkable
class Parted(Protocol):
    """A layout of splits that have parts, such as the corpora of a mixture, each of which is scored by itself too."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parts."""

    def part(self, columns: Columns, indices: np.ndarray) -> str:
        """The part that a batch of an evaluation is of: all of it is of one."""

    def places(self, columns: Columns, indices: np.ndarray) -> np.ndarray:
        """As `Layout.rows`, which here depends on the split."""

    def part_sums(self, columns: Columns, name: str) -> Columns:
        """As `Layout.extra_sums`, of one part."""

    def drawn(self, columns: Arrays, draws: int) -> list[dict[str, Any]]:
        """What so many draws of the training split take from each part: its `name`, `tokens` of it, `share` of the
        draws, and `epochs` of it."""


class Order(Protocol):
    """A stream of examples, or of windows, that has a pure function of the seed for an order."""

    def indices(self, position: int, count: int) -> np.ndarray:
        """Those at positions [position, position + count): int [count]."""


class FixedPlan:
    """A `TrainingPlan` whose batches have one shape, or few in long stages, so that several steps can go into one
    dispatch.

    Indices come out of blocks computed at once: a call to the order costs what thousands of indices do.

    Args:
        order: of the examples.
        batch_size: examples a batch.
        length: of windows; None for examples of a fixed shape.
        ahead: indices computed at once.
        stages: lengths that come before that one.
    """

    length: int | None = None
    stages: Stages = ()

    def __init__(
        self, order: Order, batch_size: int, length: int | None = None, ahead: int = 2**14, stages: Stages = ()
    ):
        self.order, self.batch_size, self.length, self.ahead = order, batch_size, length, ahead
        self.stages = stages
        self._start, self._block = 0, np.empty(0, np.int32)

    @property
    def lengths(self) -> tuple[int | None, ...]:
        return (*(length for _, length in self.stages), self.length)

    def length_at(self, position: int) -> int | None:
        """What the batch at a position is gathered with."""
        return next((length for until, length in self.stages if position < until), self.length)

    def alike(self, position: int, count: int) -> int:
        """How many of the next `count` batches have the length of the first."""
        until = next((until for until, _ in self.stages if position < until), None)
        return count if until is None else min(count, -(-(until - position) // self.batch_size))

    @property
    def rows(self) -> int:
        """Of a batch, with those that only pad."""
        return self.batch_size

    def batch(self, position: int) -> tuple[np.ndarray, int | None]:
        return self.indices(position, self.batch_size), self.length_at(position)

    def batches(self, position: int, count: int) -> np.ndarray:
        """So many batches from a position on: int [count, rows]."""
        return self.indices(position, count * self.batch_size).reshape(count, self.batch_size)

    def indices(self, position: int, count: int) -> np.ndarray:
        """Indices at positions [position, position + count): int [count]."""
        offset = position - self._start
        if not 0 <= offset <= len(self._block) - count:
            self._start, self._block = position, self.order.indices(position, max(count, self.ahead))
            offset = 0
        return self._block[offset : offset + count]


def without_mirror(indices: Indices, n: int) -> tuple[Indices, Arrays]:
    """Examples out of the indices of an `AlternatingPlan` over n of them, and the column `mirrored`, bool [batch]."""
    mirrored = indices >= n
    return indices - n * mirrored, {"mirrored": mirrored}


def evaluation_batch_size(count: int, batch_size: int | None, largest: int, shards: int) -> int:
    """As asked for, else all examples up to `largest`; rounded up to a multiple of `shards`."""
    return math.ceil((batch_size or min(count, largest)) / shards) * shards
