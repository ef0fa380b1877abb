"""From a composed configuration to a finished run.

Start reading at `train`: its six stages are one function each, in the file of their name. What a step computes is in
`training.step`, the order of events between steps in `training.loop`. docs/architecture.md shows the way of a command.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bigctl import imports
from bigctl.config import compose as composing
from bigctl.config import drift
from bigctl.config.compose import Composed
from bigctl.config.schema import Config
from bigctl.data import notes
from bigctl.data.dataset import Dataset
from bigctl.data.files.remote import is_place
from bigctl.engine import open_run, privacy, resolve, teacher
from bigctl.engine.resolve import Resolved
from bigctl.engine.run import Options, Run
from bigctl.errors import DataError
from bigctl.runs import directory, gates
from bigctl.runs.summary import Summary
from bigctl.training import phases
from bigctl.training.tracking import trackers

if TYPE_CHECKING:
    from bigctl.engine.experiment import Experiment
    from bigctl.interop.sources import Source

log = logging.getLogger("bigctl")


def train(composed: Composed, path: Path, options: Options) -> Summary:
    """Train a configuration in a run directory. A complete run is left as it is.

    Raises:
        BigctlError: with the exit code that fits; the run directory says what happened.
    """
    # 1. Open: from here on this process holds the run directory, and `run.beginning` is one of the four ways a run can
    # begin. A complete run needs nothing more.
    with open_run.opened(composed, path, options) as run:
        if run.summary is not None:
            _keep_places(run)
            return run.summary

        # 2. Resolve: weights to start from are located, data is prepared, the length of training is known. All of it
        # before jax is imported, which takes seconds: most mistakes end here.
        resolved = _resolve(run)

        with imports.kept():
            from bigctl.engine import distil, features, finish, fit, head_start, restore

        # 3. Build: mesh, recipe, programs; the metrics that gates and selection name are known now. A teacher says what
        # it has to say.
        experiment = distil.taught(run, _build(run, resolved))

        # 4. Restore the newest good checkpoint, or initialise; run.json says that training has begun.
        with restore.checkpoints_of(run, experiment) as checkpoints:
            start = restore.restore(run, experiment, checkpoints)
            experiment, start = features.computed(experiment, head_start.begun(experiment, start))

            # 5. Fit: evaluations, logs and saves happen in here.
            with trackers.tracking(run.directory, resolved.config) as tracked:
                if run.options.follow is not None and run.directory.writes:
                    tracked.append(run.options.follow(resolved.cadence.total))
                with fit.prepared(run, experiment, checkpoints, start, tracked) as fitting:
                    if options.stop is not None:
                        options.stop.orderly()
                    state, progress = fitting.loop.fit(start.state, start.progress)
                checkpoints.wait(last=True)
                phases.now(phases.END)
                fit.check_preempted(run, experiment, start, progress)

                # 6. Finish: the test split is scored, once.
                fitted = finish.Fitted(state, progress, fitting.loop.timings, fitting.profile, fitting.loop.waits_for())
                summary = finish.finish(run, experiment, checkpoints, start, fitted)
                for tracker in tracked:
                    tracker.result(summary["step"], summary["metrics"])
        run.directory.update_record(status=directory.COMPLETE, exit_code=0)
        return summary


def _keep_places(run: Run) -> None:
    """A complete run that is told nothing but where its data lies now finds it there from now on, if it is the same.

    Raises:
        RunError: if it is other data.
    """
    keys = [change.partition(":")[0] for change in run.changed]
    if not keys or not all(key.startswith("data.") and is_place(key.rpartition(".")[2]) for key in keys):
        return
    stored = run.directory.tokenizer if run.directory.tokenizer.is_file() else None
    found = run.group.in_turn(lambda: resolve.prepare_data(run.config, stored))
    known = (run.directory.record().get("data") or {}).get("fingerprint")
    drift.judge_surroundings({"data": known}, {"data": found.fingerprint}, where=str(run.directory.path))
    run.directory.write_config(composing.to_yaml(run.config), run.overrides)
    if run.group.leads and not run.options.quiet:
        print(f"data: it is the same, and found there from now on ({'; '.join(run.changed)})", file=sys.stderr)


def _resolve(run: Run) -> Resolved:
    """What weights and data decide. A resumed run has its own copies of what it began with, and looks for no weights.

    A run that begins writes its config.yaml before its data is prepared, which may take long: then `bigctl resume`
    can take it up. What the data decides is added after. A trial that shares its data with others writes it once.
    """
    config, stored, shared = run.config, run.directory.tokenizer, run.options.shared
    if shared is not None:
        source = shared.resolved.source
    else:
        lacks_tokenizer = (
            config.tokenizer is not None and config.tokenizer.type == "pretrained" and not stored.is_file()
        )
        source = resolve.locate_weights(config) if not run.resumes or lacks_tokenizer else None
    if not run.resumes:
        config = resolve.with_architecture(config, source)
        if shared is None:
            run.directory.write_config(composing.to_yaml(config), run.overrides)
    if shared is not None:
        dataset = shared.resolved.dataset
    else:
        with resolve.from_its_folder(run.directory, config) if run.resumes else contextlib.nullcontext():
            dataset = run.group.in_turn(lambda: resolve.prepare_data(config, stored, source))
    if run.group.first(lambda: dataset.fingerprint) != dataset.fingerprint:
        hint = "all processes must see the same files"
        raise DataError(f"process {run.group.index} finds other data than process 0", where="data", hint=hint)
    for note in notes.notes_of(dataset) if run.group.index == 0 else ():
        log.warning("data: %s", note)
    if config.train.measures_batch_size and not config.recipe.whole_batch:
        config = _with_batch_size(run, config, dataset, source)
        dataset = run.group.in_turn(lambda: resolve.prepare_data(config, stored, source))
    resolved = resolve.with_data(config, dataset, source, run.done)
    if config.distil.teacher is not None and not run.resumes:  # which has what its teacher said
        teacher.find(config, dataset, run.options.plugins)
    if not run.resumes:
        run.directory.write_config(composing.to_yaml(resolved.config), run.overrides)
    return resolved


def _with_batch_size(run: Run, config: Config, dataset: Dataset, source: Source | None) -> Config:
    """The configuration with the batch size that is measured here; run.json keeps by what."""
    from bigctl.engine import batch_size

    speaks = run.group.leads and not run.options.quiet
    if speaks:
        print(f"{batch_size.KEY}=auto: measuring the largest batch that fits", file=sys.stderr, flush=True)
    found = batch_size.measure(config, dataset, source, run.options.plugins)
    if speaks:
        print(found.sentence, file=sys.stderr, flush=True)
    log.info("%s", found.sentence)
    run.directory.update_record(batch_size=found.to_json())
    return batch_size.with_size(config, found.size)


def _build(run: Run, resolved: Resolved) -> Experiment:
    """The experiment; the names of the run's gates are checked before anything is trained."""
    from bigctl.engine import compile_cache, device_memory, kept

    config, shared, required = resolved.config, run.options.shared, run.options.require
    if config.train.compile_cache:
        compile_cache.use_compile_cache()
    built = kept.built(resolved) if shared is None else shared.build(resolved)
    device_memory.require_state(built.programs)
    if required:
        names = built.metric_names("val")
        tested = [f"test/{name.removeprefix('val/')}" for name in names] if config.eval.test else []
        spent = [privacy.EPSILON] if config.train.privacy.on else []
        gates.check_names(required, [*names, *tested, *spent])
    return built
