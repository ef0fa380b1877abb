"""Batches of texts of like length, so that little of them is padding.

The order is still a pure function of (seed, position): a window of many batches is drawn from the stream of examples,
sorted by length, cut into batches, and the cuts are shuffled by (seed, window). Each batch is padded to one of a few
lengths, so a few programs are compiled and no more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from bigctl.data.layouts.layout import Arrays, Columns, Indices, evaluation_batch_size
from bigctl.data.sampler import BatchPlan, permutation

LARGEST_BATCH = 128
"""Texts of an evaluation batch."""

NO_LABEL = -1
"""Stands for the label of a place that holds no token."""

MULTIPLE = 8
"""Of which padded lengths are, for the sake of vector units."""

_CUTS = 0x6C656E67  # keys the shuffle of a window's batches apart from the order of examples


@dataclass(frozen=True)
class Ragged:
    """Examples of any number of tokens: all of them one after the other in `inputs` [T], `offsets` [N + 1] saying where
    each begins.

    Attributes:
        edges: the lengths that batches of training are padded to, ascending.
        window: training batches sorted by length among themselves, see `LengthPlan`.
        token_columns: the columns [T] that are gathered as tokens are, `inputs` first; others have a row an example.
    """

    edges: tuple[int, ...]
    window: int = 1
    token_columns: tuple[str, ...] = ("inputs",)
    kind: ClassVar[str] = "ragged"

    def size(self, columns: Arrays, *, training: bool) -> int:
        return len(columns["offsets"]) - 1

    def training_plan(self, columns: Columns, *, batch_size: int, seed: int, frozen: bool = False) -> LengthPlan:
        stream = BatchPlan(self.size(columns, training=True), seed, batch_size if frozen else 0)
        return LengthPlan(stream, self.lengths(columns), batch_size, self.edges, self.window)

    def evaluation_plan(self, columns: Columns, *, batch_size: int | None, shards: int) -> LengthEvaluationPlan:
        count = self.size(columns, training=False)
        size = evaluation_batch_size(count, batch_size, LARGEST_BATCH, shards)
        return LengthEvaluationPlan(self.lengths(columns), size, self.edges)

    def rows(self, indices: np.ndarray) -> np.ndarray:
        return indices

    def gather(self, columns: Arrays, indices: Indices, length: int | None, xp: ModuleType = np) -> dict[str, Any]:
        """As `Layout.gather`: columns of tokens are int32 [batch, length], beyond the end of a text 0 for `inputs` and
        NO_LABEL for others; besides them `lengths` int32 [batch]."""
        if length is None:
            raise ValueError("texts are padded to a length, and none is given")
        starts = columns["offsets"][indices]
        lengths = xp.minimum(columns["offsets"][indices + 1] - starts, length).astype(xp.int32)
        place = xp.arange(length)
        real = place < lengths[:, None]
        where = xp.minimum(starts[:, None] + place, len(columns["inputs"]) - 1)
        batch = {"lengths": lengths}
        for name, values in columns.items():
            if name in self.token_columns:
                padding = 0 if name == "inputs" else NO_LABEL
                batch[name] = xp.where(real, values[where], padding).astype(xp.int32)
            elif name == "segment_start":
                batch[name] = xp.minimum(values[indices], length)
            elif name != "offsets":
                batch[name] = values[indices]
        return batch

    def lengths(self, columns: Columns) -> np.ndarray:
        return np.diff(columns["offsets"])

    def extra_sums(self, columns: Columns) -> Columns:
        return {}


@dataclass
class LengthPlan:
    """The batches of a training split of texts.

    Attributes:
        stream: the order of examples.
        sizes: tokens of every example, int [N].
        batch_size: examples a batch.
        edges: the lengths that batches are padded to, ascending.
        window: batches sorted among themselves, an epoch's at most; 1 leaves the stream's order.
    """

    stream: BatchPlan
    sizes: np.ndarray
    batch_size: int
    edges: tuple[int, ...]
    window: int
    _number: int = field(default=-1, repr=False)
    _batches: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.int32), repr=False)

    def __post_init__(self) -> None:
        # Sorted by length, copies of one example would fill a batch: no window is longer than an epoch, nor than the
        # one batch that is trained on for ever.
        self.window = max(1, min(self.window, self.stream.num_examples // self.batch_size))
        if self.stream.frozen:
            self.window = 1

    @property
    def lengths(self) -> tuple[int | None, ...]:
        return self.edges

    @property
    def span(self) -> int:
        """Examples of a window."""
        return self.window * self.batch_size

    def batch(self, position: int) -> tuple[np.ndarray, int]:
        """The batch at a position: indices int32 [batch_size], and the length that it is padded to."""
        number, offset = divmod(position, self.span)
        if number != self._number:
            self._number, self._batches = number, self._draw(number)
        indices = self._batches[offset // self.batch_size]
        return indices, padded(int(self.sizes[indices].max()), self.edges)

    def drawn(self, number: int) -> np.ndarray:
        """The examples of a window, in the order of the stream."""
        return self.stream.indices(number * self.span, self.span)

    def _draw(self, number: int) -> np.ndarray:
        indices = self.drawn(number)
        order = np.argsort(self.sizes[indices], kind="stable")
        batches = indices[order].reshape(self.window, self.batch_size)
        return batches[permutation(self.window, self.stream.seed, _CUTS, number)]


@dataclass(frozen=True)
class LengthEvaluationPlan:
    """Every example exactly once, by length; the last batch is padded and masked."""

    lengths: np.ndarray
    batch_size: int
    edges: tuple[int, ...]

    def __post_init__(self) -> None:
        longest = int(self.lengths.max(initial=1))
        if longest > self.edges[-1]:  # than any training text
            object.__setattr__(self, "edges", (*self.edges, longest))

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """Triples (indices int32 [batch_size], mask float32 [batch_size], padded length)."""
        order = np.argsort(self.lengths, kind="stable").astype(np.int32)
        for start in range(0, len(order), self.batch_size):
            found = order[start : start + self.batch_size]
            indices = np.concatenate([found, np.repeat(found[-1:], self.batch_size - len(found))])
            mask = (np.arange(self.batch_size) < len(found)).astype(np.float32)
            yield indices, mask, padded(int(self.lengths[found[-1]]), self.edges)


def padded(length: int, edges: tuple[int, ...]) -> int:
    """The smallest of the lengths that programs are compiled for which holds a text of this length."""
    return edges[int(np.searchsorted(edges, length))]


def choose_edges(lengths: np.ndarray, batch_size: int, shapes: int) -> tuple[int, ...]:
    """At most `shapes` lengths to pad batches to, which leave the least padding, ascending.

    Batches sorted by length over the whole split stand for those of the windows. The choice is exact: over the lengths
    that their longest texts have, in multiples of 8, by dynamic programming.

    Args:
        lengths: of every training text, int [N].
        batch_size: examples a batch.
        shapes: how many lengths.
    """
    shorter = np.cumsum(np.bincount(lengths))  # of a histogram, which is small however many texts there are
    last = np.minimum(np.arange(batch_size, len(lengths) + batch_size, batch_size), len(lengths)) - 1
    longest = np.searchsorted(shorter, last, side="right")
    rounded = np.minimum(-(-longest // MULTIPLE) * MULTIPLE, longest[-1])  # a model may have no position to spare
    candidates, counts = np.unique(rounded, return_counts=True)
    # cost[i]: padded tokens of all batches up to candidate i where i is an edge, with as many edges as rounds so far.
    total = np.concatenate([[0], np.cumsum(counts)])
    cost = candidates * total[1:]
    before = [np.full(len(candidates), -1)]
    for _ in range(min(shapes, len(candidates)) - 1):
        through = cost[None, :] + candidates[:, None] * (total[1:, None] - total[None, 1:])
        through = np.where(np.arange(len(candidates))[None, :] < np.arange(len(candidates))[:, None], through, np.inf)
        best = through.argmin(1)
        improved = through.min(1)
        before.append(np.where(improved < cost, best, before[-1]))
        cost = np.minimum(cost, improved)
    chosen, place = [], len(candidates) - 1
    for choice in reversed(before):
        if place < 0:
            break
        chosen.append(int(candidates[place]))
        place = int(choice[place])
    return tuple(sorted(chosen))
