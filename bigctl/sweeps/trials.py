"""The data types of a sweep: a trial, its state, and the study of all trials. Free of jax and of Hydra.

A *point* is one setting of all search dimensions, {key: value as an override has it}. A *trial* trains one point with
one seed on one fold of the data: seeds and folds are repeats of a point, never a dimension.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigctl.sweeps.search import space

WAITING, RUNNING, COMPLETE, PRUNED, FAILED, STOPPED = "waiting", "running", "complete", "pruned", "failed", "stopped"
ENDED = (COMPLETE, PRUNED, FAILED)
"""Statuses that the same command leaves unchanged; a stopped trial is resumed, a failed one with --retry-failed."""

Point = Mapping[str, str]


def identity(overrides: Iterable[str]) -> str:
    """The id of a trial: 12 hexadecimal digits of the SHA-256 of its sorted overrides."""
    return hashlib.sha256("\n".join(sorted(overrides)).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Trial:
    """One training of a study.

    Attributes:
        number: from 0 on, in the order of proposal.
        overrides: all that `bigctl train` is given: the study's fixed ones, those of the point, the seed, the fold.
        point: the searched keys and their values, as text.
        seed: None where the study sets no seeds.
        fold: None where it has no folds.
    """

    number: int
    overrides: tuple[str, ...]
    point: Point
    seed: int | None = None
    fold: int | None = None

    @property
    def id(self) -> str:
        return identity(self.overrides)

    @property
    def label(self) -> str:
        """The point in short, fold and seed with it: "lr=0.001 width=64 fold=4 seed=1"."""
        repeat = [f"{name}={n}" for name, n in (("fold", self.fold), ("seed", self.seed)) if n is not None]
        return " ".join(filter(None, [label(self.point), *repeat]))


def trials_of(plan: space.Plan, number: int, point: Point) -> list[Trial]:
    """The trials of a point, one a seed and fold.

    Args:
        plan: the sweep.
        number: of the point, in the order of proposal; its trials are numbered from `number * repeats` on.
        point: the searched keys and their values.
    """
    repeats = plan.space.repeats
    return [
        Trial(number * len(repeats) + i, space.overrides_of(plan, point, repeat), dict(point), *repeat)
        for i, repeat in enumerate(repeats)
    ]


def repeats_text(seeds: int, folds: int) -> str:
    """How often each point is trained, in words: "3 seeds", "5 folds", "5 folds with 3 seeds each"."""
    counted = f"{seeds} seed{'s' * (seeds != 1)}"
    return counted if not folds else f"{folds} folds" + (f" with {counted} each" if seeds > 1 else "")


def label(point: Point) -> str:
    """Keys by their last part where that is enough to tell them apart."""
    short = [key.rsplit(".", 1)[-1] for key in point]
    return " ".join(
        f"{key if short.count(last) > 1 else last}={value}"
        for (key, value), last in zip(point.items(), short, strict=True)
    )


@dataclass
class State:
    """The state of a trial.

    Attributes:
        metrics: the finite ones of its summary, flat; `val/...` of the selected step. Empty until it is complete.
        step: the last known one.
        seconds: how long its processes have run, over all attempts.
        message: why it failed or was pruned, one line.
        attempts: how often it was started.
        run, log: its run directory, and what its last process has printed, relative to the study's folder.
        place: where its last process was started: "cores 0-1", "gpu 1".
    """

    trial: Trial
    status: str = WAITING
    metrics: dict[str, float] = field(default_factory=dict)
    step: int | None = None
    seconds: float = 0.0
    message: str = ""
    exit_code: int | None = None
    attempts: int = 0
    run: str = ""
    log: str = ""
    place: str = ""

    def score(self, metric: str) -> float | None:
        """A metric's value if the trial is complete and the value finite; None else."""
        value = self.metrics.get(metric) if self.status == COMPLETE else None
        return value if value is not None and math.isfinite(value) else None


@dataclass
class Study:
    """A sweep as its ledger records it.

    Attributes:
        path: its folder.
        definition: what it was started with: `fixed` (overrides), `axes`, `seeds`, `folds`, `sweep` (its settings),
            `metric`, `mode` ("max" or "min").
        states: by identity, in the order of proposal.
        test: {identity: metrics of the test split} of the winner's trials.
        damaged: lines of the ledger that could not be read.
    """

    path: Path
    definition: dict[str, Any] = field(default_factory=dict)
    states: dict[str, State] = field(default_factory=dict)
    test: dict[str, dict[str, float]] = field(default_factory=dict)
    damaged: int = 0

    @property
    def metric(self) -> str:
        return str(self.definition.get("metric") or "")

    @property
    def mode(self) -> str:
        return str(self.definition.get("mode") or "max")

    def run(self, state: State) -> Path:
        """The run directory of a trial."""
        return self.path / (state.run or f"trials/{state.trial.id}")
