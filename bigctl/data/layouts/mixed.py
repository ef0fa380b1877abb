"""Windows of several corpora, drawn in proportion to weights, and scored for each corpus by itself too.

Draw p is of the corpus that is due: draw j of a corpus with share w is due at (j + 1/2) / w, and all draws stand in the
order in which they are due. So any run of draws has as many of each corpus as its share asks for, to within one or two,
from the first one on and wherever it begins; nothing is counted, and nothing has to be remembered. Within a corpus its
draws are windows as `WindowPlan` orders them: each once an epoch of that corpus, in an order of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from bigctl.data.layouts.layout import Arrays, Columns, FixedPlan, Indices, evaluation_batch_size
from bigctl.data.layouts.windows import (
    BYTES_PER_TOKEN,
    LARGEST_BATCH,
    WindowEvaluationPlan,
    WindowPlan,
    count,
    in_order,
    index_type,
    read_windows,
)
from bigctl.data.sampler import mix


class Corpora:
    """What layouts of several corpora say alike of the columns `ends` and `bytes`, see `MixedWindows`."""

    names: tuple[str, ...]

    def lengths(self, columns: Columns) -> np.ndarray | None:
        return None

    def extra_sums(self, columns: Columns) -> Columns:
        known = columns.get("bytes")
        return _bytes_per_token(known.sum(), len(columns["inputs"])) if known is not None and known.all() else {}

    def part_sums(self, columns: Columns, name: str) -> Columns:
        """`extra_sums` of one corpus."""
        number = self.names.index(name)
        known = columns["bytes"][number] if "bytes" in columns else 0
        return _bytes_per_token(known, sizes(columns)[number]) if known else {}


@dataclass(frozen=True)
class MixedWindows(Corpora):
    """Windows of several texts that stand one after the other in `inputs` [T]; `ends` [K] are the places where they
    end, `bytes` [K] their lengths in UTF-8, 0 where unknown. An index is a start, and no window has tokens of two.

    Attributes:
        block: length of a window [tokens].
        names: of the corpora [K].
        weights: what part of the draws each corpus has, adding up to 1 [K]; None for those of their lengths. Programs
            do not depend on it.
    """

    block: int
    names: tuple[str, ...]
    weights: tuple[float, ...] | None = field(default=None, compare=False)
    kind: ClassVar[str] = "windows"

    def size(self, columns: Arrays, *, training: bool) -> int:
        """Windows of all corpora; in training of those that are drawn."""
        if not training:
            return sum(in_order(tokens, self.block) for tokens in sizes(columns))
        windows = self._windows(columns)
        return sum(each for each, share in zip(windows, self.shares(columns), strict=True) if share)

    def shares(self, columns: Arrays) -> tuple[float, ...]:
        """What part of the draws each corpus of the training split has."""
        if self.weights is not None:
            return self.weights
        windows = self._windows(columns)
        return tuple(each / sum(windows) for each in windows)

    def drawn(self, columns: Arrays, draws: int) -> list[dict[str, Any]]:
        """See `Parted`."""
        found = []
        for name, tokens, share in zip(self.names, sizes(columns), self.shares(columns), strict=True):
            epochs = draws * share / count(tokens, self.block) if share else 0.0
            found.append({"name": name, "tokens": tokens, "share": share, "epochs": epochs})
        return found

    def training_plan(self, columns: Columns, *, batch_size: int, seed: int, frozen: bool = False) -> FixedPlan:
        tokens = tuple(sizes(columns))
        seeds = tuple(seed if len(tokens) == 1 else seed_of(seed, name) for name in self.names)
        order = MixedPlan(tokens, self.shares(columns), seeds, self.block, batch_size if frozen else 0)
        return FixedPlan(order, batch_size, self.block)

    def evaluation_plan(self, columns: Columns, *, batch_size: int | None, shards: int) -> MixedEvaluationPlan:
        largest = max(1, LARGEST_BATCH // self.block)
        longest = max(in_order(tokens, self.block) for tokens in sizes(columns))
        size = evaluation_batch_size(longest, batch_size, largest, shards)
        return MixedEvaluationPlan(tuple(sizes(columns)), self.block, size)

    def rows(self, indices: np.ndarray) -> np.ndarray:
        raise NotImplementedError("where a window is depends on the split: see `places`")

    def places(self, columns: Columns, indices: np.ndarray) -> np.ndarray:
        """What `rows` is for other layouts: the places of windows among all that an evaluation has."""
        found = sizes(columns)
        windows = np.array([in_order(tokens, self.block) for tokens in found], np.int64)
        owner = np.searchsorted(columns["ends"], indices, side="right")
        begins = np.asarray(columns["ends"]) - found
        return (np.cumsum(windows) - windows)[owner] + (indices - begins[owner]) // self.block

    def part(self, columns: Columns, indices: np.ndarray) -> str:
        """The corpus that a batch of an evaluation is of."""
        return self.names[int(np.searchsorted(columns["ends"], indices[0], side="right"))]

    def gather(self, columns: Arrays, indices: Indices, length: int | None, xp: ModuleType = np) -> dict[str, Any]:
        """As of `Windows`, with the end of its corpus as the end of each window's text."""
        ends = columns["ends"]
        last = ends[xp.searchsorted(ends, indices, side="right")].astype(indices.dtype)[:, None] - 1
        return read_windows(columns, indices, last, length or self.block, xp)

    def _windows(self, columns: Arrays) -> list[int]:
        """Windows of a training epoch of each corpus; none of one that is too short, which is never drawn."""
        return [count(tokens, self.block) if tokens > self.block else 0 for tokens in sizes(columns)]


