"""Windows of one long text, all of a length: for training in random order, for evaluation one after the other.

A window at `start` has the tokens [start, start + block) as inputs and those one further on as targets. Training cuts
the text into windows anew in every epoch, from an offset drawn for it, so that each token is a target about once an
epoch and the cuts are never the same; evaluation predicts every token but the first exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from bigctl.data.layouts.layout import Arrays, Columns, FixedPlan, Indices, evaluation_batch_size
from bigctl.data.sampler import BatchPlan, mix

LARGEST_BATCH = 2**14
"""Tokens of an evaluation batch."""

BYTES_PER_TOKEN = "bytes_per_token"
"""Among the sums of an evaluation: the bytes in UTF-8 that a token of the split stands for, []."""

NO_TARGET = -1
"""Stands for a target beyond the end of the text."""

_OFFSETS = np.uint64(0x77696E646F77)  # keys the offsets apart from the order of windows


def count(tokens: int, block: int) -> int:
    """Windows of a training epoch; at the two ends of the text fewer than two windows' tokens are left out."""
    return max(1, (tokens - block) // block)


def in_order(tokens: int, block: int) -> int:
    """Windows of an evaluation, the last of which may reach beyond the end."""
    return -(-(tokens - 1) // block)


@dataclass(frozen=True)
class Windows:
    """Windows of one long text: `inputs` are its tokens [T], `bytes` [1] its length in UTF-8, where that is known; an
    index is a start.

    Attributes:
        block: length of a window [tokens].
    """

    block: int
    kind: ClassVar[str] = "windows"

    def size(self, columns: Arrays, *, training: bool) -> int:
        return (count if training else in_order)(len(columns["inputs"]), self.block)

    def training_plan(self, columns: Columns, *, batch_size: int, seed: int, frozen: bool = False) -> FixedPlan:
        order = WindowPlan(len(columns["inputs"]), self.block, seed, batch_size if frozen else 0)
        return FixedPlan(order, batch_size, self.block)

    def evaluation_plan(self, columns: Columns, *, batch_size: int | None, shards: int) -> WindowEvaluationPlan:
        largest = max(1, LARGEST_BATCH // self.block)
        size = evaluation_batch_size(self.size(columns, training=False), batch_size, largest, shards)
        return WindowEvaluationPlan(len(columns["inputs"]), self.block, size)

    def rows(self, indices: np.ndarray) -> np.ndarray:
        return indices // self.block

    def gather(self, columns: Arrays, indices: Indices, length: int | None, xp: ModuleType = np) -> dict[str, Any]:
        """`inputs` and `targets`, int32 [batch, length]; beyond the end of the text targets are NO_TARGET, and inputs
        repeat the last token."""
        return read_windows(columns, indices, len(columns["inputs"]) - 1, length or self.block, xp)

    def lengths(self, columns: Columns) -> np.ndarray | None:
        return None

    def extra_sums(self, columns: Columns) -> Columns:
        return bytes_per_token(columns)


def read_windows(columns: Arrays, starts: Indices, last: Indices, length: int, xp: ModuleType) -> dict[str, Any]:
    """Windows of one length from their starts on; `last` is the place of the last token of each one's text."""
    places = starts[:, None] + xp.arange(length + 1, dtype=starts.dtype)
    found = columns["inputs"][xp.minimum(places, last)].astype(xp.int32)
    return {"inputs": found[:, :-1], "targets": xp.where(places[:, 1:] > last, NO_TARGET, found[:, 1:])}


def bytes_per_token(columns: Columns) -> Columns:
    """What an evaluation of one text is told of its bytes; nothing of ready-made tokens."""
    if "bytes" not in columns:
        return {}
    return {BYTES_PER_TOKEN: np.asarray(columns["bytes"][0] / len(columns["inputs"]), np.float64)}


@dataclass(frozen=True)
class WindowPlan:
    """The order of training windows; it stands in for a `BatchPlan`, and gives starts where that gives examples.

    Attributes:
        tokens: length of the text, at least block + 1.
        block: length of a window.
        seed: the experiment's seed.
        frozen: repeat the first batch for ever, given as that batch's size; 0 for no.
    """

    tokens: int
    block: int
    seed: int
    frozen: int = 0

    def __post_init__(self) -> None:
        if self.tokens <= self.block:
            raise ValueError(f"a text of {self.tokens} tokens has no window of {self.block} and its targets")

    @property
    def num_examples(self) -> int:
        return count(self.tokens, self.block)

    def indices(self, position: int, count: int) -> np.ndarray:
        """Starts of the windows at positions [position, position + count): integers [count]."""
        windows = BatchPlan(self.num_examples, self.seed, self.frozen).indices(position, count).astype(np.int64)
        positions = np.arange(position, position + count, dtype=np.int64)
        epochs = (positions % self.frozen if self.frozen else positions) // self.num_examples
        room = min(self.block, self.tokens - self.num_examples * self.block)  # offsets, of which 0 is one
        offsets = mix(mix(np.uint64(self.seed), _OFFSETS), epochs.astype(np.uint64)) % np.uint64(room)
        return (offsets.astype(np.int64) + windows * self.block).astype(index_type(self.tokens))


@dataclass(frozen=True)
class WindowEvaluationPlan:
    """All windows of a text in order; the last one may reach beyond its end, the last batch is padded and masked."""

    tokens: int
    block: int
    batch_size: int

    @property
    def num_examples(self) -> int:
        return in_order(self.tokens, self.block)

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """Triples (starts [batch_size], mask float32 [batch_size], block)."""
        starts = np.arange(0, self.tokens - 1, self.block, dtype=index_type(self.tokens))
        for first in range(0, len(starts), self.batch_size):
            found = starts[first : first + self.batch_size]
            mask = (np.arange(self.batch_size) < len(found)).astype(np.float32)
            yield np.pad(found, (0, self.batch_size - len(found)), mode="edge"), mask, self.block


def index_type(tokens: int) -> Any:
    """What starts in a text of so many tokens are numbers of."""
    return np.int32 if tokens < 2**31 else np.int64
