"""Stage 1, open: a run directory is locked and read, and it is decided how the run begins. Free of jax.

docs/resume.md has the table of states; the four ways to begin are `run.Beginning`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from bigctl.config import cadence, drift, schema
from bigctl.config import compose as composing
from bigctl.config.compose import Composed
from bigctl.config.schema import Config
from bigctl.engine import resolve, same_start, so_far, teacher
from bigctl.engine.run import Beginning, Options, Run
from bigctl.errors import BigctlError, Diverged, Preempted, RunError
from bigctl.formatting import is_utf8
from bigctl.parallel import distributed
from bigctl.parallel.distributed import ProcessGroup
from bigctl.runs import directory, logs
from bigctl.runs.directory import RunDirectory
from bigctl.runs.summary import Summary
from bigctl.training import phases
from bigctl.training.signals import StopRequest
from bigctl.training.stopping import SharedStop
from bigctl.training.tracking import trackers

log = logging.getLogger("bigctl")
T = TypeVar("T")


@contextlib.contextmanager
def opened(composed: Composed, path: Path, options: Options) -> Iterator[Run]:
    """Hold a run directory until training in it has ended; an error within is recorded there.

    Raises:
        RunHeld: if another process holds it.
        BigctlError: if this configuration cannot be trained there.
    """
    began = time.monotonic() if options.began is None else options.began
    listening = contextlib.nullcontext(options.stop) if options.stop is not None else StopRequest()
    with listening as stop:  # before jax is imported: from here on a stop is an orderly one
        if (minutes := composed.config.train.max_minutes) is not None:
            stop.at(began + 60 * minutes, f"train.max_minutes={minutes:g}")
        phases.begin()
        group = distributed.join(composed.config.mesh.wait)
        _require_text(path)
        held = RunDirectory(path, writes=group.leads)
        if isinstance(group, ProcessGroup):
            stop.orderly()  # the others are told
        elif isinstance(stop, StopRequest):
            stop.closing = lambda: _left_early(held)
        try:
            same_start.require(group, composed.config)
            found = group.first(lambda: _find(held, composed, options), pack=_Found.to_json, unpack=_Found.from_json)
            shared = SharedStop(stop, group) if isinstance(group, ProcessGroup) else stop
            run = Run(held, composed.overrides, options, group, shared, time.time(), time.monotonic(), *found)
            if run.beginning is Beginning.COMPLETE:
                yield run
                return
            with logs.kept(held.log) if group.leads else contextlib.nullcontext():
                try:
                    _mark_running(run)
                    yield run
                except Exception as error:
                    error = group.failed(error)
                    record_failure(held, error, traceback.format_exc())
                    raise error
        except Exception as error:
            group.failed(error)
            raise
        finally:
            if not held.begun:
                held.discard()  # it ended before anything began: a typo leaves no run behind
            held.release()


def _require_text(path: Path) -> None:
    """Raises RunError for a path that is not UTF-8: libraries that write checkpoints would fail after the training."""
    if not is_utf8(str(path.absolute())):
        hint = "rename the folder, or give another one: --run-dir DIR"
        raise RunError("the path of the run directory is not UTF-8", where=str(path), hint=hint)


# ---------------------------------------------------------------------------------------------------- what is there


class _Found(NamedTuple):
    """What the first process found and decided; the others get it as JSON."""

    config: Config
    beginning: Beginning
    changed: tuple[str, ...]
    summary: Summary | None = None
    done: cadence.Done | None = None

    def to_json(self) -> dict[str, Any]:
        done = None if self.done is None else dataclasses.asdict(self.done)
        return {**self._asdict(), "config": composing.to_yaml(self.config), "done": done}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> _Found:
        config = composing.from_yaml(found["config"], where="process 0")
        done = None if found["done"] is None else cadence.Done(**found["done"])
        return cls(config, Beginning(found["beginning"]), tuple(found["changed"]), found["summary"], done)


def _find(run: RunDirectory, composed: Composed, options: Options) -> _Found:
    """Lock the run and decide how it begins.

    Raises:
        RunError, RunHeld, Diverged: if it cannot begin.
    """
    if options.resume == "must" and not run.exists:
        raise RunError("there is no run to resume", where=str(run.path), hint="--resume auto starts one")
    run.lock()
    if not run.config.exists():
        if run.checkpoints.exists():
            raise RunError(
                "is missing, so what the checkpoints belong to is not known",
                where=str(run.config),
                hint="restore it, or start a new run with another --name",
            )
        return _Found(_begun(composed.config, options), _without_checkpoint(run), ())
    status, trained = run.status(), run.trained()
    saved = composing.from_yaml(run.read_config(), where=str(run.config))
    if trained:  # which says nothing of it where it began when texts could not share rows
        saved = resolve.with_packing(saved, False)
    config = keep_decided(saved, composed.config)
    found = drift.changes(saved, config)
    if found or status != directory.COMPLETE:
        _require_own_training(run)
    if status == directory.DIVERGED and all(change.drift == schema.FREE for change in found):
        raise Diverged(
            f"the run diverged: {run.record().get('message', '')}",
            where=str(run.path),
            hint="change the configuration (--allow-drift KEY), or use another --name",
        )
    if not trained and status != directory.COMPLETE:  # no state that another configuration could contradict
        drift.judge([], options.allow_drift, where=str(run.path))
        return _Found(_begun(composed.config, options), _without_checkpoint(run), tuple(map(str, found)))
    changed = tuple(map(str, drift.judge(found, options.allow_drift, where=str(run.path))))
    done = so_far.done(run, saved, config) if trained else None
    if status == directory.COMPLETE and (summary := _complete(run, saved, config, done)) is not None:
        return _Found(config, Beginning.COMPLETE, changed, summary)
    if status == directory.COMPLETE and run.summary_file.exists() and not trained:
        raise RunError(
            "is complete, and its checkpoints are gone: there is nothing to resume from",
            where=str(run.path),
            hint="restore them, or start a new run with another --name",
        )
    _require_own_training(run)
    return _Found(config, Beginning.RESUMED if trained else _without_checkpoint(run), changed, done=done)


def _begun(config: Config, options: Options) -> Config:
    """A configuration that begins from nothing; a teacher that is none is refused while nothing is written."""
    if config.distil.teacher is not None:
        teacher.named(config, options.plugins)
    return config


def _require_own_training(run: RunDirectory) -> None:
    """Raises RunError for what `bigctl compress` made: trained on, it would begin with an optimizer that has seen
    nothing, and be no longer what it says."""
    if run.exists and "compression" in run.record():
        hint = f"train a new run from its weights: model.init_from={run.path}, and another --name"
        raise RunError("was made by `bigctl compress` and cannot be trained on", where=str(run.path), hint=hint)


def _without_checkpoint(run: RunDirectory) -> Beginning:
    return Beginning.RESTARTED if run.exists and run.record().get("starts") else Beginning.NEW


def keep_decided(saved: Config, config: Config) -> Config:
    """The configuration with what the first start decided where it leaves that open: a run that is made longer keeps
    the schedule it began with, one from pretrained weights their architecture."""
    return _filled(saved, config)


def _filled(saved: T, given: T) -> T:
    """A dataclass with what is decided and left open in it, at any depth, as another of its type has it."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(given):  # type: ignore[arg-type]
        old, new = getattr(saved, field.name), getattr(given, field.name)
        if dataclasses.is_dataclass(new) and type(old) is type(new):
            filled = _filled(old, new)
            if filled is not new:
                found[field.name] = filled
        elif field.metadata.get("decided") and schema.is_open(new):
            found[field.name] = old
    return dataclasses.replace(given, **found) if found else given  # type: ignore[type-var]


