"""Packed documents of several corpora, drawn in proportion to weights, and scored for each corpus by itself too.

Each corpus is packed by itself, as `packed` has it, so no window has documents of two; which corpus a draw is of
follows `mixed`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from bigctl.data.layouts.layout import Arrays, Columns, FixedPlan, Indices, evaluation_batch_size
from bigctl.data.layouts.mixed import Corpora, draws, seed_of, sizes
from bigctl.data.layouts.packed import Packed
from bigctl.data.layouts.windows import LARGEST_BATCH
from bigctl.data.sampler import BatchPlan, RowEvaluationPlan


@dataclass(frozen=True)
class MixedPacked(Corpora):
    """Windows of whole documents; an index is a window. The columns are those of `Packed`, of one corpus after the
    other, with `ends` and `bytes` as of `MixedWindows`, and `window_ends` [K], the windows where corpora end.

    Attributes:
        block: length of a window [tokens].
        most: pieces in a window, at most.
        names: of the corpora [K].
        weights: what part of the draws each corpus has, adding up to 1 [K]; None for those of their windows. Programs
            do not depend on it.
    """

    block: int
    most: int
    names: tuple[str, ...]
    weights: tuple[float, ...] | None = field(default=None, compare=False)
    kind: ClassVar[str] = Packed.kind

    def size(self, columns: Arrays, *, training: bool) -> int:
        """Windows of all corpora; in training of those that are drawn."""
        windows = _windows(columns)
        if not training:
            return sum(windows)
        return sum(each for each, share in zip(windows, self.shares(columns), strict=True) if share)

    def shares(self, columns: Arrays) -> tuple[float, ...]:
        """What part of the draws each corpus of the training split has."""
        windows = _windows(columns)
        return self.weights if self.weights is not None else tuple(each / sum(windows) for each in windows)

    def drawn(self, columns: Arrays, draws: int) -> list[dict[str, Any]]:
        """See `Parted`."""
        found = []
        for name, tokens, windows, share in zip(
            self.names, sizes(columns), _windows(columns), self.shares(columns), strict=True
        ):
            found.append({"name": name, "tokens": tokens, "share": share, "epochs": draws * share / windows})
        return found

    def training_plan(self, columns: Columns, *, batch_size: int, seed: int, frozen: bool = False) -> FixedPlan:
        windows = tuple(_windows(columns))
        seeds = tuple(seed if len(windows) == 1 else seed_of(seed, name) for name in self.names)
        order = _Order(windows, self.shares(columns), seeds, batch_size if frozen else 0)
        return FixedPlan(order, batch_size, self.block)

    def evaluation_plan(self, columns: Columns, *, batch_size: int | None, shards: int) -> _EvaluationPlan:
        windows = tuple(_windows(columns))
        largest = max(1, LARGEST_BATCH // self.block)
        return _EvaluationPlan(windows, evaluation_batch_size(max(windows), batch_size, largest, shards))

    def rows(self, indices: np.ndarray) -> np.ndarray:
        return indices

    def places(self, columns: Columns, indices: np.ndarray) -> np.ndarray:
        """See `Parted`."""
        return indices

    def part(self, columns: Columns, indices: np.ndarray) -> str:
        """The corpus that a batch of an evaluation is of."""
        return self.names[int(np.searchsorted(columns["window_ends"], indices[0], side="right"))]

    def gather(self, columns: Arrays, indices: Indices, length: int | None, xp: ModuleType = np) -> dict[str, Any]:
        """As of `Packed`."""
        return Packed(self.block, self.most).gather(columns, indices, length, xp)


def joined(parts: Mapping[str, Columns]) -> Columns:
    """The columns that `Packed` describes, but for the tokens, of several corpora that stand one after the other."""
    first = pieces = 0
    found: dict[str, list[np.ndarray]] = {name: [] for name in ("piece_start", "piece_length", "piece_place")}
    edges, windows = [np.zeros(1, np.int64)], list[int]()
    for columns in parts.values():
        found["piece_start"].append(columns["piece_start"] + first)
        for name in ("piece_length", "piece_place"):
            found[name].append(columns[name])
        edges.append(columns["window_pieces"][1:] + pieces)
        windows.append(len(columns["window_pieces"]) - 1)
        first, pieces = first + len(columns["inputs"]), pieces + len(columns["piece_start"])
    whole = {name: np.concatenate(each) for name, each in found.items()}
    return whole | {"window_pieces": np.concatenate(edges), "window_ends": np.cumsum(windows, dtype=np.int64)}


def _windows(columns: Arrays) -> list[int]:
    """Windows of each corpus."""
    found: list[int] = np.diff(np.asarray(columns["window_ends"]), prepend=0).tolist()
    return found


@dataclass(frozen=True)
class _Order:
    """The order of training windows.

    Attributes:
        windows: of the corpora [K].
        shares, seeds: see `MixedPlan`.
        frozen: repeat the first batch for ever, given as that batch's size; 0 for no.
    """

    windows: tuple[int, ...]
    shares: tuple[float, ...]
    seeds: tuple[int, ...]
    frozen: int = 0

    def indices(self, position: int, count: int) -> np.ndarray:
        """Windows at positions [position, position + count): int [count]."""
        if self.frozen:
            return self._drawn(0, self.frozen)[np.arange(position, position + count) % self.frozen]
        return self._drawn(position, count)

    def _drawn(self, position: int, count: int) -> np.ndarray:
        owner, number = draws(self.shares, position, count)
        found, begin = np.empty(count, np.int32), 0
        for corpus, (windows, seed) in enumerate(zip(self.windows, self.seeds, strict=True)):
            own = owner == corpus
            if own.any():  # its draws here are neighbours in its own order
                found[own] = begin + BatchPlan(windows, seed).indices(int(number[own][0]), int(own.sum()))
            begin += windows
        return found


@dataclass(frozen=True)
class _EvaluationPlan:
    """All windows of one corpus after the other; a batch is of one corpus, and the last one of each is padded and
    masked."""

    windows: tuple[int, ...]
    batch_size: int

    @property
    def num_examples(self) -> int:
        return sum(self.windows)

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray, int | None]]:
        """Triples (windows [batch_size], mask float32 [batch_size], None)."""
        begin = 0
        for windows in self.windows:
            for indices, mask, length in RowEvaluationPlan(windows, self.batch_size).batches():
                yield indices + begin, mask, length
            begin += windows
