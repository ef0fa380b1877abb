"""Several ways to make a model smaller beside each other: those that no other one is better than in all that counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from bigctl.errors import RunError
from bigctl.inference.compression.compressed import changed, require_source
from bigctl.inference.compression.method import STRUCTURED, Method
from bigctl.inference.exporters import beside
from bigctl.inference.exporters.network import Network
from bigctl.inference.trained import TrainedRun

FLOAT32 = "float32"


@dataclass(frozen=True)
class Tried:
    """One way.

    Attributes:
        method: with its keys, as on the command line; "float32" for the run itself.
        score: on the validation split; `around` half of its 95% interval, `interval` that of the difference to float32
            by single rows.
        bytes: of all weights as they would be stored.
        time: the median of 64 examples as a part of what float32 takes; 1 where the same is computed.
        best: whether it is in the Pareto set.
        refused: why this model cannot be compressed so; empty if it can.
    """

    method: str
    score: float = 0.0
    around: float = 0.0
    interval: float = 0.0
    bytes: int = 0
    time: float = 1.0
    best: bool = False
    refused: str = ""


@dataclass(frozen=True)
class Front:
    """All that was tried, the run itself first.

    Attributes:
        scored: what `score` is.
        larger: whether it should be large.
        on: rows that it is of.
    """

    scored: str
    larger: bool
    on: str
    tried: list[Tried]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def lines(self) -> list[str]:
        """A table for people, members of the Pareto set marked with a star."""
        head = ("", self.scored, "+-", "bytes", "time")
        rows = [
            (("* " if each.best else "  ") + each.method, f"{each.score:.4f}", f"{each.interval:.4f}",
             f"{each.bytes:,}", f"{each.time:.2f}")
            for each in self.tried if not each.refused
        ]  # fmt: skip
        wide = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
        found = [
            "  ".join(
                [row[0].ljust(wide[0]), *(cell.rjust(size) for cell, size in zip(row[1:], wide[1:], strict=True))]
            )
            for row in (head, *rows)
        ]
        return found + [f"  {each.method}: {each.refused}" for each in self.tried if each.refused]


def front(trained: TrainedRun, methods: Sequence[Method]) -> Front:
    """What each method makes of a run; nothing is written.

    Raises:
        RunError: for a run that cannot be compressed at all, see `compressed.require_source`.
    """
    network, dataset = require_source(trained)
    trained = trained if trained.threshold is None else trained.with_threshold(None)
    whole = sum(values.nbytes for values in network.weights.values())
    before, found, first = network.copy(network.weights), [], None
    for method in methods:
        try:
            smaller, other, _, _ = changed(trained, method, network, dataset, sensitive=False)
        except RunError as error:
            found.append(Tried(str(method), refused=error.message))
            continue
        parts_went = method.method == STRUCTURED
        copied = Network.of(other) if parts_went else network
        weights = copied.weights if parts_went else {**network.weights, **smaller.values}
        where, sizes = str(trained.run.path), (64,) if parts_went else ()
        first = beside.compare(trained, network, before, copied.copy(weights), where, sizes)
        time = first.times[0].after_p50 / first.times[0].before_p50 if first.times else 1.0
        numbers = (first.after if first.scored else first.agreement, first.around[1], first.interval)
        found.append(Tried(str(method), *numbers, whole - smaller.before + smaller.after, time))
    if first is None:
        raise RunError("none of the methods is for this model", where=str(trained.run.path), hint=found[0].refused)
    own = Tried(FLOAT32, first.before if first.scored else 1.0, first.around[0], 0.0, whole)
    larger = first.scored not in (beside.SCORED["next"], beside.SCORED["number"])
    return Front(first.scored or "agreement", larger, first.on, marked([own, *found], larger=larger))


def marked(tried: Sequence[Tried], *, larger: bool) -> list[Tried]:
    """The same, `best` where no other one is as good in score, bytes and time and better in one of them."""
    costs = [(-each.score if larger else each.score, each.bytes, each.time) for each in tried]

    def beaten(number: int) -> bool:
        mine = costs[number]
        return any(
            all(a <= b for a, b in zip(other, mine, strict=True)) and other != mine
            for place, other in enumerate(costs)
            if not tried[place].refused
        )

    return [replace(each, best=not each.refused and not beaten(number)) for number, each in enumerate(tried)]
