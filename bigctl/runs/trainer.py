"""From a composed configuration to a finished run directory: open or resume, fit, score the test split, sum up."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigctl.config import compose as composing
from bigctl.config import drift, schema
from bigctl.config.compose import Composed
from bigctl.data import prepare
from bigctl.errors import BigctlError, Diverged, Preempted, RunError, TrainingFailed
from bigctl.files import write_text
from bigctl.parallel import host
from bigctl.runs import conventions, directory, inputs
from bigctl.runs.directory import RunDirectory
from bigctl.training import cadence, manifest
from bigctl.training.signals import StopRequest

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
    """

    resume: str = "auto"
    allow_drift: Sequence[str] = ()
    quiet: bool = False
    profile: bool = False
    plugins: Sequence[str] = ()
    argv: Sequence[str] = ()


def train(composed: Composed, path: Path, options: Options) -> dict[str, Any]:
    """Train a configuration in a run directory; gives the summary. A finished run is left as it is.

    Raises:
        BigctlError: with the exit code that fits; the run directory says what happened.
    """
    run = RunDirectory(path)
    if options.resume == "must" and not run.exists:
        raise RunError("there is no run to resume", where=str(path), hint="--resume auto starts one")
    with StopRequest() as stop:  # before jax is imported: from here on a stop is an orderly one
        run.lock()
        try:
            host.keep_memory()
            config, previous, changed = _reconcile(run, composed, options)
            if previous == directory.COMPLETE and _is_complete(run, config):
                # the run may have been moved or copied since
                return {**run.summary(), "run": str(run.path), "already_complete": True}
            with _logging(run.log):
                try:
                    return _train(run, dataclasses.replace(composed, config=config), options, stop, changed)
                except Exception as error:
                    _record_failure(run, error)
                    raise
        finally:
            if not run.config.exists():
                run.discard()  # it ended before anything began: a typo leaves no run behind
            run.release()


def _reconcile(run: RunDirectory, composed: Composed, options: Options) -> tuple[Any, str, list[str]]:
    """The configuration to go on with, the status of what is there, and what has changed since.

    Raises:
        RunError: if that cannot be resumed.
    """
    config = composed.config
    if run.checkpoints.exists() and not run.config.exists():
        raise RunError(
            "is missing, so what the checkpoints belong to is not known",
            where=str(run.config),
            hint="bring it back, or start a new run with another --name",
        )
    if not run.exists or not run.config.exists():
        return config, directory.NEW, []
    record, status = run.record(), run.status()
    saved = composing.from_yaml(run.config.read_text(encoding="utf-8"), where=str(run.config))
    config = _keep_decided(saved, config)
    found = drift.judge(drift.changes(saved, config), options.allow_drift, where=str(run.path))
    if status == directory.DIVERGED and not found:
        raise TrainingFailed(
            f"the run diverged: {record.get('message', '')}",
            where=str(run.path),
            hint="change the configuration (--allow-drift KEY), or use another --name",
        )
    return config, status, [str(change) for change in found]


def _keep_decided(saved: Any, config: Any) -> Any:
    """The configuration with what the start of the run decided where it leaves that open: a run that is made longer
    keeps the schedule it began with, one from pretrained weights their architecture."""
    for part in dataclasses.fields(config):
        old, new = getattr(saved, part.name), getattr(config, part.name)
        if not dataclasses.is_dataclass(new) or isinstance(new, type) or type(old) is not type(new):
            continue
        decided = {
            field.name: getattr(old, field.name)
            for field in dataclasses.fields(new)
            if field.metadata.get("decided") and getattr(new, field.name) is None
        }
        if decided:
            config = dataclasses.replace(config, **{part.name: dataclasses.replace(new, **decided)})
    return config


def _is_complete(run: RunDirectory, config: Any) -> bool:
    """Whether nothing is left to do: all steps of this configuration are done, or it stopped by its own rule."""
    from bigctl.training.cadence import total_steps

    try:
        summary = run.summary()
        return bool(summary["stopped"]) or int(summary["step"]) >= total_steps(config, int(summary["data"]["train"]))
    except (RunError, KeyError, TypeError, ValueError):
        return False  # lost or damaged: going on from the last checkpoint, at the end, writes it again


