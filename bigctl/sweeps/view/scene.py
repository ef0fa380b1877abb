"""The state of a sweep at one moment: its trials, how far each is, how long the rest will take. Free of jax."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bigctl.sweeps.execution.monitor import RunMonitor
from bigctl.sweeps.trials import COMPLETE, ENDED, FAILED, PRUNED, RUNNING, STOPPED, WAITING, State, Study

_ENOUGH = 0.1  # share of a trial from which on its duration can be estimated: before, start-up dominates


@dataclass(frozen=True)
class TrialProgress:
    """How far a trial is.

    Attributes:
        step, total_steps: of its training; 0 while nothing is known.
        curve: values so far of the metric that trials are ranked by, or else of train/loss.
        value: the last one of that metric.
        place: where it runs: "cores 0-1", "gpu 1".
    """

    step: int = 0
    total_steps: int = 0
    curve: Sequence[float] = ()
    value: float | None = None
    place: str = ""

    @classmethod
    def of(cls, run: RunMonitor, place: str, metric: str) -> TrialProgress:
        values = list((run.curves.get(metric) or {}).values())
        curve = values or list((run.curves.get("train/loss") or {}).values())
        return cls(run.step or 0, run.steps or 0, curve, values[-1] if values else None, place)

    @property
    def share(self) -> float:
        """The part of its training that is done, from 0 to 1."""
        return min(1.0, self.step / self.total_steps) if self.total_steps else 0.0


@dataclass
class Scene:
    """All that is shown of a sweep.

    Attributes:
        total: how many trials it will have.
        progress: of the trials that are known to run or to have run, by identity.
        running: {identity: seconds since it was seen to start} of those that run now. A trial that the ledger calls
            running and that is missing here was left behind by an earlier start of the sweep, and is waiting.
        jobs: how many run at once.
    """

    study: Study
    total: int
    progress: Mapping[str, TrialProgress] = field(default_factory=dict)
    running: Mapping[str, float] = field(default_factory=dict)
    jobs: int = 1

    @property
    def states(self) -> list[State]:
        return list(self.study.states.values())

    def of(self, state: State) -> TrialProgress:
        return self.progress.get(state.trial.id, TrialProgress())

    def status(self, state: State) -> str:
        return WAITING if state.status == RUNNING and state.trial.id not in self.running else state.status

    def seconds(self, state: State) -> float:
        return state.seconds + self.running.get(state.trial.id, 0.0)

    @property
    def best(self) -> State | None:
        """The complete trial with the best value so far."""
        scored = [s for s in self.states if s.score(self.study.metric) is not None]
        return min(scored, key=self.rank, default=None)

    def rank(self, state: State) -> tuple[int, float, int]:
        """Sort key: running trials first, then complete ones by their value, then the others."""
        score = state.score(self.study.metric)
        order = (RUNNING, COMPLETE, FAILED, PRUNED, STOPPED, WAITING).index(self.status(state))
        value = math.inf if score is None else -score if self.study.mode == "max" else score
        return order, value, state.trial.number

    @property
    def left(self) -> float | None:
        """Estimated seconds to the end of the sweep: from the mean duration of the trials that have ended; before any
        has, from the progress of those that run. None while there is nothing to estimate from."""
        running = [s for s in self.states if self.status(s) == RUNNING]
        took = [s.seconds for s in self.states if s.status in ENDED and s.seconds > 0]
        took = took or [self.seconds(s) / self.of(s).share for s in running if self.of(s).share > _ENOUGH]
        if not took:
            return None
        todo = self.total - sum(s.status in ENDED for s in self.states)
        begun = sum(self.of(s).share for s in running)
        return max(0.0, todo - begun) * sum(took) / len(took) / max(1, self.jobs)
