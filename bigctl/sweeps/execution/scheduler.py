"""The loop of a sweep: propose, start, watch, prune, take note; until every trial has ended. Free of jax.

The ledger says what was decided, a trial's run directory how far it is. Whatever kills this process leaves both as they
are, so that the same command goes on: complete trials are taken over, the others resume from their checkpoints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigctl.config.schema.experiment import Config
from bigctl.errors import ConfigError, Preempted, TrainingFailed
from bigctl.runs.directory import RunDirectory
from bigctl.sweeps import ledger as ledgers
from bigctl.sweeps.execution import monitor, trial_commands
from bigctl.sweeps.execution.local import Executor, Job
from bigctl.sweeps.execution.monitor import Ending, Watch
from bigctl.sweeps.ledger import Ledger
from bigctl.sweeps.search import pruners, samplers
from bigctl.sweeps.search.pruners import Pruner
from bigctl.sweeps.search.samplers import Observation, Sampler, key_of
from bigctl.sweeps.search.space import Plan
from bigctl.sweeps.trials import COMPLETE, FAILED, PRUNED, RUNNING, STOPPED, Point, State, Study, Trial, trials_of
from bigctl.sweeps.view.live import LiveView, Progress
from bigctl.training.signals import StopRequest

POLL = 0.1
"""Between two looks at what is running [s]."""
_IDLE = 3  # starts in a row that end by a signal without getting any further, and are enough


@dataclass
class Settings:
    """How to run a sweep, besides what.

    Attributes:
        fail_fast: stop at the first trial that fails.
        max_failures: stop when more have failed; None for no limit.
        retry_failed: give those that failed before another try.
        packed: trials of one process at most; 1 for a process each.
        pack_mode: what such a process is told: "auto" to measure first, "yes".
    """

    fail_fast: bool = False
    max_failures: int | None = None
    retry_failed: bool = False
    packed: int = 1
    pack_mode: str = "yes"


@dataclass
class _Running:
    """A job and the trials it works on; `since` are the steps they started from, `own` whether it is of this start of
    the sweep, `asked` whether it was asked to leave, `told` how much of what it measured."""

    job: Job
    states: list[State]
    began: float
    since: dict[str, int | None]
    log: Path
    own: bool = True
    asked: bool = False
    told: int = 0
    count: int = field(init=False)

    def __post_init__(self) -> None:
        self.count = len(self.states)


class _Elsewhere:
    """A trial that some other process trains: one that an earlier start of the sweep has left behind."""

    def __init__(self, run: RunDirectory, place: str):
        self._run, self.place = run, place or "left running"

    def poll(self) -> int | None:
        return None if self._run.held() else 0

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


@dataclass
class Driver:
    """One start of a sweep.

    Args:
        plan: what is searched.
        points: how many points of it are to be trained in all.
        ledger: of the sweep's folder, which this process holds.
        executor: where trials run.
        settings: how.
        view: what the user sees.
        stop: an entered one.
    """

    plan: Plan
    points: int
    ledger: Ledger
    executor: Executor
    settings: Settings
    view: LiveView
    stop: StopRequest
    running: list[_Running] = field(default_factory=list)
    halted: str = ""
    _judges: tuple[str | None, Sampler, Pruner] | None = None
    _watches: dict[str, Watch] = field(default_factory=dict)
    _pruned: dict[str, str] = field(default_factory=dict)
    _idle: dict[str, int] = field(default_factory=dict)
    _used_up: bool = False

    @property
    def study(self) -> Study:
        return self.ledger.study

    # ------------------------------------------------------------------------------------------------------- the loop

    def run(self) -> None:
        """Until no trial is left to run, or too many have failed.

        Raises:
            Preempted: if it was asked to stop; its trials have saved.
            ConfigError: for a metric that no trial reports.
            RunError: if the ledger cannot be written.
        """
        self._take_up()
        try:
            while True:
                self._reap()
                if self.stop.exit_code is not None:
                    self._halt(self.stop.reason)
                if not self.halted:
                    self._start()
                self._look()
                if not self.running:
                    break
                time.sleep(POLL)
        finally:
            for running in self.running:  # after an error: they save by themselves
                running.job.terminate()
        if self.stop.exit_code is not None:
            left = self.planned - sum(s.status in (COMPLETE, PRUNED, FAILED) for s in self.study.states.values())
            raise Preempted(
                f"stopped by {self.stop.reason} with {left} of {self.planned} trials to go",
                exit_code=self.stop.exit_code,
                where=str(self.study.path),
                hint="run the same command again: it goes on",
            )

    @property
    def planned(self) -> int:
        """How many trials there will be in all, as far as is known."""
        points = len({key_of(s.trial.point) for s in self.study.states.values()})
        if not self._used_up:
            points = max(points, self.points)
        return max(points * max(1, len(self.plan.space.seeds)), len(self.study.states))

    def _take_up(self) -> None:
        """What an earlier start has left: failed ones to try again, results that it did not live to write down."""
        for state in list(self.study.states.values()):
            if state.status == FAILED and self.settings.retry_failed:
                self.ledger.append("again", id=state.trial.id)
        gone = [s for s in self.study.states.values() if s.status == COMPLETE and not self.study.run(s).exists()]
        if gone:
            self.view.say(
                f"note: the run directories of {len(gone)} complete trial{'s are' if len(gone) > 1 else ' is'} gone "
                f"({gone[0].trial.label}): results are kept, weights are not"
            )
        for point in {key_of(s.trial.point): s.trial.point for s in self.study.states.values()}.values():
            self._enter(point)  # which gets the seeds that have been added since
        for state in list(ledgers.unfinished(self.study)):
            run = RunDirectory(self.study.run(state))
            if run.held():
                self._begin([state], _Elsewhere(run, state.place), own=False)
            elif state.attempts and not run.path.exists():
                self.view.say(f"note: {state.trial.label}: its run directory is gone; it starts again from step 0")
            elif state.attempts and (found := monitor.ending(run.path)).status == COMPLETE:
                self._note_end(state, found, found.seconds or 0.0)
        if left := len(self.running):
            go = "trials of an earlier start go" if left > 1 else "trial of an earlier start goes"
            self.view.say(f"note: {left} {go} on, each in the place of a job")

    def _reap(self) -> None:
        for running in list(self.running):
            code = running.job.poll()
            seconds = (time.monotonic() - running.began) / running.count
            for state in [s for s in running.states if code is not None or self._complete(running, s)]:
                running.states.remove(state)
                self._ended(state, running, code or 0, seconds)
            if code is not None:
                self.running.remove(running)

    def _complete(self, running: _Running, state: State) -> bool:
        """Whether a trial of a pack has come to its end before the others."""
        run = RunDirectory(self.study.run(state))
        return running.count > 1 and run.summary_file.exists() and monitor.ending(run.path).status == COMPLETE

    def _start(self) -> None:
        while not self.halted:
            left = {s.log or s.trial.id: r.job.place for r in self.running if not r.own for s in r.states}
            if sum(r.own for r in self.running) + len(left) >= self.executor.slots:  # a pack has one log
                return
            states = self._next(self.settings.packed)
            if not states:
                return
            held = [s for s in states if RunDirectory(self.study.run(s)).held()]
            for state in held:  # by a process that an earlier start has left behind, and that had not begun by then
                self._begin([state], _Elsewhere(RunDirectory(self.study.run(state)), state.place), own=False)
            states = [s for s in states if s not in held]
            if not states:
                continue
            log = self._log(states)
            job = self.executor.start(self._command(states, log), folder=Path.cwd(), log=log, avoid=set(left.values()))
            self._begin(states, job, own=True)

    def _begin(self, states: list[State], job: Job, *, own: bool) -> None:
        since = {s.trial.id: monitor.reached(self.study.run(s)) for s in states}
        if own:
            for state in states:
                (self.study.run(state) / monitor.PRUNE).unlink(missing_ok=True)
                log = str(self._log(states).relative_to(self.study.path))
                self.ledger.append(
                    "start", id=state.trial.id, attempt=state.attempts + 1, step=since[state.trial.id],
                    place=job.place, log=log,
                )  # fmt: skip
        self.running.append(_Running(job, list(states), time.monotonic(), since, self._log(states), own))

    def _halt(self, why: str) -> None:
        """Start nothing more, and ask what is running to save and leave."""
        if not self.halted:
            self.halted = why
            if any(r.own and r.states for r in self.running):
                self.view.say(f"{why}: the trials that are running save and leave")
        for running in list(self.running):
            if not running.own:
                self.running.remove(running)
            elif not running.asked:
                running.asked = True
                running.job.terminate()

    # ------------------------------------------------------------------------------------------------------- proposing

    def _next(self, count: int) -> list[State]:
        """Up to so many trials to run now: what was proposed and has not ended, then new ones."""
        busy = {s.trial.id for r in self.running for s in r.states}
        found = [s for s in ledgers.unfinished(self.study) if s.trial.id not in busy][:count]
        while len(found) < count and self._propose():
            known = {s.trial.id for s in found} | busy
            new = [s for s in ledgers.unfinished(self.study) if s.trial.id not in known]
            found += new[: count - len(found)]
        return found

    def _propose(self) -> bool:
        """One more point, with all its seeds; whether there was one."""
        observations = self._observations()
        if self.plan.sweep.sampler != "grid" and len(observations) >= self.points:
            self._used_up = True
        if self._used_up:
            return False
        point = self._sampler.ask(len(observations), observations)
        if point is None or not self._enter(point):
            self._used_up = True
            return False
        return True

    @property
    def _sampler(self) -> Sampler:
        return self._made()[0]

    @property
    def _pruner(self) -> Pruner:
        return self._made()[1]

    def _made(self) -> tuple[Sampler, Pruner]:
        """Both judge by the metric's mode, which is known for sure once a trial has begun."""
        mode = self.study.definition.get("mode")
        if self._judges is None or self._judges[0] != mode:
            self._judges = mode, samplers.make(self.plan, mode), pruners.make(self.plan.sweep, self.study.mode)
        return self._judges[1:]

    def _enter(self, point: Point) -> bool:
        """The trials of a point that the ledger does not have; whether there were any. One that says nothing of seeds
        has that of the schema: where the study has been given seeds since, it is one of them."""
        before = len(self.study.states)
        known = {seed_of(s.trial) for s in self.study.states.values() if key_of(s.trial.point) == key_of(point)}
        for trial in trials_of(self.plan, 0, point):
            if trial.id in self.study.states or seed_of(trial) in known:
                continue
            self.ledger.append(
                "trial", id=trial.id, number=len(self.study.states), overrides=list(trial.overrides),
                point=dict(trial.point), seed=trial.seed, run=f"trials/{trial.id}",
            )  # fmt: skip
        return len(self.study.states) > before

    def _observations(self) -> list[Observation]:
        """One a point, in the order they were proposed."""
        points: dict[Any, list[State]] = {}
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
            curve = self._watch(next(s for s in states if s.status == PRUNED)).curves.get(metric, {})
        return Observation(
            point=states[0].trial.point, score=_mean(states, metric), second=_mean(states, second) if second else None,
            status=status, curve=curve,
        )  # fmt: skip

    # -------------------------------------------------------------------------------------------------------- watching

    def _watch(self, state: State) -> Watch:
        name = state.trial.id
        if name not in self._watches:
            self._watches[name] = Watch(self.study.run(state))
            self._watches[name].look()
        return self._watches[name]

    def _look(self) -> None:
        """New metrics of what is running: for the view, and for the pruner's judgement."""
        progress = {}
        for running in self.running:
            self._tell_verdict(running)
            for state in running.states:
                seen = self._watch(state)
                news = seen.look()
                self._learn(seen)
                if news and not running.asked and state.trial.id not in self._pruned:
                    self._judge(running, state, seen)
                progress[state.trial.id] = Progress.of(seen, running.job.place, self.study.metric)
        self.view.total = self.planned
        self.view.update(self.study, progress)

    def _tell_verdict(self, running: _Running) -> None:
        """What a process that measured how to train its trials has chosen."""
        if not running.own or self.settings.pack_mode != "auto" or self.settings.packed == 1:
            return
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(trial_commands.verdict(running.log.with_suffix(".json")).read_text(encoding="utf-8"))
            for group in found["groups"][running.told :]:
                running.told += 1
                self.view.say(str(group["sentence"]))

    def _learn(self, seen: Watch) -> None:
        """The metric that trials are ranked by is the one by which they select, unless `sweep.metric` names it."""
        if self.study.definition.get("metric") or seen.selection is None:
            return
        metric, mode = seen.selection
        self.ledger.append("study", definition={**self.study.definition, "metric": metric, "mode": mode})

    def _judge(self, running: _Running, state: State, seen: Watch) -> None:
        if self.plan.sweep.pruner == "none":
            return
        metric = self.study.metric
        others = [s for s in self.study.states.values() if s is not state and s.attempts]
        reason = self._pruner.judge(
            seen.curves.get(metric, {}), [self._watch(s).curves.get(metric, {}) for s in others],
            number=state.trial.number, numbers=[s.trial.number for s in others],
        )  # fmt: skip
        if reason is None:
            return
        self._pruned[state.trial.id] = reason
        if running.count == 1:
            running.job.terminate()
        else:
            (self.study.run(state) / monitor.PRUNE).write_text(reason + "\n", encoding="utf-8")

    # ---------------------------------------------------------------------------------------------------------- ending

    def _ended(self, state: State, running: _Running, code: int, seconds: float) -> None:
        """A process has ended; what its run directory says counts, and only where that says nothing, its exit code."""
        run, name = self.study.run(state), state.trial.id
        seen = self._watch(state)
        seen.look()
        self._learn(seen)
        found = monitor.ending(run)
        if found.status == STOPPED:
            further = found.step is not None and found.step > (running.since[name] or -1)
            self._idle[name] = 0 if further else self._idle.get(name, 0) + 1
            if name in self._pruned:
                found = dataclasses.replace(found, status=PRUNED, message=self._pruned[name])
            elif running.own and not running.asked and not further and self._hopeless(name, code):
                said = trial_commands.ends(running.log.with_suffix(".json")).get(name)
                found = dataclasses.replace(found, status=FAILED, message=said or monitor.cause(code, running.log))
        if found.status == FAILED and found.message.startswith("eval.metric: "):
            raise ConfigError(found.message.removeprefix("eval.metric: "), where="sweep.metric")
        if found.status == COMPLETE and found.seconds is not None and not running.own:
            seconds = found.seconds
        self._note_end(state, found, seconds, code)

    def _hopeless(self, name: str, code: int) -> bool:
        """Whether another start is not worth it: it was not killed or preempted, nor held by another process; or it
        was, and has got no further, twice."""
        interrupted = code < 0 or code in (75, 130, 143)
        return code != 5 and (not interrupted or self._idle[name] >= _IDLE)

    def _note_end(self, state: State, found: Ending, seconds: float, code: int | None = None) -> None:
        self.ledger.append(
            "end", id=state.trial.id, status=found.status, metrics=found.metrics, step=found.step,
            seconds=round(seconds, 3), message=found.message, exit_code=code,
        )  # fmt: skip
        if found.status == COMPLETE and not self.study.definition.get("metric"):
            self._learn(self._watch(state))
        failed = sum(s.status == FAILED for s in self.study.states.values())
        limit = 0 if self.settings.fail_fast else self.settings.max_failures
        if found.status == FAILED and limit is not None and failed > limit and not self.halted:
            self._halt("--fail-fast" if self.settings.fail_fast else f"more than --max-failures {limit} failed")

    # --------------------------------------------------------------------------------------------------------- helpers

    def _command(self, states: list[State], log: Path) -> list[str]:
        plan = self.plan
        if self.settings.packed == 1:
            return trial_commands.one(states[0].trial, self.study.run(states[0]), plan.config_dirs, plan.plugins)
        trials = [(state.trial, self.study.run(state)) for state in states]
        job = log.with_suffix(".json")
        return trial_commands.pack(trials, job, self.settings.pack_mode, plan.config_dirs, plan.plugins)

    def _log(self, states: list[State]) -> Path:
        """Where what a process prints is kept: that of a trial, or of a pack under its first trial's name."""
        return self._folder("logs") / f"{states[0].trial.id}.{'log' if len(states) == 1 else 'pack.log'}"

    def _folder(self, name: str) -> Path:
        folder = self.study.path / name
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise TrainingFailed(f"cannot be made: {error.strerror}", where=str(folder)) from error
        return folder


def seed_of(trial: Trial) -> int:
    """What a trial is trained with, said or not."""
    return Config.seed if trial.seed is None else trial.seed


def _mean(states: Sequence[State], metric: str) -> float | None:
    scores = [score for s in states if (score := s.score(metric)) is not None]
    return sum(scores) / len(scores) if scores else None