def _train(
    run: RunDirectory, composed: Composed, options: Options, stop: StopRequest, changed: Sequence[str]
) -> dict[str, Any]:
    started = time.time()
    clock = time.perf_counter()
    run.update_record(
        status=directory.RUNNING,
        recipe=composed.config.recipe.kind,
        plugins=list(options.plugins),
        message="",
        exit_code=None,
    )
    # Everything that can be wrong with the data is found before the seconds that jax takes to start.
    begun = bool(manifest.steps(run.checkpoints))  # then the weights it started from may be gone
    config = composed.config if begun else inputs.resolve(composed.config)
    dataset = inputs.prepare_data(config, run.tokenizer)
    cadence.make(config, dataset.size("train"))

    from bigctl.runs import experiment as experiments
    from bigctl.runs import provenance, summary
    from bigctl.training.checkpoint import Checkpoints, shapes

    if config.train.compile_cache:
        experiments.use_compile_cache()
    experiment = experiments.build(config, dataset)
    if config.schedule.horizon is None:
        horizon = dataclasses.replace(config.schedule, horizon=experiment.cadence.total)
        config = dataclasses.replace(config, schedule=horizon)
    kept = config.checkpoint
    checkpoints = Checkpoints(run.checkpoints, keep=kept.keep, best=kept.best, on_failure=kept.on_failure)
    _keep_tokenizer(run, dataset, config)
    state, progress, resumed = _restore(run, experiment, checkpoints)
    run.write_config(composing.to_yaml(config), composed.overrides)
    start = {"time": started, "step": resumed, "argv": list(options.argv), "changed": list(changed)}
    run.update_record(
        data={
            "fingerprint": experiment.dataset.fingerprint,
            "features": experiment.dataset.features.to_json(),
            "info": experiment.dataset.info,
            "sizes": {split: experiment.dataset.size(split) for split in experiment.dataset.splits},
        },
        overrides=list(composed.overrides),
        packages=provenance.packages(),
        code=provenance.code(Path.cwd()),
        machine=provenance.machine(),
        devices=summary.devices(experiment.programs.mesh),
        parameters=summary.count(state.params),
        starts=[*run.record().get("starts", []), start],
    )
    meta = {"shapes": shapes(experiment.programs.abstract_state), "data": experiment.dataset.fingerprint}
    if dataset.features.tokenizer:
        meta["tokenizer"] = dataset.features.tokenizer["sha256"]
    try:
        fitted = _fit(run, experiment, checkpoints, state, progress, stop, options, meta, resumed=resumed)
        checkpoints.wait(last=True)
        if stop.exit_code is not None and not _finished(experiment, fitted.progress):
            raise _preempted(stop.exit_code, fitted.progress.step, experiment.cadence.total)
        seconds = time.perf_counter() - clock
        result = summary.write(run, experiment, checkpoints, fitted, resumed=resumed, seconds=seconds)
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

            conventions.keep(run, sources.locate(config.model.init_from or "").conventions)
        try:
            write_text(run.tokenizer, (Path(dataset.path) / prepare.TOKENIZER).read_text(encoding="utf-8"))
        except OSError as error:
            raise TrainingFailed(f"cannot be written: {error.strerror}", where=str(run.tokenizer)) from error


def _finished(experiment: Any, progress: Any) -> bool:
    return progress.step >= experiment.cadence.total or bool(progress.stopped)


def _restore(run: RunDirectory, experiment: Any, checkpoints: Any) -> tuple[Any, Any, int]:
    """The newest good checkpoint's state, or a new one; and the step it is at."""
    from bigctl.training.state import Progress

    checkpoints.clean()
    if not checkpoints.steps():
        from bigctl.runs.experiment import initial_weights

        weights, notes = initial_weights(experiment)
        for note in notes:
            log.info("model.init_from: %s", note)
        return experiment.programs.initialise(weights), Progress(), 0
    saved = checkpoints.find("last")
    if saved.meta.get("data") != experiment.dataset.fingerprint:
        raise RunError(
            "the data is not what the run was started on",
            where=str(run.path),
            hint="bring the data back as it was, or start a new run with another --name",
        )
    checkpoints.clean(after=saved.step)
    state = checkpoints.restore(saved, experiment.programs.abstract_state)
    log.info("resuming from step %d of %d", saved.step, experiment.cadence.total)
    return state, checkpoints.without_lost_best(saved.progress), saved.step


