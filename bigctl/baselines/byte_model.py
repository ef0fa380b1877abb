"""An n-gram model of bytes: what a text says of its next byte by the few before it.

Orders are interpolated as Witten & Bell (1991) do: each context gives the next shorter one the weight of the distinct
bytes that were seen after it. Everything is counted by sorting, a whole text at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8, UInt64

ORDER = 6
"""Bytes before the next one that are looked at."""

MOST = 2**23
"""Bytes of a training text that are counted: its last ones."""

Text = UInt8[np.ndarray, " bytes"]
Keys = UInt64[np.ndarray, " bytes"]


@dataclass(frozen=True)
class _Order:
    """Contexts of one length, ascending: how often each was seen, and how many distinct bytes came after it; and the
    same contexts with the byte after them."""

    contexts: Keys
    totals: np.ndarray
    distinct: np.ndarray
    grams: Keys
    counts: np.ndarray


class ByteModel:
    """Args: text: what is learned from, of which no more than the last `MOST` bytes are looked at."""

    def __init__(self, text: Text, order: int = ORDER):
        self.orders = [_count(_keys(text[-MOST:], length), text[-MOST:], length) for length in range(order + 1)]

    def bits_per_byte(self, text: Text) -> float:
        """Cross-entropy of each byte of a text given those before it [bits]; NaN for an empty one."""
        if not len(text):
            return math.nan
        probability = np.full(len(text), 1 / 256)
        for length, order in enumerate(self.orders):
            contexts = _keys(text, length)
            total, distinct = (_looked_up(order.contexts, each, contexts) for each in (order.totals, order.distinct))
            count = _looked_up(order.grams, order.counts, _with_next(contexts, text))
            count[:length], total[:length] = 0, 0  # the first bytes have no such context
            seen = total > 0
            mixed = (count + distinct * probability) / np.maximum(total + distinct, 1)
            probability = np.where(seen, mixed, probability)
        return float(-np.log2(probability).mean())


def _keys(text: Text, length: int) -> Keys:
    """The `length` bytes before each byte as one number; of the first bytes, which have fewer, any."""
    keys = np.zeros(len(text), np.uint64)
    for back in range(1, length + 1):
        keys[back:] |= text[:-back].astype(np.uint64) << np.uint64(8 * (back - 1))
    return keys


def _with_next(keys: Keys, text: Text) -> Keys:
    return keys << np.uint64(8) | text.astype(np.uint64)


def _count(keys: Keys, text: Text, length: int) -> _Order:
    grams, counts = np.unique(_with_next(keys, text)[length:], return_counts=True)
    contexts, first, distinct = np.unique(grams >> np.uint64(8), return_index=True, return_counts=True)
    totals = np.add.reduceat(counts, first) if len(first) else np.empty(0, np.int64)
    return _Order(contexts, totals, distinct, grams, counts)


def _looked_up(keys: Keys, values: np.ndarray, wanted: Keys) -> np.ndarray:
    """The value of each key, 0 for one that is not there, float64."""
    if not len(keys):
        return np.zeros(len(wanted))
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0).astype(np.float64)
