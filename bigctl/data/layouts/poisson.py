"""Batches to which each example belongs by a draw of its own: Poisson samples, as the accounting of privacy has them.

How many examples a step has is binomial, and which ones is a keyed permutation's choice, which together is a Poisson
sample; both are functions of (seed, step). Batches have room for more than any step will draw: what is left over is
padding, and the probability that examples do not fit is part of the accounting (`privacy.accountant.EXCESS`).
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from bigctl.data.layouts.layout import Columns, FixedPlan, Layout
from bigctl.data.layouts.masked import PADDING, Masked, drawable
from bigctl.data.layouts.ragged import Ragged, padded
from bigctl.data.sampler import mix, permute
from bigctl.privacy.accountant import EXCESS

_KEY = 0x706F6973736F6E  # keys these draws apart from the order of examples


@dataclass(frozen=True)
class Poisson(Masked):
    """The training split of another layout, sampled.

    Attributes:
        unit: what the rows of a batch are a multiple of.
    """

    unit: int
    kind: ClassVar[str] = "poisson"

    def training_plan(
        self, columns: Columns, *, batch_size: int, seed: int, frozen: bool = False
    ) -> PoissonPlan | PoissonLengthPlan:
        draw = Draw(self.size(columns, training=True), batch_size, seed, self.unit)
        if isinstance(self.base, Ragged):
            return PoissonLengthPlan(draw, self.base.lengths(columns), self.base.edges)
        return PoissonPlan(draw)


def sampled(layout: Layout, unit: int) -> Poisson:
    """The Poisson samples of a layout of `masked.KINDS`."""
    return Poisson(drawable(layout), unit)


@dataclass(frozen=True)
class Draw:
    """What each step draws.

    Attributes:
        num_examples: of the training split.
        expected: examples a step on average.
        seed: the experiment's.
        unit: what the rows of a batch are a multiple of.
    """

    num_examples: int
    expected: int
    seed: int
    unit: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.expected <= self.num_examples:
            raise ValueError(f"{self.expected} of {self.num_examples} examples cannot be drawn on average")

    @cached_property
    def at_most(self) -> np.ndarray:
        """Probability of no more than 0, 1, ... examples, as far as more have a probability of `EXCESS`."""
        from scipy import stats

        if self.expected == self.num_examples:
            return np.concatenate([np.zeros(self.num_examples), [1.0]])
        law = stats.binom(self.num_examples, self.expected / self.num_examples)
        most = bisect.bisect_left(range(self.num_examples), -EXCESS, key=lambda count: -float(law.sf(count)))
        return np.asarray(law.cdf(np.arange(most + 1)))

    @property
    def rows(self) -> int:
        """Of a batch, padding included."""
        return math.ceil((len(self.at_most) - 1) / self.unit) * self.unit

    def indices(self, step: int) -> np.ndarray:
        """The examples of a step, counted from 0: int32 or int64 [rows], then `PADDING`."""
        key = mix(mix(np.uint64(self.seed), np.uint64(_KEY)), np.uint64(step))
        uniform = float(mix(key, np.uint64(0)) >> np.uint64(11)) * 2.0**-53
        count = min(int(np.searchsorted(self.at_most, uniform, side="right")), len(self.at_most) - 1)
        keys = np.atleast_1d(mix(key, np.uint64(1)))
        found = np.full(self.rows, PADDING, np.int32 if self.num_examples <= 2**31 else np.int64)
        found[:count] = permute(np.arange(count), self.num_examples, keys, np.zeros(count, np.int64))
        return found


class PoissonPlan(FixedPlan):
    """Of examples of a fixed shape. A position counts the examples that steps draw on average."""

    def __init__(self, draw: Draw):
        self.draw, self.batch_size = draw, draw.expected

    @property
    def rows(self) -> int:
        return self.draw.rows

    def batch(self, position: int) -> tuple[np.ndarray, int | None]:
        return self.draw.indices(position // self.batch_size), None

    def batches(self, position: int, count: int) -> np.ndarray:
        first = position // self.batch_size
        return np.stack([self.draw.indices(step) for step in range(first, first + count)])


@dataclass
class PoissonLengthPlan:
    """Of texts: each batch is padded to a length that holds its longest."""

    draw: Draw
    sizes: np.ndarray
    edges: tuple[int, ...]

    @property
    def lengths(self) -> tuple[int | None, ...]:
        return self.edges

    def batch(self, position: int) -> tuple[np.ndarray, int]:
        indices = self.draw.indices(position // self.draw.expected)
        longest = int(self.sizes[indices[indices >= 0]].max(initial=1))
        return indices, padded(longest, self.edges)