def _fit(
    run: RunDirectory,
    experiment: Any,
    checkpoints: Any,
    state: Any,
    progress: Any,
    stop: Any,
    options: Options,
    meta: dict[str, Any],
    *,
    resumed: int,
) -> Any:
    from bigctl.runs import samples
    from bigctl.runs.summary import Fitted
    from bigctl.training import divergence, throughput
    from bigctl.training import feed as feeds
    from bigctl.training.evaluation import Evaluator
    from bigctl.training.loop import Hooks, Loop
    from bigctl.training.profile import Profiler
    from bigctl.training.writers import Console, JsonLines, TensorBoard

    config, cadence = experiment.config, experiment.cadence
    splits = experiment.dataset.splits
    lines = JsonLines(run.metrics, step=resumed)
    console = Console(cadence.total, quiet=options.quiet)
    writers: list[Any] = [lines, console]
    if config.train.tensorboard:
        writers.append(TensorBoard(run.tensorboard, step=resumed))
    _announce(console, run, experiment, resumed)
    if config.train.accumulate > 1 and getattr(config.model, "norm", "none") == "batch":
        console.say("note: batch normalisation sees each of the train.accumulate parts by itself, not the whole batch")
    start = min(resumed + 20, (resumed + cadence.total) // 2)  # past compiling and the first, untypical steps
    profiler = Profiler(run.path / "profile", start=start) if options.profile else None

    def write(step: int, values: dict[str, Any]) -> None:
        for writer in writers:
            writer.write(step, values)

    def warn(text: str) -> None:
        log.warning(text)
        console.say(text)

    hooks = Hooks(
        write=write,
        save=lambda state, progress: checkpoints.save(state, progress, meta),
        flush=lines.flush,
        warn=warn,
    )
    sampler = samples.make(experiment, run.samples, console.say, resumed=resumed)
    hooks.sample = sampler

    def rewind(progress: Any, bad: int) -> Any:
        abstract = experiment.programs.abstract_state
        state, back = divergence.rewind(config.train.divergence, checkpoints, abstract, progress, bad)
        for writer in [*writers, *([sampler] if sampler is not None else [])]:
            writer.cut(back.step)
        return state, back

    hooks.rewind = rewind
    if profiler is not None:
        hooks.before_dispatch = profiler.before_dispatch
    feed = feeds.make(experiment.programs, splits["train"], config)
    loop = Loop(
        experiment.programs,
        feed,
        Evaluator(
            experiment.programs,
            splits["validation"],
            config,
            prefix="val",
            edges=feeds.edges_of(splits["train"], config),
        ),
        cadence,
        config,
        hooks,
        stop,
        metric=experiment.metric,
        mode=experiment.mode,
        examples_per_epoch=experiment.dataset.size("train"),
        rates=throughput.rates(config, experiment.programs.abstract_state.params, experiment.programs.mesh),
    )
    try:
        state, progress = loop.fit(state, progress)
        lines.flush()
    finally:
        feed.close()
        report = profiler.close() if profiler is not None else []
        for closing in [*writers, *([sampler] if sampler is not None else [])]:
            closing.close()
    return Fitted(state, progress, loop.timings, report)


def _announce(console: Any, run: RunDirectory, experiment: Any, resumed: int) -> None:
    from bigctl.runs.summary import count, devices

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


def _preempted(exit_code: int, step: int, total: int) -> Preempted:
    reason = "Ctrl-C" if exit_code == 130 else "SIGTERM"
    kept = "the checkpoint is saved" if step else "before anything was trained"
    return Preempted(
        f"stopped by {reason} at step {step} of {total}; {kept}",
        exit_code=exit_code,
        hint="run the same command again to go on",
    )


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


class _LogFile(logging.FileHandler):
    """log.txt, which must not fail a run or fill its terminal when the disk is full."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


@contextlib.contextmanager
def _logging(path: Path) -> Iterator[None]:
    """Everything that is logged goes to log.txt; warnings also to stderr."""
    root = logging.getLogger()
    try:
        handler = _LogFile(path, encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot be written: {error.strerror}", where=str(path)) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.setLevel(logging.INFO)
    bigctl_logger = logging.getLogger("bigctl")
    bigctl_logger.setLevel(logging.INFO)
    root.addHandler(handler)
    log.info("bigctl %s", json.dumps(sys.argv[1:]))
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
