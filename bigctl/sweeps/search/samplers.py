"""What proposes the points of a sweep: a grid or chance here, `model_based` for samplers that learn from results.

Each proposal is a function of the sweep's seed, its number and the history alone, so a study that was killed proposes
the same when it is run again. No state is kept between two proposals except what can be computed again.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bigctl.sweeps.search import space
from bigctl.sweeps.search.space import Plan
from bigctl.sweeps.search.sweep_syntax import Axis
from bigctl.sweeps.trials import COMPLETE, Point

LISTED = 100_000
"""A finite space of at most so many points is shuffled as a list, so that no point comes twice."""


@dataclass(frozen=True)
class Observation:
    """What is known of a proposed point; its number is its place in the history.

    Attributes:
        point: the searched keys and their values.
        score: mean of the metric over its seeds; None where there is none (yet).
        second: the same of the second metric.
        status: waiting, running, stopped, complete, pruned or failed.
        curve: {step: value of the metric} so far.
    """

    point: Point
    score: float | None = None
    second: float | None = None
    status: str = COMPLETE
    curve: Mapping[int, float] = field(default_factory=dict)


class Sampler(Protocol):
    def ask(self, number: int, history: Sequence[Observation]) -> Point | None:
        """The point of this number, given the results of those before; None if the space is exhausted."""


class Grid:
    """All points in order, except those that were proposed before; of a grid that was extended, the new ones."""

    def __init__(self, plan: Plan):
        self.points = space.points(plan)

    def ask(self, number: int, history: Sequence[Observation]) -> Point | None:
        known = {key_of(seen.point) for seen in history}
        return next((point for point in self.points if key_of(point) not in known), None)


class Random:
    """Points drawn uniformly from each axis, log-uniformly where it says so; each point of a finite space once."""

    def __init__(self, plan: Plan):
        self.dimensions, self.seed = plan.space.dimensions, plan.sweep.seed
        self.size = math.prod(size(dimension) for dimension in self.dimensions)
        self.uneven = any(axis.log and axis.integer for axis in plan.space.axes)
        self.order: list[int] = []
        if self.size <= LISTED:
            self.order = random.Random(derived(self.seed)).sample(range(int(self.size)), int(self.size))

    def ask(self, number: int, history: Sequence[Observation]) -> Point | None:
        seen = [observation.point for observation in history]
        if number < len(self.order) and not self.uneven:
            point = self._numbered(self.order[number])
            if point not in seen:  # it may be, if the space was changed
                return point
        return self.draw(number, seen)

    def draw(self, number: int, seen: Sequence[Point]) -> Point | None:
        """A point that was not proposed before; None if all were."""
        known = {key_of(point) for point in seen if within(self.dimensions, point)}
        if len(known) >= self.size:
            return None
        for attempt in range(100):
            rng = random.Random(derived(self.seed, number, attempt))
            point = {key: value for dimension in self.dimensions for key, value in draw(dimension, rng).items()}
            if key_of(point) not in known:
                return point
        left = (self._numbered(index) for index in self.order)
        return next((point for point in left if key_of(point) not in known), None)

    def _numbered(self, index: int) -> dict[str, str]:
        """The point of a finite space with this number, the last dimension changing fastest."""
        parts: list[dict[str, str]] = []
        for dimension in reversed(self.dimensions):
            index, place = divmod(index, int(size(dimension)))
            axis = dimension[0]
            if axis.interval is not None:
                parts.append({axis.key: axis.text(axis.interval[0] + place)})
            else:
                parts.append({part.key: part.values[place] for part in dimension})
        return {key: value for part in reversed(parts) for key, value in part.items()}


# ------------------------------------------------------------------------------------------------------ dimensions


def size(dimension: tuple[Axis, ...]) -> float:
    """How many settings a dimension has."""
    axis = dimension[0]
    if axis.interval is None:
        return len(axis.values)
    return axis.interval[1] - axis.interval[0] + 1 if axis.integer else math.inf


def key_of(point: Point) -> tuple[tuple[str, str], ...]:
    """The identity of a point."""
    return tuple(sorted(point.items()))


def within(dimensions: Sequence[tuple[Axis, ...]], point: Point) -> bool:
    """Whether a point is one of the space with these dimensions."""
    if sorted(point) != sorted(axis.key for dimension in dimensions for axis in dimension):
        return False
    return all(_has(dimension, point) for dimension in dimensions)


def _has(dimension: tuple[Axis, ...], point: Point) -> bool:
    axis = dimension[0]
    if axis.interval is None:
        return {part.key: point[part.key] for part in dimension} in space.choices(dimension)
    try:
        value = float(point[axis.key])
    except ValueError:
        return False
    return axis.interval[0] <= value <= axis.interval[1] and (value.is_integer() or not axis.integer)


def draw(dimension: tuple[Axis, ...], rng: random.Random) -> dict[str, str]:
    """A random setting of a dimension."""
    axis = dimension[0]
    if axis.interval is None:
        return rng.choice(space.choices(dimension))
    return {axis.key: from_unit(axis, rng.random())}


def _ends(axis: Axis) -> tuple[float, float]:
    """Ends of an interval on its search scale; half a step further out for whole numbers: all are equally likely."""
    assert axis.interval is not None
    low, high = axis.interval
    low, high = (low - 0.5, high + 0.5) if axis.integer else (low, high)
    return (math.log(low), math.log(high)) if axis.log else (low, high)


def from_unit(axis: Axis, unit: float) -> str:
    """A number of an interval from its place in [0, 1]."""
    low, high = _ends(axis)
    value = low + float(unit) * (high - low)
    return axis.text(math.exp(value) if axis.log else value)


def to_unit(axis: Axis, value: float) -> float:
    """The place of a number in its interval, from 0 to 1."""
    low, high = _ends(axis)
    return ((math.log(value) if axis.log else value) - low) / (high - low)


def derived(*parts: int) -> int:
    """32 bits from several numbers."""
    return int.from_bytes(hashlib.sha256(" ".join(map(str, parts)).encode()).digest()[:4], "big")
