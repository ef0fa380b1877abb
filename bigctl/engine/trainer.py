"""From a composed configuration to a finished run directory: open or resume, fit, score the test split, sum up."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigctl.config import cadence, drift, schema
from bigctl.config import compose as composing
from bigctl.config.compose import Composed
from bigctl.data import cache
from bigctl.engine import resolve, resume
from bigctl.engine.setup import Setup
from bigctl.errors import BigctlError, DataError, Diverged, Preempted, TrainingFailed
from bigctl.files import write_text
from bigctl.parallel import distributed, host_memory
from bigctl.parallel.distributed import ProcessGroup, SingleProcess
from bigctl.runs import directory, gates, generation_config, logs
from bigctl.runs.directory import RunDirectory
from bigctl.runs.gates import Gate
from bigctl.training import phases
from bigctl.training.signals import StopRequest
from bigctl.training.stopping import SharedStop
from bigctl.training.tracking import trackers

log = logging.getLogger("bigctl")


@dataclass
class Options:
    """How to train, besides what.

    Attributes:
        resume: "auto" goes on with an existing run, "never" starts anew, "must" fails where there is none.
        allow_drift: keys that may differ from the run that is resumed.
        quiet: no progress on stderr.
        profile: write a profiler trace of a few steps.
        plugins: modules the configuration needs, for the record.
        argv: the command line, for the record.
        began: when the command was started, by `time.monotonic` [s]; None for when `train` is called.
        stop: an entered one, which listens already.
        require: gates on metrics, whose names are checked before anything is trained.
        setup: how the run comes to its data and programs.
    """

    resume: str = "auto"
    allow_drift: Sequence[str] = ()
    quiet: bool = False
    profile: bool = False
    plugins: Sequence[str] = ()
    argv: Sequence[str] = ()
    began: float | None = None
    stop: StopRequest | None = None
    require: Sequence[Gate] = ()
    setup: Setup = field(default_factory=Setup)


def train(composed: Composed, path: Path, options: Options) -> dict[str, Any]:
    """Train a configuration in a run directory; gives the summary. A finished run is left as it is.

    Raises:
        BigctlError: with the exit code that fits; the run directory says what happened.
    """
    began = time.monotonic() if options.began is None else options.began
    listening = contextlib.nullcontext(options.stop) if options.stop is not None else StopRequest()
    with listening as stop:  # before jax is imported: from here on a stop is an orderly one
        if (minutes := composed.config.train.max_minutes) is not None:
            stop.at(began + 60 * minutes, f"train.max_minutes={minutes:g}")
        phases.begin()
        host_memory.keep_memory()
        group = distributed.join(composed.config.mesh.wait)
        run = RunDirectory(path, writes=group.leads)
        try:
            config, changed, summary = group.first(
                lambda: resume.hold(run, composed, resume=options.resume, allow_drift=options.allow_drift),
                pack=lambda found: (composing.to_yaml(found[0]), *found[1:]),
                unpack=lambda found: (composing.from_yaml(found[0], where=str(run.config)), *found[1:]),
            )
            if summary is not None:
                return summary
            with logs.kept(run.log) if group.leads else contextlib.nullcontext():
                try:
                    asked = SharedStop(stop, group) if isinstance(group, ProcessGroup) else stop
                    return _train(run, dataclasses.replace(composed, config=config), options, asked, changed, group)
                except Exception as error:
                    error = group.failed(error)
                    _record_failure(run, error)
                    raise error
        except Exception as error:
            group.failed(error)
            raise
        finally:
            if not run.begun:
                run.discard()  # it ended before anything began: a typo leaves no run behind
            run.release()


def _train(
    run: RunDirectory, composed: Composed, options: Options, stop: Any, changed: Sequence[str], group: SingleProcess
) -> dict[str, Any]:
    started = time.time()
    clock = time.perf_counter()
    if group.leads:
        trackers.check(composed.config.train.trackers)
    trained = group.first(run.trained)
    if not trained and group.leads and run.exists and run.record().get("starts"):
        log.warning("%s holds no checkpoint: the run starts again from step 0", run.path)
    if not trained:  # from now on `bigctl resume` knows what to do
        run.write_config(composing.to_yaml(composed.config), composed.overrides)
        if group.leads:
            run.tokenizer.unlink(missing_ok=True)  # it may be that of another configuration, or of other data
    run.update_record(
        status=directory.RUNNING,
        recipe=composed.config.recipe.kind,
        plugins=list(options.plugins),
        message="",
        exit_code=None,
    )
    # Everything that can be wrong with the data is found before the seconds that jax takes to start.
    config = composed.config if trained else resolve.resolve(composed.config)  # its weights may be gone since
    dataset = group.in_turn(lambda: options.setup.data(config, run.tokenizer))
    if group.first(lambda: dataset.fingerprint) != dataset.fingerprint:
        raise DataError(
            f"process {group.index} finds other data than process 0",
            where="data",
            hint="all processes must see the same files",
        )
    cadence.make(config, dataset.size("train"))

    from bigctl.engine import experiment as experiments
    from bigctl.engine import finish
    from bigctl.training.checkpoints.arrays import shapes
    from bigctl.training.checkpoints.store import Checkpoints

    if config.train.compile_cache:
        experiments.use_compile_cache()
    experiment = options.setup.build(config, dataset)
    if options.require:
        names = experiment.metric_names("val")
        tested = names if config.eval.test else ()
        gates.check_names(options.require, [*names, *(f"test/{name.removeprefix('val/')}" for name in tested)])
    if config.schedule.horizon is None:
        horizon = dataclasses.replace(config.schedule, horizon=experiment.cadence.total)
        config = dataclasses.replace(config, schedule=horizon)
    kept = config.checkpoint
    checkpoints = options.setup.checkpoints(
        Checkpoints(run.checkpoints, keep=kept.keep, best=kept.best, on_failure=kept.on_failure, group=group)
    )
    if group.leads:
        _keep_tokenizer(run, dataset, config)
    made_with = {**options.setup.surroundings(), "devices": finish.devices(experiment.programs.mesh)}
    state, progress, resumed, differences = _restore(run, experiment, checkpoints, made_with)
    run.write_config(composing.to_yaml(config), composed.overrides)
    run.begun = True
    changed = [*changed, *map(str, differences)]
    start = {"time": started, "step": resumed, "argv": list(options.argv), "changed": changed, **options.setup.note}
    starts = run.record().get("starts", []) if run.writes else []
    run.update_record(
        data={
            "fingerprint": experiment.dataset.fingerprint,
            "features": experiment.dataset.features.to_json(),
            "info": experiment.dataset.info,
            "sizes": {split: experiment.dataset.size(split) for split in experiment.dataset.splits},
        },
        overrides=list(composed.overrides),
        **made_with,
        parameters=finish.count(state.params),
        steps=experiment.cadence.total,
        selection={"metric": experiment.metric, "mode": experiment.mode},
        starts=[*starts, start],
    )
    meta = {"shapes": shapes(experiment.programs.abstract_state), "data": experiment.dataset.fingerprint}
    if dataset.features.tokenizer:
        meta["tokenizer"] = dataset.features.tokenizer["sha256"]
    try:
        with trackers.tracking(run, config) as tracked:
            fitted = _fit(run, experiment, checkpoints, state, progress, stop, options, meta, tracked, resumed=resumed)
            checkpoints.wait(last=True)
            phases.now(phases.END)
            if stop.exit_code is not None and not _finished(experiment, fitted.progress):
                raise _preempted(run, stop, fitted.progress.step, resumed, experiment.cadence.total)
            seconds = time.perf_counter() - clock
            result = finish.write(run, experiment, checkpoints, fitted, resumed=resumed, seconds=seconds)
            for tracker in tracked:
                tracker.result(result["step"], result["metrics"])
    finally:
        with contextlib.suppress(TrainingFailed):
            checkpoints.close()
    run.update_record(status=directory.COMPLETE, exit_code=0)
    return result


def _keep_tokenizer(run: RunDirectory, dataset: Any, config: schema.Config) -> None:
    """The tokenizer belongs to the run: it is kept there, and used again rather than made again.

    So is what else the weights that came with it say about writing.
    """
    if dataset.features.tokenizer and not run.tokenizer.exists():
        writes = isinstance(config.model, schema.Decoder) and config.model.init_from is not None
        if writes and config.tokenizer is not None and config.tokenizer.type == "pretrained":
            from bigctl.interop import sources

            generation_config.write_generation_config(
                run, sources.locate_source(config.model.init_from or "").generation_config
            )
        try:
            write_text(run.tokenizer, (Path(dataset.path) / cache.TOKENIZER).read_text(encoding="utf-8"))
        except OSError as error:
            raise TrainingFailed(f"cannot be written: {error.strerror}", where=str(run.tokenizer)) from error


def _finished(experiment: Any, progress: Any) -> bool:
    return progress.step >= experiment.cadence.total or bool(progress.stopped)


def _restore(
    run: RunDirectory, experiment: Any, checkpoints: Any, made_with: dict[str, Any]
) -> tuple[Any, Any, int, list[drift.Difference]]:
    """The newest good checkpoint's state, or a new one; the step it is at; what is not as it was before."""
    from bigctl.training.state import Progress

    def steps() -> Any:
        checkpoints.clean()
        return checkpoints.steps()

    group = checkpoints.group
    if not group.first(steps):
        from bigctl.engine.experiment import initial_weights

        weights, notes = initial_weights(experiment)
        for note in notes:
            log.info("model.init_from: %s", note)
        return experiment.programs.initialise(weights), Progress(), 0, []
    saved = checkpoints.find("last")
    differences = group.first(
        lambda: _judge_surroundings(run, experiment, saved, made_with), pack=lambda _: None, unpack=lambda _: []
    )
    checkpoints.clean(after=saved.step)
    state = checkpoints.restore(saved, experiment.programs.abstract_state)
    log.info("resuming from step %d of %d", saved.step, experiment.cadence.total)
    progress = group.first(
        lambda: checkpoints.without_lost_best(saved.progress), pack=Progress.to_json, unpack=Progress.from_json
    )
    return state, progress, saved.step, differences


