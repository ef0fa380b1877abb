"""Batches of federated training: all that the clients of a round have, a client after the other.

Who takes part in a round is a function of (seed, round), and so is who of them sends nothing back. A client's place has
room for the largest client; what is left over is padding. The order in which a client goes through its examples is
drawn where it trains.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from bigctl.config import schema
from bigctl.data.layouts.layout import Arrays, Columns, Indices, Layout
from bigctl.data.layouts.masked import PADDING, Masked, drawable
from bigctl.data.layouts.poisson import Draw
from bigctl.data.layouts.ragged import Ragged, padded
from bigctl.data.sampler import mix, permute

OWNER = "client"
"""The column of the training split that says whose an example is, int32 [N], counted from 0."""
_ROUND, _DROPPED = 0x726F756E64, 0x64726F70  # keys these draws apart from others


@dataclass(frozen=True)
class Round:
    """What each round draws.

    Attributes:
        clients: there are.
        wanted: take part in a round.
        unit: what the places of a round are a multiple of.
        dropout: probability that one of them sends nothing back.
        chance: whether each client takes part by a draw of its own, as the accounting of privacy has it, and `wanted`
            is what that comes to on average.
    """

    clients: int
    wanted: int
    unit: int = 1
    dropout: float = 0.0
    chance: bool = False

    @property
    def places(self) -> int:
        """For clients, in a batch."""
        if self.chance:
            return _sample(self.clients, self.wanted, 0, self.unit).rows
        return -(-self.wanted // self.unit) * self.unit

    @property
    def reporting(self) -> float:
        """Clients that send something back, on average."""
        return self.wanted * (1 - self.dropout)

    def drawn(self, seed: int, number: int) -> np.ndarray:
        """The clients of a round, counted from 0: int64 [places], `PADDING` where there is none, or none that sends
        something back."""
        key = mix(mix(np.uint64(seed), np.uint64(_ROUND)), np.uint64(number))
        if self.chance:
            found = _sample(self.clients, self.wanted, seed, self.unit).indices(number).astype(np.int64)
        else:
            found = np.full(self.places, PADDING, np.int64)
            places = np.arange(self.wanted)
            found[: self.wanted] = permute(places, self.clients, np.atleast_1d(key), np.zeros_like(places))
        uniform = (mix(mix(key, np.uint64(_DROPPED)), found.astype(np.uint64)) >> np.uint64(11)) * 2.0**-53
        return np.where(uniform < self.dropout, PADDING, found)


@lru_cache(maxsize=64)
def _sample(clients: int, wanted: int, seed: int, unit: int) -> Draw:
    return Draw(clients, wanted, seed, unit)


@dataclass(frozen=True)
class Rounds(Masked):
    """The training split of another layout, whose columns include `OWNER`, by rounds.

    A batch has `draw.places` times as many rows as the largest client has examples, a client's first in its place.

    Attributes:
        draw: who takes part.
    """

    draw: Round
    kind: ClassVar[str] = "rounds"

    def training_plan(
        self, columns: Columns, *, batch_size: int, seed: int, frozen: bool = False
    ) -> RoundPlan | TextRoundPlan:
        """As `Layout.training_plan`; `batch_size` is what a round counts for, as positions do."""
        order = np.argsort(columns[OWNER], kind="stable")
        counts = np.bincount(columns[OWNER], minlength=self.draw.clients)
        members = np.split(order.astype(np.int32 if len(order) <= 2**31 else np.int64), np.cumsum(counts)[:-1])
        plan = RoundPlan(self.draw, tuple(members), batch_size, seed)
        if isinstance(self.base, Ragged):
            return TextRoundPlan(plan, self.base.lengths(columns), self.base.edges)
        return plan

    def gather(self, columns: Arrays, indices: Indices, length: int | None, xp: ModuleType = np) -> dict[str, Any]:
        others = {name: values for name, values in columns.items() if name != OWNER}
        return super().gather(others, indices, length, xp)


def draw_of(train: schema.Train) -> Round:
    """What the rounds of a configuration draw, which knows how many clients there are."""
    keys, clients = train.federated, train.federated.clients or 1
    wanted = max(1, round(keys.fraction * clients))
    return Round(clients, wanted, keys.at_once, keys.dropout, chance=train.privacy.on)


def expected(train: schema.Train) -> float:
    """How many a private step sums up, on average: examples, or clients that send something."""
    return draw_of(train).reporting if train.federated.on else float(train.batch_size)


def by_rounds(layout: Layout, train: schema.Train) -> Rounds:
    """The rounds of a layout of `masked.KINDS`."""
    return Rounds(drawable(layout), draw_of(train))


@dataclass(frozen=True, eq=False)
class RoundPlan:
    """Of examples of a fixed shape.

    Attributes:
        draw: who takes part.
        members: the examples of each client, int [n].
        batch_size: what a round counts for.
        seed: the experiment's.
    """

    draw: Round
    members: tuple[np.ndarray, ...]
    batch_size: int
    seed: int
    lengths: tuple[int | None, ...] = (None,)

    @cached_property
    def room(self) -> int:
        """For examples, in a client's place."""
        return max(map(len, self.members))

    def batch(self, position: int) -> tuple[np.ndarray, int | None]:
        found = np.full((self.draw.places, self.room), PADDING, self.members[0].dtype)
        for place, client in enumerate(self.draw.drawn(self.seed, position // self.batch_size).tolist()):
            if client >= 0:
                found[place, : len(self.members[client])] = self.members[client]
        return found.ravel(), None


@dataclass(frozen=True, eq=False)
class TextRoundPlan:
    """Of texts: each round is padded to a length that holds its longest."""

    plan: RoundPlan
    sizes: np.ndarray
    lengths: tuple[int, ...]

    def batch(self, position: int) -> tuple[np.ndarray, int]:
        indices, _ = self.plan.batch(position)
        longest = int(self.sizes[indices[indices >= 0]].max(initial=1))
        return indices, padded(longest, self.lengths)
