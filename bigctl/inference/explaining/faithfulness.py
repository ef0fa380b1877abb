"""Whether attributions are to be believed: curves of deletion and insertion, and the check against random weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float

from bigctl.data.sources.frames import Examples
from bigctl.inference.explaining.asked import Explanation, Output
from bigctl.training.task import Record

STEPS = 16
"""Steps of a curve, at most."""
ORDERS = 5
"""Random orders beside each example's own."""
DRAWS = 1000
"""Of the bootstrap over examples."""

Ask = Callable[[Bool[np.ndarray, "points units"]], Float[np.ndarray, " points"]]
"""The output where some units of an example are kept and the others are replaced by the baseline."""


@dataclass(frozen=True)
class Units:
    """What of an example can be left out: its tokens, patches or columns.

    Attributes:
        values: what each adds.
        ask: see `Ask`.
    """

    values: Float[np.ndarray, " units"]
    ask: Ask


class Dissects(Protocol):
    """An explainer whose examples can be taken apart."""

    def units(self, example: Examples, method: str, output: Output) -> Units:
        """The units of one example."""

    def randomised(self) -> Dissects:
        """The same of a model whose weights are drawn anew."""


def check(
    explainer: Dissects, inputs: Sequence[Examples], explanations: Sequence[Explanation], seed: int = 0
) -> Record:
    """How faithful attributions are, over some examples.

    The area under a curve is that of the output, by the share of units that are left out, the strongest first
    (`deletion`; a small one is good), or put in (`insertion`; a large one is good); see Petsiuk et al. 2018. `gain` is
    how much better it is than with units in random order. `randomised` is the rank correlation of attributions with
    those of the same architecture with random weights, which should be near 0 (Adebayo et al. 2018). Intervals are of
    95%, by bootstrap over the examples; None of a single one.

    Args:
        explainer: what made the explanations.
        inputs: the examples.
        explanations: of a method that sees classes.
        seed: by which orders and bootstrap draws are drawn.
    """
    draw, other = np.random.default_rng(seed), explainer.randomised()
    rows, correlations = [], []
    for example, explanation in zip(inputs, explanations, strict=True):
        output = explanation.attribution.output
        assert output is not None
        method = explanation.attribution.method
        units = explainer.units(example, method, output)
        if len(units.values) < 2:
            continue
        rows.append(_areas(units, draw))
        found = rank_correlation(units.values, other.units(example, method, output).values)
        correlations += [] if found is None else [found]
    if not rows:
        return {"examples": 0}
    deletion, insertion, by_chance = np.array(rows).T
    told: Record = {"examples": len(rows), "orders": ORDERS, "seed": seed}
    for name, area, sign in (("deletion", deletion, -1), ("insertion", insertion, 1)):
        gain = _mean(sign * (area - by_chance), draw, "gain")
        told[name] = {"area": float(area.mean()), "random": float(by_chance.mean()), **gain}
    told["randomised"] = _mean(np.array(correlations), draw, "rank_correlation") if correlations else None
    return told


def _mean(values: np.ndarray, draw: np.random.Generator, name: str) -> Record:
    count, ends = len(values), None
    if count > 1:
        again = draw.multinomial(count, np.full(count, 1 / count), DRAWS) / count
        ends = np.quantile(again @ values, [0.025, 0.975]).tolist()
    return {name: float(values.mean()), "interval": ends}


def _areas(units: Units, draw: np.random.Generator) -> tuple[float, float, float]:
    """Areas of deletion, of insertion, and of deletion in random orders."""
    count = len(units.values)
    order = np.argsort(-units.values, kind="stable")
    orders = [order, order[::-1], *(draw.permutation(count) for _ in range(ORDERS))]
    cuts = np.unique(np.round(np.linspace(0, count, min(count, STEPS) + 1)).astype(int))
    kept = np.ones((len(orders), len(cuts), count), bool)
    for number, each in enumerate(orders):
        for place, cut in enumerate(cuts):
            kept[number, place, each[:cut]] = False
    scores = units.ask(kept.reshape(-1, count)).reshape(kept.shape[:2])
    areas = np.trapezoid(scores, cuts / count, axis=1)
    # Put in from the strongest on, the curve is that of leaving out from the weakest on, read backwards.
    return float(areas[0]), float(areas[1]), float(areas[2:].mean())


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's rank correlation; None where all values of one are the same."""
    ranks = [_ranks(np.asarray(values, np.float64)) for values in (first, second)]
    if any(np.ptp(each) == 0 for each in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0 on, of equal values the mean."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts + 1) / 2)[place])


def sentences(found: Record) -> list[str]:
    """What a check says, in lines."""
    if not found["examples"]:
        return ["check: none of the examples has two parts that could be left out"]
    lines = [f"check over {found['examples']:,} examples, {found['orders']} random orders each, seed {found['seed']}"]
    for name, better in (("deletion", "smaller"), ("insertion", "larger")):
        told = found[name]
        beyond = f"{told['gain']:+.4f} better than random{_interval(told)}"
        lines.append(f"{name}: area {told['area']:.4f} ({better} is better), random {told['random']:.4f}; {beyond}")
    told = found["randomised"]
    said = "none, these have no attributions" if told is None else f"{told['rank_correlation']:+.3f}{_interval(told)}"
    return [*lines, f"rank correlation with attributions of random weights: {said}"]


def _interval(told: Record) -> str:
    ends = told["interval"]
    return "" if ends is None else f" (95%: {ends[0]:+.4f} to {ends[1]:+.4f})"
