"""Which examples make up a batch: a pure function of (seed, position), the same on every machine and version.

The position is the number of training examples consumed so far. Epochs are concatenated, so every training batch is
full: position p is example `permutation(seed, p // n)[p % n]`. The permutation is a keyed bijection of our own, an
unbalanced Feistel network with cycle walking (Black & Rogaway 2002), because library streams may change between
releases; it is computed only at the positions asked for, all of them at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_MIRRORED = np.uint64(0x6D6972726F72)  # keys who is mirrored apart from the order of examples
_ROUNDS = 8  # with 4, neighbours in small sets are visibly not independent


@dataclass(frozen=True)
class BatchPlan:
    """The order of training examples.

    Attributes:
        num_examples: size of the training split.
        seed: the experiment's seed.
        frozen: repeat the first batch for ever (`train.overfit_one_batch`), given as that batch's size; 0 for no.
    """

    num_examples: int
    seed: int
    frozen: int = 0

    def __post_init__(self) -> None:
        if self.num_examples < 1:
            raise ValueError("a plan needs at least one example")

    def indices(self, position: int, count: int) -> np.ndarray:
        """Examples at positions [position, position + count): int32 [count], int64 where that is too small."""
        positions = np.arange(position, position + count, dtype=np.int64)
        if self.frozen:
            positions %= self.frozen
        epoch, offset = np.divmod(positions, self.num_examples)
        first = epoch.min() if count else 0
        epochs = np.arange(first, epoch.max() + 1 if count else 0, dtype=np.uint64)
        keys = mix(np.uint64(self.seed), epochs)
        return permute(offset, self.num_examples, keys, epoch - first).astype(
            np.int32 if self.num_examples <= 2**31 else np.int64
        )


def training_order(
    count: int, seed: int, batch_size: int, *, frozen: bool = False, alternating: bool = False, repeats: int = 1
) -> BatchPlan | AlternatingPlan | Repeated:
    """The order in which training sees examples of a fixed shape.

    Args:
        count: of the examples.
        frozen: whether every batch is the first one.
        alternating: whether each example is mirrored in every other epoch.
        repeats: how often an example is in a batch.
    """
    plan = BatchPlan(count, seed, batch_size if frozen else 0)
    order = AlternatingPlan(plan) if alternating else plan
    return order if frozen or repeats == 1 else Repeated(order, batch_size, repeats)


@dataclass(frozen=True)
class Repeated:
    """An order in which each batch holds fewer examples, each of them several times (Hoffer et al. 2019; Berman et al.
    2019). It shows each example as often as the order itself does, but for the end.

    Attributes:
        order: of the examples.
        batch_size: a multiple of `repeats`.
        repeats: how often an example is in a batch; the same ones follow each other as often, so neighbours differ.
    """

    order: BatchPlan | AlternatingPlan
    batch_size: int
    repeats: int

    def indices(self, position: int, count: int) -> np.ndarray:
        """As those of `BatchPlan`."""
        distinct = self.batch_size // self.repeats
        batch, place = np.divmod(np.arange(position, position + count, dtype=np.int64), self.batch_size)
        wanted = batch * distinct + place % distinct
        first = int(wanted.min()) if count else 0
        return self.order.indices(first, int(wanted.max()) + 1 - first if count else 0)[wanted - first]


@dataclass(frozen=True)
class AlternatingPlan:
    """The order of training examples, which are mirrored in every other epoch; an `Order`.

    Which epochs these are is drawn for each example (the alternating flip of Jordan 2024, arXiv 2404.00498), so that
    any two epochs in a row show both sides of every example. Index n + i, of n examples, is example i mirrored: see
    `layouts.layout.without_mirror`.
    """

    order: BatchPlan

    def indices(self, position: int, count: int) -> np.ndarray:
        rows, n = self.order.indices(position, count), self.order.num_examples
        epoch = np.arange(position, position + count, dtype=np.int64) // n
        first = mix(mix(np.uint64(self.order.seed), _MIRRORED), rows.astype(np.uint64)).astype(np.int64)
        found = rows.astype(np.int64) + n * ((first + epoch) & 1)
        return found.astype(np.int32 if 2 * n <= 2**31 else np.int64)


@dataclass(frozen=True)
class RowEvaluationPlan:
    """Every example exactly once, in order; the last batch is padded and masked."""

    num_examples: int
    batch_size: int

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray, None]]:
        """Triples (indices int32 [batch_size], mask float32 [batch_size], 0 where an index only pads, no length)."""
        for start in range(0, self.num_examples, self.batch_size):
            indices = np.arange(start, start + self.batch_size)
            mask = (indices < self.num_examples).astype(np.float32)
            yield np.minimum(indices, self.num_examples - 1).astype(np.int32), mask, None


def permutation(n: int, *keys: int) -> np.ndarray:
    """A permutation of range(n), int64 [n], keyed by any numbers."""
    mixed: np.ndarray | np.uint64 = np.uint64(0x9E3779B97F4A7C15)
    for k in keys:
        mixed = mix(mixed, np.uint64(k))
    return permute(np.arange(n), n, np.atleast_1d(np.asarray(mixed)), np.zeros(n, np.int64))


def permute(values: np.ndarray, n: int, keys: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Map each of `values` (int64 in [0, n)) by the bijection of [0, n) that `keys[which]` (uint64) names.

    The network works on the next power of two; a result outside [0, n) is mapped again until it falls inside, which
    stays a bijection and takes less than two rounds on average. A round's function has few arguments, so it is a table.
    """
    bits = max(2, int(n - 1).bit_length())
    right_bits = bits // 2
    left_bits = bits - right_bits
    rounds = [_round(keys, r, right_bits if r % 2 == 0 else left_bits, left_bits if r % 2 == 0 else right_bits)
              for r in range(_ROUNDS)]  # fmt: skip
    result = _feistel(values, which, rounds, left_bits, right_bits)
    outside = np.flatnonzero(result >= n)
    while outside.size:
        result[outside] = _feistel(result[outside], which[outside], rounds, left_bits, right_bits)
        outside = outside[result[outside] >= n]
    return result


def _round(keys: np.ndarray, number: int, from_bits: int, to_bits: int) -> np.ndarray:
    """One round's function for every key and argument: int64 [keys * 2^from_bits], values below 2^to_bits."""
    arguments = np.arange(1 << from_bits, dtype=np.uint64)
    table = mix(keys[:, None] + np.uint64(number), arguments[None, :]) & np.uint64((1 << to_bits) - 1)
    return table.astype(np.int64).ravel()


def _feistel(
    values: np.ndarray, which: np.ndarray, rounds: list[np.ndarray], left_bits: int, right_bits: int
) -> np.ndarray:
    left, right = values >> right_bits, values & ((1 << right_bits) - 1)
    from_right, from_left = which << right_bits, which << left_bits
    for r in range(0, _ROUNDS, 2):
        left ^= rounds[r].take(from_right + right, mode="clip")  # never out of range; "clip" only skips the check
        right ^= rounds[r + 1].take(from_left + left, mode="clip")
    return (left << right_bits) | right


def mix(key: np.ndarray | np.uint64, value: np.ndarray | np.uint64) -> np.ndarray:
    """A 64-bit hash of two numbers: the finaliser of SplitMix64 (Steele et al. 2014) over their combination."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the point
        z = np.asarray(key, np.uint64) + (np.asarray(value, np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
