"""The order of events. What a step computes is in `step`, where batches come from in `feed`.

After step s: evaluate (and write a sample of text), log, save, and only then draw the next batch. That order never
changes: a checkpoint holds what was logged and selected before it, so a run resumed from it says the same things again.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from bigctl.config import schema
from bigctl.config.cadence import Cadence
from bigctl.errors import Diverged, TrainingFailed
from bigctl.optim import schedules
from bigctl.training import divergence, early_stop, metrics, phases, rewind
from bigctl.training.ahead import Ahead
from bigctl.training.calls import Calls
from bigctl.training.evaluation import Evaluator
from bigctl.training.feed import Feed
from bigctl.training.metrics import Sums
from bigctl.training.programs import LARGEST_LOOP, Programs
from bigctl.training.signals import Stop
from bigctl.training.state import Progress, TrainState
from bigctl.training.throughput import Rates
from bigctl.training.timings import Timings
from bigctl.training.waiting import Mark, Verdict, Waiting

log = logging.getLogger("bigctl.train")


@dataclass
class _PendingLog:
    step: int
    position: int
    sums: Sums
    bad_step: jax.Array
    rewinds: int
    done: Future[float]
    besides: float
    mark: Mark


@dataclass
class Hooks:
    """What the loop calls out to.

    Attributes:
        write: (step, values, which) with which "train" or "evaluation".
        save: (state, progress): begin to save a checkpoint.
        flush: metrics onto the disk, before a checkpoint counts on them.
        warn: a sentence for the user.
        sample: (state, step): show what the model can do so far.
        due: whether the time for a checkpoint has come; asked where something else happens, with a cadence of
            checkpoints only where an evaluation was the best so far.
        hold: else keep the best so far, to be saved with the next checkpoint; False if it must be saved now.
        rewind: (progress, bad step) -> the state of a checkpoint and its progress, see `rewind.rewind`; what was
            written since is taken back.
        before_dispatch: (step, state) -> how many steps the next dispatch may take at most.
        doing: what goes on from here on, such as "compiling"; empty for steps.
        stepped: the number of updates that are dispatched by now.
        evaluated: an evaluation was written; what is best by now stands in the progress.
    """

    write: Callable[[int, dict[str, Any]], None]
    save: Callable[[TrainState, Progress], None]
    flush: Callable[[], None]
    warn: Callable[[str], None]
    sample: Callable[[TrainState, int], None] | None = None
    due: Callable[[], bool] = field(default=lambda: False)
    hold: Callable[[TrainState, Progress], bool] = field(default=lambda state, progress: False)
    rewind: Callable[[Progress, int], tuple[TrainState, Progress]] | None = None
    before_dispatch: Callable[[int, TrainState], int] = field(default=lambda step, state: LARGEST_LOOP)
    doing: Callable[[str], None] = field(default=lambda what: None)
    stepped: Callable[[int], None] = field(default=lambda step: None)
    evaluated: Callable[[Progress], None] = field(default=lambda progress: None)


class Loop:
    """One fit of one run.

    Args:
        programs: what is computed.
        feed: where batches come from.
        evaluator: how the validation split is scored.
        cadence: when.
        config: the experiment.
        hooks: what happens with the results.
        stop: whether someone asked to stop.
        rates: of a language model, for logs.
    """

    def __init__(
        self,
        programs: Programs,
        feed: Feed,
        evaluator: Evaluator,
        cadence: Cadence,
        config: schema.Config,
        hooks: Hooks,
        stop: Stop,
        *,
        metric: str,
        mode: str,
        examples_per_epoch: int,
        rates: Rates | None = None,
    ):
        self.programs, self.feed, self.evaluator = programs, feed, evaluator
        self.cadence, self.config, self.hooks, self.stop = cadence, config, hooks, stop
        self.metric, self.mode, self.examples_per_epoch, self.rates = metric, mode, examples_per_epoch, rates
        self.rule = config.train.divergence
        self.timings = Timings()
        self._pending: _PendingLog | None = None
        self._mark = (0.0, 0.0, 0)
        self._waiting = Waiting(feed, config)
        self._compiled: set[str] = set()
        self._warned = False
        self._warned_of: set[str] = set()
        self._activity = ""
        self._ahead = Ahead()
        self._clock = ThreadPoolExecutor(1, thread_name_prefix="clock")

    def fit(self, state: TrainState, progress: Progress) -> tuple[TrainState, Progress]:
        """Train to the end, to an early stop, or until asked to stop.

        Raises:
            TrainingFailed: if the loss is not finite, or a checkpoint cannot be written.
        """
        start = time.perf_counter()
        waited = self.feed.waited
        batch_size = self.config.train.batch_size
        self._mark = (start, 0.0, progress.position)
        if self.rule.policy == "rewind" and not progress.anchors:
            rewind.set_anchor(progress, best=self.config.checkpoint.best)
            if progress.step == 0:
                state = self._save(state, progress)
        asked = self.stop.reached(0)
        while progress.step < self.cadence.total and not progress.stopped and not asked:
            limit = self.cadence.next_event(progress.step) - progress.step
            limit = min(limit, self.hooks.before_dispatch(progress.step, state))
            limit = self.stop.room(self.timings.steps, limit)
            if limit == 0:  # asked to stop, and just rewound: the next start rewinds again
                break
            with self._compile_time(f"train {self.feed.shape(progress.position)}", self.feed.calls):
                state, count = self.feed.advance(state, progress.position, limit)
            self._ahead.dispatched(state.step)
            progress.step += count
            progress.position += count * batch_size
            self.timings.steps += count
            phases.now(phases.STEP, progress.step)
            self.hooks.stepped(progress.step)
            self._flush_ready_log()

            if self._must_rewind(state, progress.step):
                state, progress = self._rewind(state, progress)
                continue
            step, improved = progress.step, False
            evaluates, logs = self.cadence.due(self.cadence.evaluate, step), self.cadence.due(self.cadence.log, step)
            if evaluates:
                self._flush_log()
                with phases.during(phases.EVAL):
                    improved = self._evaluate(state, progress)
            if self.cadence.sample and self.cadence.due(self.cadence.sample, step):
                with phases.during(phases.EVAL):
                    self._sample(state, step)
            if logs or progress.stopped:
                self._flush_log()
                state = self._begin_log(state, progress)
            asked = self.stop.reached(self.timings.steps)  # once a step: what is asked after this is saved a step later
            saves = asked or bool(progress.stopped) or self.cadence.due(self.cadence.save, step)
            if saves or self._saves_now(state, progress, event=evaluates or logs, improved=improved):
                self._flush_log()
                state = self._save(state, progress)
            self.timings.data_wait = self.feed.waited - waited
            self.timings.total = time.perf_counter() - start
            if evaluates:
                self._waiting.tell(self.timings.trained, self.hooks.warn)
        self._flush_log()
        self._clock.shutdown()
        jax.block_until_ready(state)
        self.timings.total = time.perf_counter() - start
        return state, progress

    def waits_for(self) -> Verdict | None:
        """What training has waited for so far, where that is worth a word."""
        return self._waiting.verdict(self.timings.trained)

    # ---------------------------------------------------------------------------------------------------- the events

    def _evaluate(self, state: TrainState, progress: Progress) -> bool:
        """Score the validation split, take note, and decide on stopping; whether it is the best so far."""
        jax.block_until_ready(state.step)  # training time is not evaluation time
        start = time.perf_counter()
        before = self.timings.compile
        with self._doing("evaluating"), self._compile_time("evaluate", self.evaluator.calls):
            found = self.evaluator(self.programs.evaluation_weights(state), state.variables)
        scalars = {name: value for name, value in found.items() if isinstance(value, (int, float))}
        if self.metric not in scalars:
            raise TrainingFailed(
                f"there is no metric {self.metric!r}", where="eval.metric", hint=f"one of: {', '.join(sorted(scalars))}"
            )
        stop, value = self.config.train.early_stop, scalars[self.metric]
        improved = progress.record(value, self.mode, stop.min_delta, scalars)
        progress.stopped = early_stop.reason(stop, self.metric, self.mode, value, progress.stale)
        self._check_scores(scalars, progress.step)
        self.hooks.write(progress.step, {"epoch": self._epoch(progress.position), **scalars})
        self.hooks.evaluated(progress)
        self.timings.evaluate += time.perf_counter() - start - (self.timings.compile - before)
        return improved and self.config.checkpoint.best

    def _check_scores(self, found: Mapping[str, float], step: int) -> None:
        """Says once of the metric, and of the loss, of validation that it is not finite."""
        for name in dict.fromkeys((self.metric, "val/loss")):
            if name in self._warned_of or math.isfinite(found.get(name, 0.0)):
                continue
            self._warned_of.add(name)
            what = "it selects no checkpoint while it is no number; eval.metric names another"
            if name != self.metric:
                what = "some answers of the model are not finite; lower optimizer.lr, or look at the data"
            self.hooks.warn(f"{name} is {found[name]} at step {step}: {what}")

    def _sample(self, state: TrainState, step: int) -> None:
        if self.hooks.sample is None:
            return
        jax.block_until_ready(state.step)
        start = time.perf_counter()
        with self._doing("writing a sample"):
            self.hooks.sample(state, step)
        self.timings.evaluate += time.perf_counter() - start

    def _begin_log(self, state: TrainState, progress: Progress) -> TrainState:
        """Take the sums out of the state. They are read one event later, so that no step waits for a log line."""
        if "log" not in self._compiled:
            jax.block_until_ready(state.step)  # once: nothing is trained while it is compiled
        with self._compile_time("log"):
            state, sums, bad_step = self.programs.take_sums(state)
        # The host runs ahead of the devices by many steps or by none: when these were done, only a wait can tell.
        done = self._clock.submit(_time_when_ready, bad_step)
        besides, mark = self.timings.besides, self._waiting.mark()
        self._pending = _PendingLog(
            progress.step, progress.position, sums, bad_step, progress.rewinds, done, besides, mark
        )
        return state

    def _flush_ready_log(self) -> None:
        """Write the last log line, if nothing has to be waited for; what is wrong with it is said at the next event."""
        if self._pending is not None and self._pending.done.done() and int(self._pending.bad_step) < 0:
            self._flush_log()

    def _flush_log(self) -> None:
        pending, self._pending = self._pending, None
        if pending is None:
            return
        now, besides = pending.done.result(), pending.besides
        sums = jax.device_get(pending.sums)
        self._check_finite(int(pending.bad_step))
        then, besides_then, position_then = self._mark
        seconds = now - then - (besides - besides_then)
        values = {"epoch": self._epoch(pending.position), **metrics.means(sums, "train")}
        values["lr"] = self._learning_rate(pending.step)
        if seconds > 0:  # else all of it went by while another program was compiled, and the next line counts it too
            self._mark = (now, besides, pending.position)
            values["perf/examples_per_s"] = (pending.position - position_then) / seconds
            values |= self._waiting.rates(pending.mark, seconds)
            if self.rates is not None:
                values |= self.rates(values["perf/examples_per_s"], "perf/")
        if "skipped" in sums:
            values["train/skipped"] = int(sums["skipped"])
        if self.rule.policy == "rewind":
            values["train/rewinds"] = pending.rewinds
        self.hooks.write(pending.step, values)
        self._report_recompiles(pending.step)

    def _saves_now(self, state: TrainState, progress: Progress, *, event: bool, improved: bool) -> bool:
        """Whether a checkpoint is saved although no step is due: when it is time; with a cadence, only a better one."""
        if self.rule.policy == "rewind":
            return improved
        if (improved if self.cadence.save is not None else event) and self.hooks.due():
            return True
        if not improved:
            return False
        self._check_finite(int(state.bad_step))
        if self._pending is not None:
            self._pending.done.result()  # its thread must not look at the clock when the time below has begun
        start = time.perf_counter()
        progress.metric, progress.mode = self.metric, self.mode
        held = self.hooks.hold(state, progress)
        self.timings.checkpoint += time.perf_counter() - start
        return not held

    def _save(self, state: TrainState, progress: Progress) -> TrainState:
        bad_step = int(state.bad_step)  # waits for the steps before: they are training, not checkpoint time
        if bad_step >= 0 and self.rule.policy == "rewind":
            return state  # asked to stop between two events: the next start gets here again, and rewinds at its event
        self._check_finite(bad_step)
        start = time.perf_counter()
        progress.metric, progress.mode = self.metric, self.mode
        if self.rule.policy == "rewind" and self.cadence.save and progress.step % self.cadence.save == 0:
            rewind.set_anchor(progress, best=self.config.checkpoint.best)
        self.hooks.flush()
        with self._doing("saving"):
            self.hooks.save(state, progress)
        self.timings.checkpoint += time.perf_counter() - start
        return state

    def _check_finite(self, bad_step: int) -> None:
        if bad_step >= 0:
            raise Diverged(divergence.describe(self.rule, bad_step), hint=divergence.HINT)

    def _must_rewind(self, state: TrainState, step: int) -> bool:
        """Whether this is an event and a step since the last one was bad.

        Events are at fixed steps, so that where a run was cut has no say in which batches are left out.
        """
        events = self.cadence.evaluate, self.cadence.log, self.cadence.save
        due = any(self.cadence.due(every, step) for every in events)
        return self.rule.policy == "rewind" and due and int(state.bad_step) >= 0

    def _rewind(self, state: TrainState, progress: Progress) -> tuple[TrainState, Progress]:
        """Back to a checkpoint, on to the batches after this event's."""
        assert self.hooks.rewind is not None
        self._flush_log()
        noticed, bad_step = progress.step, int(state.bad_step)
        start = time.perf_counter()
        with self._doing("going back"):
            state, progress = self.hooks.rewind(progress, bad_step)
        self.hooks.warn(
            f"{divergence.describe(self.rule, bad_step)}: back to step {progress.step}, without the batches of the "
            f"steps up to {noticed}"
        )
        self._mark = (time.perf_counter(), self.timings.besides, progress.position)
        self.timings.checkpoint += self._mark[0] - start
        return state, progress

    # ------------------------------------------------------------------------------------------------------- helpers

    def _learning_rate(self, step: int) -> float:
        factor = schedules.factor(self.config.schedule, np.float64(step - 1), self.cadence.total, np)
        return float(self.config.optimizer.lr * factor)

    def _epoch(self, position: int) -> float:
        return round(position / self.examples_per_epoch, 6)

    @contextlib.contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        """Tell what goes on within, and afterwards that what went on before goes on."""
        before, self._activity = self._activity, what
        self.hooks.doing(what)
        try:
            yield
        finally:
            self._activity = before
            self.hooks.doing(before)

    @contextlib.contextmanager
    def _compile_time(self, name: str, calls: Calls | None = None) -> Iterator[None]:
        """The first call of a program compiles it: that is no training time. It is as long as `calls` say, or without
        them the whole call."""
        if name in self._compiled:
            yield
            return
        start, waited, before = time.perf_counter(), self.feed.waited, 0.0 if calls is None else calls.compiling
        try:
            with self._doing("compiling"):
                yield
        finally:
            self._compiled.add(name)
            took = time.perf_counter() - start - (self.feed.waited - waited)  # for data: that is counted as such
            # Trials that score a split by the same calls each count what all of them have compiled.
            self.timings.compile += took if calls is None else min(took, calls.compiling - before)

    def _report_recompiles(self, step: int) -> None:
        size = getattr(self.feed.program(), "_cache_size", lambda: 1)()
        if size > self.feed.shapes + len(self.feed.unforeseen) and not self._warned:
            self._warned = True
            self.hooks.warn(f"the training step was compiled {size} times by step {step}; shapes or placements changed")


def _time_when_ready(array: jax.Array) -> float:
    array.block_until_ready()
    return time.perf_counter()
