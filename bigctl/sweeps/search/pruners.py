"""Pruners stop trials early whose validation metric falls behind that of the others.

Progress is counted in evaluations, not in steps: trials with other batch sizes evaluate at other steps, but as often
per epoch. A value that is not finite is worse than any other. Decisions depend on the curves alone.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Curve = Mapping[int, float]
"""{step: value of the metric}, one entry an evaluation."""


@dataclass(frozen=True)
class Pruner:
    """Prunes nothing; the base of the others.

    Attributes:
        mode: whether values should be "max" or "min".
    """

    mode: str

    def judge(
        self,
        curve: Curve,
        others: Sequence[Curve],
        *,
        number: int = 0,
        numbers: Sequence[int] | None = None,
        judged: int | None = None,
    ) -> str | None:
        """Why a trial should be stopped, in one line; None if it should not.

        Args:
            curve: of the trial so far.
            others: of all other trials that have one, running ones too.
            number: of the trial; hyperband puts it into a bracket by this.
            numbers: those of the others; None if all are in the bracket of this trial.
            judged: how many evaluations were judged before; None for all but the last.
        """
        steps = sorted(curve)
        own = [self._cost(curve[step]) for step in steps]
        costs = [[self._cost(other[step]) for step in sorted(other)] for other in others]
        for count in range((len(own) - 1 if judged is None else judged) + 1, len(own) + 1):
            verdict = self._verdict(own[:count], costs, number, numbers)
            if verdict is not None:
                name, found, bound = verdict
                sign = ">" if self.mode == "min" else "<"
                return f"{name} at step {steps[count - 1]}: {self._text(found)} {sign} {self._text(bound)}"
        return None

    def _cost(self, value: float) -> float:
        """A value as something that should be small."""
        return (value if self.mode == "min" else -value) if math.isfinite(value) else math.inf

    def _text(self, cost: float) -> str:
        return f"{cost if self.mode == 'min' else -cost:.4g}" if math.isfinite(cost) else "nan"

    def _verdict(
        self, own: list[float], others: list[list[float]], number: int, numbers: Sequence[int] | None
    ) -> tuple[str, float, float] | None:
        """(what stops it, its cost, the cost it had to reach); None if it continues."""
        return None


@dataclass(frozen=True)
class Median(Pruner):
    """Its best value so far is worse than the median of the running averages of the others (Golovin et al. 2017).

    Attributes:
        warmup_trials: with fewer others at that evaluation, nothing is stopped.
        warmup_evaluations: so many first evaluations are not judged.
    """

    warmup_trials: int
    warmup_evaluations: int

    def _verdict(
        self, own: list[float], others: list[list[float]], number: int, numbers: Sequence[int] | None
    ) -> tuple[str, float, float] | None:
        count = len(own)
        reached = [other[:count] for other in others if len(other) >= count]
        if count <= self.warmup_evaluations or len(reached) < max(1, self.warmup_trials):
            return None
        bound = statistics.median(sum(other) / count for other in reached)
        return ("median", min(own), bound) if min(own) > bound else None


@dataclass(frozen=True)
class Asha(Pruner):
    """Asynchronous successive halving (Li et al. 2018), the variant that stops trials and never waits for others.

    A rung is at `first`, `first * reduction`, `first * reduction**2`, ... evaluations. A trial that reaches a rung
    continues if it is among the best 1/reduction of those that reached it so far, itself included; if these are too
    few for that, if it is the best.

    Attributes:
        first: the first rung [evaluations].
        reduction: one of so many continues.
    """

    first: int
    reduction: int

    def _verdict(
        self, own: list[float], others: list[list[float]], number: int, numbers: Sequence[int] | None
    ) -> tuple[str, float, float] | None:
        return self._rung(own, others, self.first, "asha")

    def _rung(
        self, own: list[float], others: list[list[float]], first: int, name: str
    ) -> tuple[str, float, float] | None:
        count, rung = len(own), first
        while rung < count:
            rung *= self.reduction
        if rung != count:
            return None
        there = sorted([own[-1], *(other[count - 1] for other in others if len(other) >= count)])
        bound = there[max(1, len(there) // self.reduction) - 1]
        return (name, own[-1], bound) if own[-1] > bound or own[-1] == math.inf else None


@dataclass(frozen=True)
class Hyperband(Asha):
    """Several ASHAs with increasing first rungs (Li et al. 2017), each for a share of the trials.

    So a trial that learns slowly at first has a chance in a later bracket. Trials are assigned to brackets by number,
    as many to each as in Hyperband: ceil(brackets / (s + 1) * reduction**s), s going down to 0 at the last one.

    Attributes:
        brackets: how many.
    """

    brackets: int

    def bracket(self, number: int) -> int:
        """The bracket of a trial: 0 is the one with the earliest first rung."""
        shares = self._shares()
        place = number % sum(shares)
        return next(b for b, dealt in enumerate(_deal(shares)) if place in dealt)

    def _shares(self) -> list[int]:
        last = self.brackets - 1
        return [math.ceil(self.brackets / (s + 1) * self.reduction**s) for s in range(last, -1, -1)]

    def _verdict(
        self, own: list[float], others: list[list[float]], number: int, numbers: Sequence[int] | None
    ) -> tuple[str, float, float] | None:
        bracket = self.bracket(number)
        if numbers is not None:
            others = [o for o, other in zip(others, numbers, strict=True) if self.bracket(other) == bracket]
        return self._rung(own, others, self.first * self.reduction**bracket, f"hyperband, bracket {bracket},")


def _deal(shares: Sequence[int]) -> list[set[int]]:
    """Deal the numbers below the sum of the shares, each to the bracket furthest behind its share: all begin soon."""
    dealt: list[set[int]] = [set() for _ in shares]
    for number in range(sum(shares)):
        behind = [share * (number + 1) / sum(shares) - len(got) for share, got in zip(shares, dealt, strict=True)]
        dealt[behind.index(max(behind))].add(number)
    return dealt