def sizes(columns: Arrays) -> list[int]:
    """Tokens of each corpus."""
    found: list[int] = np.diff(np.asarray(columns["ends"]), prepend=0).tolist()
    return found


def _bytes_per_token(size: int, tokens: int) -> Columns:
    return {BYTES_PER_TOKEN: np.asarray(size / tokens, np.float64)}


def seed_of(seed: int, name: str) -> int:
    """The seed of a corpus's order, which depends on no other corpus."""
    return int(mix(np.uint64(seed), np.uint64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))))


# ------------------------------------------------------------------------------------------------------------- order


@dataclass(frozen=True)
class MixedPlan:
    """The order of training windows; an `Order`, as `WindowPlan` is one of one text.

    Attributes:
        tokens: lengths of the corpora, which stand one after the other [K].
        shares: what part of the draws each has, adding up to 1 [K].
        seeds: of the order within each [K].
        block: length of a window.
        frozen: repeat the first batch for ever, given as that batch's size; 0 for no.
    """

    tokens: tuple[int, ...]
    shares: tuple[float, ...]
    seeds: tuple[int, ...]
    block: int
    frozen: int = 0

    def indices(self, position: int, count: int) -> np.ndarray:
        """Starts of the windows at positions [position, position + count): integers [count]."""
        if self.frozen:
            first = self._starts(0, self.frozen)
            return first[np.arange(position, position + count) % self.frozen]
        return self._starts(position, count)

    def _starts(self, position: int, count: int) -> np.ndarray:
        owner, number = draws(self.shares, position, count)
        found = np.empty(count, index_type(sum(self.tokens)))
        begin = 0
        for corpus, (tokens, seed) in enumerate(zip(self.tokens, self.seeds, strict=True)):
            own = owner == corpus
            if own.any():  # its draws here are neighbours in its own order
                plan = WindowPlan(tokens, self.block, seed)
                found[own] = begin + plan.indices(int(number[own][0]), int(own.sum())).astype(np.int64)
            begin += tokens
        return found


def draws(shares: Sequence[float], position: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Of which corpus each of the draws [position, position + count) is, and which of that corpus's draws it is: int64
    [count] each.

    Args:
        shares: of the corpora, adding up to 1; none is below 0.
    """
    drawn = [corpus for corpus, share in enumerate(shares) if share > 0]
    # The draws due before a time t are t of them, give or take half a draw a corpus: what is asked for is in here.
    begin, end = position - len(drawn) - 2, position + count + len(drawn) + 2
    owners, numbers, due, before = [], [], [], 0
    for corpus in drawn:
        share = shares[corpus]
        first = max(0, int(np.floor(share * begin)) - 1)
        own = np.arange(first, int(np.ceil(share * end)) + 1, dtype=np.int64)
        owners.append(np.full(len(own), corpus, np.int64))
        numbers.append(own)
        due.append((own + 0.5) / share)
        before += first
    owner, number = np.concatenate(owners), np.concatenate(numbers)
    order = np.lexsort((owner, np.concatenate(due)))[position - before :][:count]
    return owner[order], number[order]


@dataclass(frozen=True)
class MixedEvaluationPlan:
    """All windows of one corpus after the other, each in order; a batch is of one corpus, and the last one of each is
    padded and masked.

    Attributes:
        tokens: lengths of the corpora [K].
    """

    tokens: tuple[int, ...]
    block: int
    batch_size: int

    @property
    def num_examples(self) -> int:
        return sum(in_order(tokens, self.block) for tokens in self.tokens)

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """Triples (starts [batch_size], mask float32 [batch_size], block)."""
        begin, kind = 0, index_type(sum(self.tokens))
        for tokens in self.tokens:
            for starts, mask, block in WindowEvaluationPlan(tokens, self.block, self.batch_size).batches():
                yield (starts.astype(np.int64) + begin).astype(kind), mask, block
            begin += tokens
