"""The effect of each searched key on the score: means of its levels, its share of the variance. Free of jax."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from bigctl.sweeps.trials import Point


class Tree(Protocol):
    """The part of scikit-learn's fitted trees that is used here; arrays over the nodes."""

    feature: np.ndarray
    threshold: np.ndarray
    children_left: np.ndarray
    children_right: np.ndarray
    value: np.ndarray


BINS = 6
"""Most levels of an interval, each with about the same number of points."""
FEWEST = 8
"""Fewest points to fit a forest to; it also takes two for each dimension."""
_TREES = 64


@dataclass(frozen=True)
class Scored:
    """A point and its scores, one a seed."""

    point: Point
    scores: Sequence[float]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.scores)


def effects(definition: Mapping[str, Any], scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """For each axis its importance and the mean of each level over all trials that have it, whatever the other keys.

    The importance, from 0 to 1, is the share of the variance of the points' means that the key explains by itself (its
    main effect in a functional analysis of variance), over the whole space. Where the points with a score are a full
    grid it is exact: the variance of the level means over that of all points, eta squared. Elsewhere a random forest
    stands for the space between the points: fANOVA (Hutter, Hoos and Leyton-Brown, ICML 2014). Keys that are zipped
    cannot be told apart and share one importance.

    It is None for a grid of a single point, elsewhere for fewer points than `FEWEST` or two a dimension, and where
    all points score the same. Levels without any score are left out.

    Args:
        definition: of the study: `axes` and `zipped`.
        scored: the points that have a score.
    """
    axes = [dict(axis) for axis in definition.get("axes") or ()]
    scored = [each for each in scored if each.scores and all(_has(each.point, axis) for axis in axes)]
    dimensions = _dimensions(axes, definition.get("zipped") or (), scored)
    shares = importances(dimensions, scored)
    share = {key: found for dimension, found in zip(dimensions, shares, strict=True) for key in dimension.keys}
    return [{"key": a["key"], "importance": share[a["key"]], "levels": _levels(a, scored)} for a in axes]


def _has(point: Point, axis: Mapping[str, Any]) -> bool:
    """Whether a point, maybe of an earlier definition, has a value on an axis as it is now."""
    if not _is_interval(axis):
        return axis["key"] in point
    try:
        return float(point[axis["key"]]) > (0.0 if axis.get("log") else -math.inf)
    except (KeyError, ValueError):
        return False


def importances(dimensions: Sequence[Dimension], scored: Sequence[Scored]) -> list[float | None]:
    """The share of each dimension in the variance of the points' means; all None where that cannot be told."""
    unknown: list[float | None] = [None] * len(dimensions)
    means = np.array([each.mean for each in scored])
    if len(means) < 2 or not np.ptp(means) > 1e-12 * np.abs(means).max():
        return unknown
    cells = [tuple(dimension.row(each.point) for dimension in dimensions) for each in scored]
    if _is_grid(dimensions, cells):
        return [_eta_squared([cell[d] for cell in cells], means) for d in range(len(dimensions))]
    if len(means) < max(FEWEST, 2 * len(dimensions)):
        return unknown
    places = np.array([[dimension.place(each.point) for dimension in dimensions] for each in scored])
    return list(_fanova(places, means))


# --------------------------------------------------------------------------------------------------------- dimensions


@dataclass(frozen=True)
class Dimension:
    """What varies by itself: one axis, or several that are zipped.

    Attributes:
        keys: its axes.
        rows: all settings of its choices; empty for an interval.
        low, high: ends of an interval on the scale it is searched by, those of whole numbers half a step further out.
        log: whether that scale is the logarithm.
    """

    keys: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...] = ()
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    _index: dict[tuple[str, ...], int] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._index.update({row: number for number, row in enumerate(self.rows)})

    def row(self, point: Point) -> tuple[str, ...]:
        return tuple(point[key] for key in self.keys)

    def place(self, point: Point) -> float:
        """Where a point is in [0, 1]: choices have cells of equal width there, in their order."""
        if self.rows:
            return (self._index[self.row(point)] + 0.5) / len(self.rows)
        value = float(point[self.keys[0]])
        value = math.log(value) if self.log else value
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low))) if self.high > self.low else 0.5


def _dimensions(
    axes: Sequence[Mapping[str, Any]], zipped: Sequence[Sequence[str]], scored: Sequence[Scored]
) -> list[Dimension]:
    """In the order of their first axes; what points have besides the choices of now comes behind those."""
    group = {key: tuple(keys) for keys in zipped for key in keys}
    by_key = {axis["key"]: axis for axis in axes}
    found = []
    for keys in dict.fromkeys(group.get(axis["key"], (axis["key"],)) for axis in axes):
        axis = by_key[keys[0]]
        if _is_interval(axis):
            margin = 0.5 if axis.get("integer") else 0.0
            log = bool(axis.get("log"))
            ends = float(axis["low"]) - margin, float(axis["high"]) + margin
            low, high = (math.log(end) for end in ends) if log else ends
            found.append(Dimension(keys, low=low, high=high, log=log))
            continue
        rows = [tuple(map(str, row)) for row in zip(*(by_key[key]["values"] for key in keys), strict=True)]
        rows += [tuple(each.point[key] for key in keys) for each in scored]
        found.append(Dimension(keys, tuple(dict.fromkeys(rows))))
    return found


def _is_interval(axis: Mapping[str, Any]) -> bool:
    return not axis.get("values")


# -------------------------------------------------------------------------------------------------------- importances


def _is_grid(dimensions: Sequence[Dimension], cells: Sequence[tuple[Any, ...]]) -> bool:
    """Whether the points are each combination, once, of the choices that occur."""
    if not all(dimension.rows for dimension in dimensions) or len(set(cells)) != len(cells):
        return False
    return math.prod(len({cell[d] for cell in cells}) for d in range(len(dimensions))) == len(cells)