def _judge_surroundings(
    run: RunDirectory, experiment: Any, saved: Any, made_with: dict[str, Any]
) -> list[drift.Difference]:
    """What is not as it was at the start before, warned of where that matters."""
    from bigctl.runs import provenance

    before, now = provenance.facts(run.record()), provenance.facts(made_with)
    tokenizer = experiment.dataset.features.tokenizer or {}
    differences = drift.judge_surroundings(
        {**before, "data": saved.meta.get("data"), "tokenizer": saved.meta.get("tokenizer")},
        {**now, "data": experiment.dataset.fingerprint, "tokenizer": tokenizer.get("sha256")},
        where=str(run.path),
    )
    for difference in differences:
        log.info("%s", difference)
    warned = [d.plain for d in differences if d.verdict == drift.WARN]
    if warned:
        log.warning("%s: the run goes on, but not promised to the last bit as it would have been", "; ".join(warned))
    return differences


def _fit(
    run: RunDirectory,
    experiment: Any,
    checkpoints: Any,
    state: Any,
    progress: Any,
    stop: Any,
    options: Options,
    meta: dict[str, Any],
    tracked: Sequence[trackers.Tracker],
    *,
    resumed: int,
) -> Any:
    from bigctl.engine import samples
    from bigctl.engine.finish import Fitted
    from bigctl.training import rewind as rewinding
    from bigctl.training import throughput
    from bigctl.training.loop import Hooks, Loop
    from bigctl.training.profile import Profiler
    from bigctl.training.tracking.writers import Console, JsonLines, TensorBoard

    config, cadence = experiment.config, experiment.cadence
    console = Console(cadence.total, quiet=options.quiet or not run.writes)
    writers: list[Any] = [console]
    if run.writes:
        if resumed and not run.metrics.exists():
            log.warning("%s is missing: what was logged up to step %d is lost", run.metrics, resumed)
        writers.append(JsonLines(run.metrics, step=resumed))
        if config.train.tensorboard:
            writers.append(TensorBoard(run.tensorboard, step=resumed))
    _announce(console, run, experiment, resumed)
    if config.train.accumulate > 1 and getattr(config.model, "norm", "none") == "batch":
        console.say("note: batch normalisation sees each of the train.accumulate parts by itself, not the whole batch")
    start = min(resumed + 20, (resumed + cadence.total) // 2)  # past compiling and the first, untypical steps
    profiler = Profiler(run.path / "profile", start=start) if options.profile else None

    def write(step: int, values: dict[str, Any]) -> None:
        for writer in (*writers, *tracked):
            writer.write(step, values)

    sampler = samples.make(experiment, run.samples, console.say, resumed=resumed, leads=run.writes)
    kept: list[Any] = [*writers, *([sampler] if sampler is not None else [])]  # all that is cut back and closed
    flushed = [writer for writer in writers if isinstance(writer, JsonLines)]
    observe = None
    if phases.begin() and run.writes:
        observe = phases.BatchDigests(JsonLines(run.batches, step=resumed), step=resumed)
        kept.append(observe)
        flushed.append(observe.lines)

    def flush() -> None:
        for stream in flushed:
            stream.flush()

    hooks = Hooks(
        write=write,
        save=lambda state, progress: checkpoints.save(state, progress, meta),
        flush=flush,
        warn=log.warning,
        sample=sampler,
    )

    def rewind(progress: Any, bad: int) -> Any:
        abstract = experiment.programs.abstract_state
        state, back = rewinding.rewind(config.train.divergence, checkpoints, abstract, progress, bad)
        for writer in (*kept, *tracked):
            writer.cut(back.step)
        return state, back

    hooks.rewind = rewind
    if profiler is not None:
        hooks.before_dispatch = profiler.before_dispatch
    feed = experiment.feed(observe)
    loop = Loop(
        experiment.programs,
        feed,
        experiment.evaluator("validation", "val"),
        cadence,
        config,
        hooks,
        stop,
        metric=experiment.metric,
        mode=experiment.mode,
        examples_per_epoch=experiment.dataset.size("train"),
        rates=throughput.rates(
            experiment.task, experiment.programs.abstract_state.params, experiment.programs.mesh, config.train.precision
        ),
    )
    try:
        state, progress = loop.fit(state, progress)
        flush()
    finally:
        feed.close()
        report = profiler.close() if profiler is not None else []
        for closing in kept:
            closing.close()
    return Fitted(state, progress, loop.timings, report)


def _announce(console: Any, run: RunDirectory, experiment: Any, resumed: int) -> None:
    from bigctl.engine.finish import count, devices

    parameters, examples = count(experiment.programs.abstract_state.params), experiment.dataset.size("train")
    steps, batch_size = experiment.cadence.total, experiment.config.train.batch_size
    found = devices(experiment.programs.mesh)
    console.say(
        f"{run.path}: {parameters:,} parameters, {examples:,} training examples, {steps:,} steps of {batch_size} "
        f"on {found['count']} {found['kind']}"
    )
    if resumed:
        console.say(f"resuming from step {resumed:,}")
    if batch_size > examples:
        console.say(f"note: a batch of {batch_size:,} repeats examples, there are only {examples:,}")
    schedule = experiment.config.schedule
    ended = schedule.horizon is not None and schedule.horizon < steps
    if ended and schedule.kind in ("cosine", "linear") and schedule.final == 0:
        console.say(
            f"note: the learning rate is 0 from step {schedule.horizon:,} on, where this run was to end at first: "
            f"more steps change nothing; schedule.horizon={steps} --allow-drift schedule.horizon stretches the schedule"
        )


def _preempted(run: RunDirectory, stop: StopRequest, step: int, resumed: int, total: int) -> Preempted:
    kept = "the checkpoint is saved" if step else "before anything was trained"
    hint = f"run the same command again to go on, or `bigctl resume {run.path}`"
    if step == resumed and "max_minutes" in stop.reason:
        kept, hint = "no step was made in that time", "give it more: starting and compiling are counted too"
    assert stop.exit_code is not None
    return Preempted(f"stopped by {stop.reason} at step {step} of {total}; {kept}", exit_code=stop.exit_code, hint=hint)


def _record_failure(run: RunDirectory, error: Exception) -> None:
    """What happened into run.json, the traceback into log.txt; nothing of this may hide the error itself."""
    status = directory.FAILED
    if isinstance(error, Preempted):
        status = directory.PREEMPTED
    elif isinstance(error, Diverged):
        status = directory.DIVERGED
    code = error.exit_code if isinstance(error, BigctlError) else 1
    with contextlib.suppress(Exception):
        log.error("%s\n%s", error, traceback.format_exc())
    with contextlib.suppress(Exception):
        run.update_record(status=status, message=str(error)[:2000], exit_code=code)
