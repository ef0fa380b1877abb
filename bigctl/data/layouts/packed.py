"""Documents packed into windows of one length: none sees another, and little of a window is padding.

A document of n tokens is n - 1 pairs of a token and the one after it. Documents that are longer than a window are cut
into pieces of its length; pieces are put into windows as best-fit decreasing does (Johnson 1974; for language models
Ding et al. 2024, "Fewer Truncations Improve Language Modeling"), the largest first, each where it leaves the least
room. Which pieces share a window depends on the data and the length alone, so an epoch is a permutation of windows, and
an evaluation all of them in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from bigctl.data.layouts.layout import Arrays, Columns, FixedPlan, Indices, evaluation_batch_size
from bigctl.data.layouts.windows import LARGEST_BATCH, NO_TARGET, bytes_per_token
from bigctl.data.sampler import BatchPlan, RowEvaluationPlan, mix

PADDING = 0
"""The segment of places that hold no document; those of a window's documents are 1, 2, ..."""

_SHUFFLE = np.uint64(0x7061636B6564)  # keys the order of pieces of one length


@dataclass(frozen=True)
class Packed:
    """Windows of whole documents; an index is a window.

    Of a split `inputs` are all tokens [T]; `piece_start` [P] is the place among them of the first token of each piece,
    `piece_length` [P] its pairs, `piece_place` [P] where in its window it lies; window w has the pieces from
    `window_pieces[w]` to `window_pieces[w + 1]`.

    Attributes:
        block: length of a window [tokens].
        most: pieces in a window, at most.
    """

    block: int
    most: int
    kind: ClassVar[str] = "packed"

    def size(self, columns: Arrays, *, training: bool) -> int:
        return len(columns["window_pieces"]) - 1

    def training_plan(self, columns: Columns, *, batch_size: int, seed: int, frozen: bool = False) -> FixedPlan:
        order = BatchPlan(self.size(columns, training=True), seed, batch_size if frozen else 0)
        return FixedPlan(order, batch_size, self.block)

    def evaluation_plan(self, columns: Columns, *, batch_size: int | None, shards: int) -> RowEvaluationPlan:
        count = self.size(columns, training=False)
        largest = max(1, LARGEST_BATCH // self.block)
        return RowEvaluationPlan(count, evaluation_batch_size(count, batch_size, largest, shards))

    def rows(self, indices: np.ndarray) -> np.ndarray:
        return indices

    def gather(self, columns: Arrays, indices: Indices, length: int | None, xp: ModuleType = np) -> dict[str, Any]:
        """int32 [batch, block]: `inputs`; `targets`, NO_TARGET where a place only pads; `segments`, which number the
        documents of a window from 1 on and are PADDING where there is none; `positions`, from 0 on in each of them."""
        places = xp.arange(self.block, dtype=xp.int32)
        first, after = (columns["window_pieces"][indices + more][:, None] for more in (0, 1))
        low, high = first + 0 * places, after + 0 * places
        for _ in range((self.most - 1).bit_length()):  # the last piece that begins at a place or before it
            middle = low + (high - low) // 2
            beyond = columns["piece_place"][middle] > places
            low, high = xp.where(beyond, low, middle), xp.where(beyond, middle, high)
        positions = places - columns["piece_place"][low]
        real = positions < columns["piece_length"][low]
        found = columns["piece_start"][low] + xp.where(real, positions, 0)
        pairs = columns["inputs"][xp.stack([found, found + 1])].astype(xp.int32)
        batch = {
            "inputs": xp.where(real, pairs[0], 0),
            "targets": xp.where(real, pairs[1], NO_TARGET),
            "segments": xp.where(real, low - first + 1, PADDING),
            "positions": xp.where(real, positions, 0),
        }
        return {name: values.astype(xp.int32) for name, values in batch.items()}

    def lengths(self, columns: Columns) -> np.ndarray | None:
        return None

    def extra_sums(self, columns: Columns) -> Columns:
        return bytes_per_token(columns)


# ------------------------------------------------------------------------------------------------------------- packing


def pack(bounds: np.ndarray, block: int) -> Columns:
    """The columns that `Packed` describes, but for the tokens.

    Args:
        bounds: where documents begin, ascending, and where the last one ends, int64 [D + 1].
        block: length of a window.
    """
    pairs = np.maximum(np.diff(bounds) - 1, 0)
    count = -(-pairs // block)  # pieces of each document
    first = np.repeat(np.cumsum(count) - count, count)
    offset = (np.arange(len(first)) - first) * block
    starts = np.repeat(bounds[:-1], count) + offset
    lengths = np.minimum(np.repeat(pairs, count) - offset, block)
    # Longest first; those of one length in an order that has nothing to do with that of the data.
    order = np.argsort(mix(_SHUFFLE, np.arange(len(lengths), dtype=np.uint64)))
    order = order[np.argsort(-lengths[order], kind="stable")]
    windows = best_fit(lengths[order], block)
    order = order[np.argsort(windows, kind="stable")]
    sizes = np.bincount(windows) if len(windows) else np.empty(0, np.int64)
    edges = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    before = np.cumsum(lengths[order]) - lengths[order]
    places = before - np.repeat(before[edges[:-1]], sizes)
    return {
        "piece_start": starts[order].astype(np.int64),
        "piece_length": lengths[order].astype(np.int32),
        "piece_place": places.astype(np.int32),
        "window_pieces": edges,
    }


def best_fit(lengths: np.ndarray, block: int) -> np.ndarray:
    """The window of each piece, int64 [P], counted from 0 without a gap.

    It is the packing that goes through the pieces one by one and puts each into that window, of those with room for it,
    which has the least; but pieces of one length, and windows of one room, are taken all at once.

    Args:
        lengths: of pieces, from 1 to `block`, descending.
        block: length of a window.
    """
    found = np.empty(len(lengths), np.int64)
    rooms: list[list[np.ndarray]] = [[] for _ in range(block + 1)]  # windows by the room that is left in them
    opened = 0
    values, begins = np.unique(-lengths, return_index=True)
    ends = [*begins.tolist(), len(lengths)][1:]
    for length, start, stop in zip((-values).tolist(), begins.tolist(), ends, strict=True):
        room = length
        while start < stop:
            while room < block and not rooms[room]:
                room += 1
            fit = room // length
            wanted = -(-(stop - start) // fit)
            if rooms[room]:
                windows = rooms[room].pop()
                if len(windows) > wanted:
                    rooms[room].append(windows[wanted:])
                    windows = windows[:wanted]
            else:
                windows = np.arange(opened, opened + wanted)
                opened += wanted
            taken = min(stop - start, fit * len(windows))
            found[start : start + taken] = np.repeat(windows, fit)[:taken]
            full, part = divmod(taken, fit)
            if full:
                rooms[room - fit * length].append(windows[:full])
            if part:
                rooms[room - part * length].append(windows[full:])
            start += taken
    return found
