"""Stage 5, fit: the loop with all that listens to it: logs, trackers, samples, the profiler."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from bigctl.data import background_check
from bigctl.engine import doubts, federated, open_run, privacy, restore, samples, step_memory
from bigctl.engine.experiment import Experiment
from bigctl.engine.restore import Start
from bigctl.engine.run import Run
from bigctl.errors import BigctlError, Diverged, Preempted, Stuck
from bigctl.formatting import parameters
from bigctl.parallel import host_memory
from bigctl.runs import corpora, goodput
from bigctl.runs.metrics_file import read_metrics
from bigctl.training import phases
from bigctl.training import rewind as rewinding
from bigctl.training.checkpoints.arrays import shapes
from bigctl.training.checkpoints.by_time import TimedSaves
from bigctl.training.checkpoints.store import Checkpoints
from bigctl.training.loop import Hooks, Loop
from bigctl.training.profile import Profiler
from bigctl.training.state import Progress, TrainState
from bigctl.training.stuck import StuckWatch
from bigctl.training.tracking.callbacks import Listener
from bigctl.training.tracking.collapse import CollapseWatch
from bigctl.training.tracking.console import Console
from bigctl.training.tracking.writers import JsonLines, TensorBoard, Writer
from bigctl.training.usage import Usage

log = logging.getLogger("bigctl")


@dataclass
class Fitting:
    """A loop that is ready to go; `profile` names what is slow once it has ended, if that was asked for."""

    loop: Loop
    profile: list[str] = field(default_factory=list)


@contextlib.contextmanager
def prepared(
    run: Run, experiment: Experiment, checkpoints: Checkpoints, start: Start, tracked: Sequence[Listener]
) -> Iterator[Fitting]:
    """The loop, with everything open that it writes to; an end without an error brings it all onto the disk."""
    config, outputs = experiment.config, _Outputs(run, experiment, start, tracked)
    profiler = _profiler(run, start, experiment.cadence.total)
    meta = _checkpoint_meta(experiment)

    def rewind(progress: Progress, bad_step: int) -> tuple[TrainState, Progress]:
        rule, abstract = config.train.divergence, experiment.programs.abstract_state
        state, back = rewinding.rewind(rule, checkpoints, abstract, progress, bad_step)
        outputs.cut(back.step)
        return experiment.programs.carried(state), restore.judged_as_now(run, experiment, checkpoints, back)[0]

    def save(state: TrainState, progress: Progress) -> None:
        checkpoints.save(experiment.programs.stored(state), outputs.counted(progress), meta)
        for listener in tracked:
            listener.saved(progress.step)

    saves = TimedSaves(checkpoints, save)
    hooks = Hooks(
        write=outputs.write,
        save=saves.save,
        due=saves.due,
        hold=saves.hold,
        flush=outputs.flush,
        warn=log.warning,
        sample=outputs.sampler,
        rewind=rewind,
        doing=outputs.doing,
        stepped=outputs.stepped,
        evaluated=outputs.console.evaluated,
    )
    run.stop.listen(outputs.console.stopping)
    if profiler is not None:
        hooks.before_dispatch = profiler.before_dispatch
    feed = experiment.feed(outputs.observer, partial(step_memory.require_step, experiment))
    loop = Loop(
        experiment.programs,
        feed,
        experiment.evaluator("validation", "val"),
        experiment.cadence,
        config,
        hooks,
        run.stop,
        metric=experiment.metric,
        mode=experiment.mode,
        examples_per_epoch=experiment.dataset.size("train"),
        rates=experiment.rates,
    )
    host_memory.set_apart()
    fitting, spent = Fitting(loop), lambda: (loop.timings.parts, start.step + loop.timings.steps)
    try:
        with goodput.kept(run.directory, run.began, start.step, spent), _best_kept(outputs, saves):
            yield fitting
        outputs.flush()
    finally:
        feed.close()
        fitting.profile = profiler.close() if profiler is not None else []
        outputs.close()


@contextlib.contextmanager
def _best_kept(outputs: _Outputs, saves: TimedSaves) -> Iterator[None]:
    """A training that diverges saves the best that it holds."""
    try:
        yield
    except Diverged:
        with contextlib.suppress(BigctlError):
            outputs.flush()
            saves.save_held()
        raise


def _profiler(run: Run, start: Start, total: int) -> Profiler | None:
    first = min(start.step + 20, (start.step + total) // 2)  # past compiling and the first, untypical steps
    return Profiler(run.directory.path / "profile", start=first) if run.options.profile else None


class _Outputs:
    """All that a fit writes to, and that is cut back when training goes back."""

    def __init__(self, run: Run, experiment: Experiment, start: Start, tracked: Sequence[Listener]):
        directory, step = run.directory, start.step
        self.console = Console(
            experiment.cadence.total,
            step=step,
            metric=experiment.metric,
            best=start.progress.best,
            quiet=run.options.quiet or not directory.writes,
        )
        self._writers: list[Writer] = [self.console]
        self._streams: list[JsonLines] = []  # what checkpoints count on
        if directory.writes:
            if step and not directory.metrics.exists():
                log.warning("%s is missing: what was logged up to step %d is lost", directory.metrics, step)
            self._streams.append(JsonLines(directory.metrics, step=step))
            self._writers += self._streams
            if experiment.config.train.tensorboard:
                self._writers.append(TensorBoard(directory.tensorboard, step=step))
        if experiment.config.train.adversarial.eps:
            before = read_metrics(directory.metrics) if step else []
            known = [line for line in before if line["step"] <= step]
            self._writers.append(CollapseWatch(log.warning if directory.writes else lambda text: None, known))
        for sentence in _announcement(run, experiment, step, start.notes):
            self.console.say(sentence)
        self._tracked = tracked
        self._usage = Usage()
        self._accountant = privacy.accountant_of(experiment.config, experiment.dataset.size("train"))
        self.sampler = samples.make_sampler(
            experiment, directory.samples, self.console.say, resumed=step, leads=directory.writes
        )
        self._others: list[Any] = [self.sampler] if self.sampler is not None else []
        self.observer: phases.BatchDigests | None = None
        if phases.begin() and directory.writes:
            self.observer = phases.BatchDigests(JsonLines(directory.batches, step=step), step=step)
            self._streams.append(self.observer.lines)
            self._others.append(self.observer)

        timeout = experiment.config.train.step_timeout
        self._watch = StuckWatch(run.group, timeout, step, warn=log.warning, end=lambda *why: _end_stuck(run, *why))
        first = step * experiment.config.train.batch_size < experiment.dataset.size("train")
        self._check = background_check.begin(experiment.dataset) if first and directory.writes else None

    def _require_sound(self) -> None:
        """Raises DataError where the prepared data turned out to be damaged."""
        if self._check is not None:
            self._check.require_sound()

    def epsilon(self, step: int) -> float | None:
        """What is spent by a step; None where nothing is promised."""
        return None if self._accountant is None else self._accountant.epsilon(step)

    def counted(self, progress: Progress) -> Progress:
        """The same, with what is spent."""
        progress.epsilon = self.epsilon(progress.step)
        return progress

    def write(self, step: int, values: dict[str, Any]) -> None:
        self._require_sound()
        if "lr" in values:  # a log line, and no evaluation
            values = {**values, **self._usage.sample()}
        if (spent := self.epsilon(step)) is not None:
            values = {**values, privacy.EPSILON: spent}
        for writer in self._writers:
            writer.write(step, values)
        for listener in self._tracked:
            listener.write(step, values)

    def doing(self, what: str) -> None:
        self._watch.doing(what)
        self.console.doing(what)

    def stepped(self, step: int) -> None:
        self._watch.stepped(step)
        self.console.stepped(step)

    def flush(self) -> None:
        self._require_sound()
        for stream in self._streams:
            stream.flush()

    def cut(self, step: int) -> None:
        """Take back what was written after a step."""
        for output in (*self._writers, *self._others, *self._tracked):
            output.cut(step)

    def close(self) -> None:
        self._watch.close()
        if self._check is not None:
            self._check.close()
        for output in (*self._writers, *self._others):
            output.close()


def _end_stuck(run: Run, sentence: str, stack: str) -> None:
    """The end of a run in which no step comes, by the thread that noticed; the last checkpoint is as it was."""
    error = Stuck(sentence)
    if run.directory.writes:
        open_run.record_failure(run.directory, error, stack)
    run.group.end(error)


def _checkpoint_meta(experiment: Experiment) -> dict[str, Any]:
    """What a checkpoint says of the state in it, and of the data it belongs to."""
    dataset = experiment.dataset
    meta = {"shapes": shapes(experiment.programs.abstract_state), "data": dataset.fingerprint}
    return {**meta, "tokenizer": dataset.features.tokenizer["sha256"]} if dataset.features.tokenizer else meta


def _announcement(run: Run, experiment: Experiment, resumed: int, notes: Sequence[str]) -> Iterator[str]:
    config, devices = experiment.config, experiment.devices
    examples, steps, batch_size = experiment.dataset.size("train"), experiment.cadence.total, config.train.batch_size
    count = parameters(experiment.parameter_count, experiment.active_parameters)
    kernels = "".join(f", {purpose} by {kernel}" for purpose, kernel in experiment.programs.kernels.items())
    yield (
        f"{run.directory.path}: {count}, {examples:,} training examples, "
        f"{steps:,} steps of {batch_size} on {devices['count']} {devices['kind']}{kernels}"
    )
    if resumed:
        yield f"resuming from step {resumed:,}"
    yield from notes
    yield from (f"  {line}" for line in experiment.sight)
    yield from federated.announcement(config, experiment.dataset, run.overrides)
    yield from privacy.announcement(config, experiment.dataset, steps)
    if not config.train.overfit_one_batch:
        drawn = experiment.drawn()
        yield from (f"  {line}" for line in corpora.lines(drawn))
        yield from (f"note: {note}" for note in corpora.notes(drawn))
    if batch_size > examples and not config.train.federated.on:
        yield f"note: a batch of {batch_size:,} repeats examples, there are only {examples:,}"
    horizon = config.schedule.horizon or steps
    if horizon < steps and getattr(config.schedule, "final", None) == 0:
        yield (
            f"note: the learning rate is 0 from step {horizon:,} on, where this run was to end at first: "
            f"more steps change nothing; schedule.horizon={steps} --allow-drift schedule.horizon stretches the schedule"
        )
    yield from (f"note: {note}" for note in doubts.notes(config, experiment.dataset.features))


def check_preempted(run: Run, experiment: Experiment, start: Start, progress: Progress) -> None:
    """Raises Preempted where someone asked to stop before the end was reached."""
    step, total, stop = progress.step, experiment.cadence.total, run.stop
    if stop.exit_code is None or step >= total or progress.stopped:
        return
    kept = "the checkpoint is saved" if step else "before anything was trained"
    hint = f"run the same command again to continue, or `bigctl resume {run.directory.path}`"
    if step == start.step and "max_minutes" in stop.reason:
        kept, hint = "no step was made in that time", "give it more: starting and compiling are counted too"
    raise Preempted(f"stopped by {stop.reason} at step {step} of {total}; {kept}", exit_code=stop.exit_code, hint=hint)
