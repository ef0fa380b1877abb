"""The loop of a sweep: propose, start, monitor, prune, record; until every trial has ended. Free of jax.

The ledger holds what was decided, a trial's run directory how far it is. Whatever kills this process leaves both as
they are, and the same command continues: complete trials are kept, the others resume from their checkpoints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path

from bigctl.errors import ConfigError, Preempted, TrainingFailed
from bigctl.runs import untrusted
from bigctl.runs.directory import RunDirectory
from bigctl.sweeps import ledger as ledgers
from bigctl.sweeps.execution import monitor, refusals, trial_commands
from bigctl.sweeps.execution.local import Executor, Job
from bigctl.sweeps.execution.monitor import Monitors, RunEnd, RunMonitor
from bigctl.sweeps.execution.proposals import Proposals
from bigctl.sweeps.ledger import Ledger
from bigctl.sweeps.packed.trial_stop import PRUNE
from bigctl.sweeps.search.choose import make_pruner
from bigctl.sweeps.search.samplers import key_of
from bigctl.sweeps.search.space import Plan
from bigctl.sweeps.trials import COMPLETE, FAILED, PRUNED, STOPPED, State, Study
from bigctl.sweeps.view.live import LiveView
from bigctl.sweeps.view.scene import TrialProgress
from bigctl.training.signals import StopRequest

POLL = 0.1
"""Time between two checks of what is running [s]."""
_MOST_IDLE = 3
"""A trial fails after so many starts in a row that were interrupted before it saved a checkpoint."""


@dataclass
class SchedulerOptions:
    """How to run a sweep, besides what.

    Attributes:
        fail_fast: stop at the first trial that fails.
        max_failures: stop when more have failed; None for no limit.
        retry_failed: start failed trials once more.
        packed: trials of one process at most; 1 for a process each.
        pack_mode: what such a process is told: "auto" to measure first, "yes".
    """

    fail_fast: bool = False
    max_failures: int | None = None
    retry_failed: bool = False
    packed: int = 1
    pack_mode: str = "yes"


@dataclass
class _RunningJob:
    """A job and those of its trials that have not ended.

    Attributes:
        resumed_at: {identity: step that the trial was started from}.
        own: whether this start of the sweep started it.
        stopping: whether it was asked to save and exit.
        reported: how many of its measurements were shown.
        size: how many trials it was started with.
    """

    job: Job
    states: list[State]
    started: float
    resumed_at: dict[str, int | None]
    log: Path
    own: bool = True
    stopping: bool = False
    reported: int = 0
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = len(self.states)


class _LeftRunning:
    """A trial in a process that an earlier start of the sweep left behind, as a job that can only be waited for."""

    def __init__(self, run: RunDirectory, place: str):
        self._run, self.place = run, place or "left running"

    def poll(self) -> int | None:
        return None if self._run.held() else 0

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


@dataclass
class Scheduler:
    """One start of a sweep.

    Args:
        plan: what is searched.
        points: how many points of it are to be trained in all.
        ledger: of the sweep's folder, which this process holds.
        executor: where trials run.
        options: how.
        view: what the user sees.
        stop: an entered one.
    """

    plan: Plan
    points: int
    ledger: Ledger
    executor: Executor
    options: SchedulerOptions
    view: LiveView
    stop: StopRequest
    running: list[_RunningJob] = field(default_factory=list)
    halted: str = ""
    _pruned: dict[str, str] = field(default_factory=dict)
    _idle_starts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._monitors = Monitors(self.study)
        self.proposals = Proposals(self.plan, self.points, self.ledger, self._monitors)

    @property
    def study(self) -> Study:
        return self.ledger.study

    # ------------------------------------------------------------------------------------------------------- the loop

    def run(self) -> None:
        """Run until no trial is left, or too many have failed.

        Raises:
            Preempted: if it was asked to stop; its trials have saved.
            ConfigError: for a metric that no trial reports, or where no trial can begin.
            RunError: if the ledger cannot be written.
        """
        self._recover()
        try:
            while True:
                self._collect()
                if self.stop.exit_code is not None:
                    self._halt(self.stop.reason)
                if not self.halted:
                    self._start()
                self._monitor()
                if not self.running:
                    break
                self._wait()
        finally:
            for running in self.running:  # after an error: the trials save by themselves
                running.job.terminate()
            self.executor.rest()
        if self.stop.exit_code is not None:
            planned = self.proposals.planned
            left = planned - sum(s.status in (COMPLETE, PRUNED, FAILED) for s in self.study.states.values())
            raise Preempted(
                f"stopped by {self.stop.reason} with {left} of {planned} trials to go",
                exit_code=self.stop.exit_code,
                where=str(self.study.path),
                hint="run the same command again to continue",
            )

    def _wait(self) -> None:
        """Until a job has ended, so that the next one begins at once, or it is time to look at all that is running."""
        until = time.monotonic() + POLL
        own = [running.job for running in self.running if running.own]
        while time.monotonic() < until and all(job.poll() is None for job in own):
            time.sleep(self.executor.look)

    def _recover(self) -> None:
        """Take over from an earlier start: retry failed trials, record ends that it did not live to write down."""
        for state in list(self.study.states.values()):
            if state.status == FAILED and self.options.retry_failed:
                self.ledger.append("again", id=state.trial.id)
        gone = [s for s in self.study.states.values() if s.status == COMPLETE and not self.study.run(s).exists()]
        if gone:
            self.view.say(
                f"note: the run directories of {len(gone)} complete trial{'s are' if len(gone) > 1 else ' is'} gone "
                f"({gone[0].trial.label}): results are kept, weights are not"
            )
        for point in {key_of(s.trial.point): s.trial.point for s in self.study.states.values()}.values():
            self.proposals.enter(point)  # with the seeds that have been added since
        for state in list(ledgers.unfinished(self.study)):
            run = RunDirectory(self.study.run(state))
            if run.held():
                self._register([state], _LeftRunning(run, state.place), own=False)
            elif state.attempts and not run.path.exists():
                self.view.say(f"note: {state.trial.label}: its run directory is gone; it starts again from step 0")
            elif state.attempts and (end := monitor.read_end(run.path)).status == COMPLETE:
                self._record_end(state, end, end.seconds or 0.0)
        if left := len(self.running):
            what = "1 trial of an earlier start is" if left == 1 else f"{left} trials of an earlier start are"
            self.view.say(f"note: {what} still running; each takes the place of a job")

    def _collect(self) -> None:
        """Record the trials that have ended."""
        for running in list(self.running):
            code = running.job.poll()
            seconds = (time.monotonic() - running.started) / running.size
            for state in [s for s in running.states if code is not None or self._is_complete(running, s)]:
                running.states.remove(state)
                self._on_exit(state, running, code or 0, seconds)
            if code is not None:
                self.running.remove(running)

    def _is_complete(self, running: _RunningJob, state: State) -> bool:
        """Whether a trial of a pack has ended before the others."""
        run = RunDirectory(self.study.run(state))
        return running.size > 1 and run.summary_file.exists() and monitor.read_end(run.path).status == COMPLETE

    def _start(self) -> None:
        """Start jobs while there are slots and trials."""
        while not self.halted:
            left = {s.log or s.trial.id: r.job.place for r in self.running if not r.own for s in r.states}
            if sum(r.own for r in self.running) + len(left) >= self.executor.slots:  # a pack has one log
                return
            states = self.proposals.next(self.options.packed, {s.trial.id for r in self.running for s in r.states})
            if not states:
                return
            held = [s for s in states if RunDirectory(self.study.run(s)).held()]
            for state in held:  # by a process of an earlier start that had not taken its lock when we looked first
                self._register([state], _LeftRunning(RunDirectory(self.study.run(state)), state.place), own=False)
            states = [s for s in states if s not in held]
            if not states:
                continue
            log = self._log(states)
            job = self.executor.start(self._command(states, log), folder=Path.cwd(), log=log, avoid=set(left.values()))
            self._register(states, job, own=True)

    def _register(self, states: list[State], job: Job, *, own: bool) -> None:
        resumed_at = {s.trial.id: monitor.last_checkpoint(self.study.run(s)) for s in states}
        if own:
            for state in states:
                (self.study.run(state) / PRUNE).unlink(missing_ok=True)
                log = str(self._log(states).relative_to(self.study.path))
                self.ledger.append(
                    "start", id=state.trial.id, attempt=state.attempts + 1, step=resumed_at[state.trial.id],
                    place=job.place, log=log,
                )  # fmt: skip
        self.running.append(_RunningJob(job, list(states), time.monotonic(), resumed_at, self._log(states), own))

    def _halt(self, why: str) -> None:
        """Start nothing more, and ask running trials to save and exit."""
        if not self.halted:
            self.halted = why
            if any(r.own and r.states for r in self.running):
                self.view.say(f"{why}: the running trials save and exit")
        for running in list(self.running):
            if not running.own:
                self.running.remove(running)
            elif not running.stopping:
                running.stopping = True
                running.job.terminate()

    # ------------------------------------------------------------------------------------------------------ monitoring

    def _monitor(self) -> None:
        """Read new metrics of running trials, for the view and for the pruner."""
        progress = {}
        for running in self.running:
            self._show_measurements(running)
            for state in running.states:
                run = self._monitors.of(state)
                news = run.refresh()
                self._learn_metric(run)
                if news and not running.stopping and state.trial.id not in self._pruned:
                    self._prune(running, state, run)
                progress[state.trial.id] = TrialProgress.of(run, running.job.place, self.study.metric)
        self.view.update(self.study, progress, planned=self.proposals.planned)

    def _show_measurements(self, running: _RunningJob) -> None:
        """Show how a process that measured first has chosen to train its trials."""
        if not running.own or self.options.pack_mode != "auto" or self.options.packed == 1:
            return
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found = untrusted.read(trial_commands.verdict(running.log.with_suffix(".json")))
            for group in found["groups"][running.reported :]:
                running.reported += 1
                self.view.say(str(group["sentence"]))

    def _learn_metric(self, run: RunMonitor) -> None:
        """Trials are ranked by the metric that selects their checkpoints, unless `sweep.metric` names another."""
        known = self.study.definition
        if (known.get("metric") and known.get("mode")) or run.selection is None:
            return
        metric, mode = run.selection
        if known.get("metric") in (None, metric):
            self.ledger.append("study", definition={**known, "metric": metric, "mode": mode})

    def _prune(self, running: _RunningJob, state: State, run: RunMonitor) -> None:
        """Stop a trial if the pruner says so."""
        if self.plan.sweep.pruner == "none":
            return
        metric = self.study.metric
        others = [s for s in self.study.states.values() if s is not state and s.attempts]
        reason = make_pruner(self.plan.sweep, self.study.mode).judge(
            run.curves.get(metric, {}), [self._monitors.of(s).curves.get(metric, {}) for s in others],
            number=state.trial.number, numbers=[s.trial.number for s in others],
        )  # fmt: skip
        if reason is None:
            return
        self._pruned[state.trial.id] = reason
        if running.size == 1:
            running.job.terminate()
        else:
            (self.study.run(state) / PRUNE).write_text(reason + "\n", encoding="utf-8")

    # ---------------------------------------------------------------------------------------------------------- ending

    def _on_exit(self, state: State, running: _RunningJob, code: int, seconds: float) -> None:
        """A trial has ended: its run directory decides how, and only where that says nothing, the exit code."""
        name, run = state.trial.id, self._monitors.of(state)
        run.refresh()
        self._learn_metric(run)
        end = monitor.read_end(run.run)
        if end.status == STOPPED:
            advanced = end.step is not None and end.step > (running.resumed_at[name] or -1)
            self._idle_starts[name] = 0 if advanced else self._idle_starts.get(name, 0) + 1
            if name in self._pruned:
                end = dataclasses.replace(end, status=PRUNED, message=self._pruned[name])
            elif running.own and not running.stopping and not advanced and not self._worth_restarting(name, code):
                message, code = trial_commands.ends(running.log.with_suffix(".json")).get(name, ("", code))
                end = dataclasses.replace(end, status=FAILED, message=message or monitor.exit_cause(code, running.log))
        if end.status == FAILED and end.message.startswith("eval.metric: "):
            raise ConfigError(end.message.removeprefix("eval.metric: "), where="sweep.metric")
        if end.status == COMPLETE and end.seconds is not None and not running.own:
            seconds = end.seconds
        self._record_end(state, end, seconds, code)
        self._end_if_none_can_begin()

    def _end_if_none_can_begin(self) -> None:
        why = refusals.of_all(self.study, self.plan.space)
        begun = (monitor.last_checkpoint(self.study.run(s)) is not None for s in self.study.states.values())
        if why is None or any(begun):
            return
        for state in refusals.refused(self.study):  # they have their turn when the cause is gone
            self.ledger.append("again", id=state.trial.id)
        raise ConfigError(f"no trial can begin: {why}")

    def _worth_restarting(self, name: str, code: int) -> bool:
        """Whether a trial that saved nothing was only interrupted, not too often in a row, or held elsewhere (5)."""
        interrupted = code < 0 or code in (75, 130, 143)
        return code == 5 or (interrupted and self._idle_starts[name] < _MOST_IDLE)

    def _record_end(self, state: State, end: RunEnd, seconds: float, code: int | None = None) -> None:
        self.ledger.append(
            "end", id=state.trial.id, status=end.status, metrics=end.metrics, step=end.step,
            seconds=round(seconds, 3), message=end.message, exit_code=code,
        )  # fmt: skip
        if end.status == COMPLETE and not self.study.definition.get("metric"):
            self._learn_metric(self._monitors.of(state))
        failed = sum(s.status == FAILED for s in self.study.states.values())
        limit = 0 if self.options.fail_fast else self.options.max_failures
        if end.status == FAILED and limit is not None and failed > limit and not self.halted:
            self._halt("--fail-fast" if self.options.fail_fast else f"more than --max-failures {limit} failed")

    # --------------------------------------------------------------------------------------------------------- helpers

    def _command(self, states: list[State], log: Path) -> list[str]:
        plan = self.plan
        if self.options.packed == 1:
            return trial_commands.single(states[0].trial, self.study.run(states[0]), plan.config_dirs, plan.plugins)
        trials = [(state.trial, self.study.run(state)) for state in states]
        job = log.with_suffix(".json")
        return trial_commands.pack(trials, job, self.options.pack_mode, plan.config_dirs, plan.plugins)

    def _log(self, states: list[State]) -> Path:
        """The file that a process prints to: a trial's own, or that of a pack, named after its first trial."""
        folder = self.study.path / "logs"
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise TrainingFailed(f"cannot be made: {error.strerror}", where=str(folder)) from error
        return folder / f"{states[0].trial.id}.{'log' if len(states) == 1 else 'pack.log'}"
