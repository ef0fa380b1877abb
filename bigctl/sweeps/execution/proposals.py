"""Which trials of a sweep run next: those that have not ended, then those of the points that the sampler proposes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from bigctl.config.schema.experiment import Config
from bigctl.errors import ConfigError
from bigctl.sweeps.execution.monitor import Monitors
from bigctl.sweeps.ledger import Ledger, unfinished
from bigctl.sweeps.search.choose import make_sampler
from bigctl.sweeps.search.samplers import Observation, Sampler, key_of
from bigctl.sweeps.search.space import Composable, Plan, Repeat
from bigctl.sweeps.trials import COMPLETE, FAILED, PRUNED, RUNNING, STOPPED, Point, State, Study, Trial, trials_of

MOST_REFUSED = 200
"""Points in a row that cannot be composed, after which a sampler is taken to have no others."""


@dataclass
class Proposals:
    """The trials of a sweep, written to its ledger as they are proposed.

    Args:
        plan: what is searched.
        points: how many points are to be trained in all.
        ledger: of the sweep's folder, which this process holds.
        monitors: of the trials' run directories.
    """

    plan: Plan
    points: int
    ledger: Ledger
    monitors: Monitors
    _samplers: dict[str | None, Sampler] = field(default_factory=dict)
    _exhausted: bool = False
    _composable: Composable | None = None

    @property
    def study(self) -> Study:
        return self.ledger.study

    @property
    def planned(self) -> int:
        """How many trials there will be in all, as far as is known."""
        points = len({key_of(s.trial.point) for s in self.study.states.values()})
        if not self._exhausted:
            points = max(points, self.points)
        return max(points * len(self.plan.space.repeats), len(self.study.states))

    def next(self, count: int, busy: Collection[str]) -> list[State]:
        """Up to `count` trials to run now, none of which is busy: unfinished ones first, then new ones."""
        found = [s for s in unfinished(self.study) if s.trial.id not in busy][:count]
        while len(found) < count and self.propose():
            known = {s.trial.id for s in found} | set(busy)
            new = [s for s in unfinished(self.study) if s.trial.id not in known]
            found += new[: count - len(found)]
        return found

    def propose(self) -> bool:
        """Add one more point with all its seeds and folds; whether there was one."""
        observations = self._observations()
        if self.plan.sweep.sampler != "grid" and len(observations) >= self.points:
            self._exhausted = True
        if self._exhausted:
            return False
        point = self._ask(observations)
        if point is None or not self.enter(point):
            self._exhausted = True
            return False
        return True

    def _ask(self, observations: list[Observation]) -> Point | None:
        """What the sampler proposes; a point that cannot be composed is proposed anew. None if the space is exhausted.

        What was refused depends on the number of the point and the history alone, as proposals do.

        Raises:
            ConfigError: if the first point cannot be found: none of those drawn can be trained.
        """
        sampler = self._sampler()
        if self.plan.sweep.sampler == "grid":  # all of it was checked before anything was started
            return sampler.ask(len(observations), observations)
        self._composable = self._composable or Composable(self.plan)
        refused: list[Observation] = []
        problem: ConfigError | None = None
        while len(refused) < MOST_REFUSED:
            point = sampler.ask(len(observations), [*observations, *refused])
            if point is None or (problem := self._composable.problem(point)) is None:
                break
            refused.append(Observation(point, status=FAILED))
        else:
            point = None
        if point is None and problem is not None and not observations:
            raise problem
        return point

    def enter(self, point: Point) -> bool:
        """Add the trials of a point that the ledger does not have; whether there were any. A trial without a seed was
        trained with the schema's seed: if that is among seeds that were added later, it is not trained twice."""
        before = len(self.study.states)
        known = {repeat_of(s.trial) for s in self.study.states.values() if key_of(s.trial.point) == key_of(point)}
        for trial in trials_of(self.plan, 0, point):
            if trial.id in self.study.states or repeat_of(trial) in known:
                continue
            self.ledger.append(
                "trial", id=trial.id, number=len(self.study.states), overrides=list(trial.overrides),
                point=dict(trial.point), seed=trial.seed, fold=trial.fold, run=f"trials/{trial.id}",
            )  # fmt: skip
        return len(self.study.states) > before

    def _sampler(self) -> Sampler:
        """Scores are compared by the metric's mode, which is known for sure once a trial has begun."""
        mode = self.study.definition.get("mode")
        if mode not in self._samplers:
            self._samplers[mode] = make_sampler(self.plan, mode)
        return self._samplers[mode]

    def _observations(self) -> list[Observation]:
        """One a point, in the order they were proposed."""
        points: dict[tuple[tuple[str, str], ...], list[State]] = {}
        for state in sorted(self.study.states.values(), key=lambda s: s.trial.number):
            points.setdefault(key_of(state.trial.point), []).append(state)
        second = str(self.study.definition.get("sweep", {}).get("pareto") or "")
        return [self._observation(states, second) for states in points.values()]

    def _observation(self, states: list[State], second: str) -> Observation:
        metric = self.study.metric
        statuses = {s.status for s in states}
        status = next((s for s in (RUNNING, STOPPED, PRUNED, COMPLETE, FAILED) if s in statuses), RUNNING)
        curve: dict[int, float] = {}
        if status == PRUNED:
            curve = self.monitors.of(next(s for s in states if s.status == PRUNED)).curves.get(metric, {})
        return Observation(
            point=states[0].trial.point, score=_mean(states, metric), second=_mean(states, second) if second else None,
            status=status, curve=curve,
        )  # fmt: skip


def repeat_of(trial: Trial) -> Repeat:
    """The seed that a trial is trained with, given or not, and its fold."""
    return Config.seed if trial.seed is None else trial.seed, trial.fold


def _mean(states: Sequence[State], metric: str) -> float | None:
    scores = [score for s in states if (score := s.score(metric)) is not None]
    return sum(scores) / len(scores) if scores else None