def _eta_squared(levels: Sequence[Any], means: np.ndarray) -> float:
    """Variance of the level means over that of all, each level having as many points."""
    groups = [means[[level == each for level in levels]].mean() for each in dict.fromkeys(levels)]
    return float(min(1.0, np.var(groups) / np.var(means)))


def _fanova(places: np.ndarray, means: np.ndarray) -> Iterator[float]:
    """The main effects in a random forest's picture of the unit cube, integrated exactly, averaged over its trees.

    Args:
        places: [points, dimensions], in [0, 1].
        means: [points].
    """
    from sklearn.ensemble import RandomForestRegressor

    scaled = (means - means.mean()) / means.std()  # the shares are the same, and small numbers keep their digits
    forest = RandomForestRegressor(n_estimators=_TREES, random_state=0).fit(places, scaled)
    shares = [_main_effects(*_leaves(tree.tree_, places.shape[1])) for tree in forest.estimators_]
    known = np.array([share for share in shares if share is not None])
    return (float(share) for share in np.clip(known.mean(axis=0), 0.0, 1.0))


def _leaves(tree: Tree, dimensions: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The boxes of a tree's leaves: lower ends and upper ends, each [leaves, dimensions], and values [leaves]."""
    lows, highs, values = [], [], []
    todo = [(0, np.zeros(dimensions), np.ones(dimensions))]
    while todo:
        node, low, high = todo.pop()
        split, threshold = tree.feature[node], tree.threshold[node]
        if tree.children_left[node] == tree.children_right[node]:
            lows.append(low)
            highs.append(high)
            values.append(float(tree.value[node].ravel()[0]))
            continue
        left, right = high.copy(), low.copy()
        left[split] = right[split] = threshold
        todo += [(tree.children_left[node], low, left), (tree.children_right[node], right, high)]
    return np.array(lows), np.array(highs), np.array(values)


def _main_effects(lows: np.ndarray, highs: np.ndarray, values: np.ndarray) -> list[float] | None:
    """Share of each dimension's marginal in the variance of a function that is constant on boxes, which fill the unit
    cube; None where it is constant all over."""
    some = (highs > lows).all(axis=1)
    lows, highs, values = lows[some], highs[some], values[some]
    widths = highs - lows
    volumes = widths.prod(axis=1)
    mean = float(volumes @ values)
    total = float(volumes @ (values - mean) ** 2)
    if total <= 0:
        return None
    shares = []
    for d in range(lows.shape[1]):
        edges = np.unique(np.concatenate([lows[:, d], highs[:, d]]))
        steps = np.zeros(len(edges))
        mass = (values - mean) * volumes / widths[:, d]
        np.add.at(steps, np.searchsorted(edges, lows[:, d]), mass)
        np.add.at(steps, np.searchsorted(edges, highs[:, d]), -mass)
        marginal = np.cumsum(steps)[:-1]
        shares.append(float(np.diff(edges) @ marginal**2) / total)
    return shares


# ------------------------------------------------------------------------------------------------------------- levels


def _levels(axis: Mapping[str, Any], scored: Sequence[Scored]) -> list[dict[str, Any]]:
    key = axis["key"]
    if _is_interval(axis):
        names, place = _bins(axis, [float(each.point[key]) for each in scored])
        found = [names[place(float(each.point[key]))] for each in scored]
    else:
        found = [each.point[key] for each in scored]
        names = list(dict.fromkeys([*map(str, axis["values"]), *found]))
    levels = []
    for name in names:
        scores = [s for each, level in zip(scored, found, strict=True) if level == name for s in each.scores]
        if scores:
            std = statistics.stdev(scores) if len(scores) > 1 else None
            levels.append({"value": name, "mean": statistics.fmean(scores), "std": std, "n": len(scores)})
    return levels


def _bins(axis: Mapping[str, Any], values: Sequence[float]) -> tuple[list[str], Any]:
    """Names of the bins of an interval, and which one a value is in. Few whole numbers have a bin each."""
    if axis.get("integer") and len(set(values)) <= BINS:
        single = sorted({round(value) for value in values})
        return [str(value) for value in single], lambda value: single.index(round(value))
    count = max(1, min(BINS, len(values) // 2))
    log = bool(axis.get("log"))
    scale = np.log(values) if log else np.array(values)
    cuts = [float(cut) for cut in np.quantile(scale, np.arange(1, count) / count)] if len(values) else []
    inner = [math.exp(cut) if log else cut for cut in cuts]
    low, high = float(axis["low"]), float(axis["high"])
    if axis.get("integer"):
        edges = [low, *sorted({e for cut in inner if low < (e := float(math.ceil(cut))) <= high})]
        last = [*(edge - 1 for edge in edges[1:]), high]
        names = [f"{a:.0f} .. {b:.0f}" if a < b else f"{a:.0f}" for a, b in zip(edges, last, strict=True)]
    else:
        edges = [low, *sorted({e for cut in inner if low < (e := _rounded(cut, inner)) < high})]
        names = [f"{a:.6g} .. {b:.6g}" for a, b in zip(edges, [*edges[1:], high], strict=True)]
    return names, lambda value: max(0, int(np.searchsorted(edges, value, side="right")) - 1)


def _rounded(cut: float, cuts: Sequence[float]) -> float:
    """With two digits, or more where these do not tell the cuts apart."""
    for digits in (2, 3, 4):
        if len({f"{each:.{digits}g}" for each in cuts}) == len(set(cuts)):
            break
    return float(f"{cut:.{digits}g}")