def _complete(run: RunDirectory, saved: Config, config: Config, done: cadence.Done | None) -> Summary | None:
    """The summary, where nothing is left to do: all steps are done, or training ended by its own rule.

    Raises:
        RunError: if training is to be longer, and would end by that rule all the same.
    """
    longer = (saved.train.steps, saved.train.epochs) != (config.train.steps, config.train.epochs)
    try:
        summary = run.summary()
        left = cadence.total_steps(config, int(summary["data"]["train"]), done) - int(summary["step"])
        stopped = summary["stopped"] and so_far.stopped(run, config, str(summary["stopped"]))
    except (RunError, KeyError, TypeError, ValueError):
        return None  # lost or damaged: resuming from the last checkpoint, at the end, writes it again
    if left > 0 and not stopped:
        return None
    if left > 0 and longer:
        raise RunError(
            f"training ended before its length: {stopped}; to make it longer changes nothing",
            where=str(run.path),
            hint="add train.early_stop.patience=null --allow-drift train.early_stop.patience (or another target)",
        )
    # the run may have been moved or copied since
    return cast(Summary, {**summary, "run": str(run.path), "already_complete": True})


# ------------------------------------------------------------------------------------------------ run.json says so


def _mark_running(run: Run) -> None:
    if run.group.leads:
        trackers.check(run.config.train.trackers)
    if run.beginning is Beginning.RESTARTED:
        log.warning("%s holds no checkpoint: the run starts again from step 0", run.directory.path)
    if not run.resumes and run.group.leads:
        run.directory.tokenizer.unlink(missing_ok=True)  # it may be that of another configuration, or of other data
    run.directory.update_record(
        status=directory.RUNNING,
        recipe=run.config.recipe.kind,
        plugins=list(run.options.plugins),
        message="",
        exit_code=None,
    )


def _left_early(run: RunDirectory) -> None:
    """What a start leaves that was ended before it trained anything: nothing, or the run as it was."""
    if not run.begun:
        run.discard()
    elif run.holds and run.record().get("status") == directory.RUNNING:
        run.update_record(status=directory.PREEMPTED, message="stopped by Ctrl-C while starting", exit_code=130)


def record_failure(run: RunDirectory, error: Exception, stack: str) -> None:
    """The error into run.json, the stack that shows where into log.txt; nothing of this may hide the error itself."""
    ended = {Preempted: directory.PREEMPTED, Diverged: directory.DIVERGED}
    status = next((status for kind, status in ended.items() if isinstance(error, kind)), directory.FAILED)
    code = error.exit_code if isinstance(error, BigctlError) else 1
    with contextlib.suppress(Exception):
        log.error("%s\n%s", error, stack)
    with contextlib.suppress(Exception):
        run.update_record(status=status, message=str(error)[:2000], exit_code=code)
