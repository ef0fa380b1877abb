"""Stage 4, restore or initialise: the state that training starts from, on the mesh; and the record of the start."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigctl.config import compose as composing
from bigctl.config import drift
from bigctl.config.schema import Config
from bigctl.data import cache
from bigctl.data.files import changed_files
from bigctl.data.notes import notes_of
from bigctl.engine import selection
from bigctl.engine.experiment import Experiment, shapes_by_path
from bigctl.engine.run import Run
from bigctl.errors import TrainingFailed
from bigctl.files import write_text
from bigctl.optim import thawing
from bigctl.runs import generation_config, provenance
from bigctl.runs.metrics_file import read_metrics
from bigctl.training import early_stop
from bigctl.training.checkpoints import by_time
from bigctl.training.checkpoints.async_checkpoints import queued
from bigctl.training.checkpoints.store import Checkpoints, Saved
from bigctl.training.state import Progress, TrainState

if TYPE_CHECKING:
    from bigctl.interop import transfer

log = logging.getLogger("bigctl")


@dataclass(frozen=True)
class Start:
    """Where training starts.

    Attributes:
        state: on the devices; the first step takes its memory.
        progress: the host's side of it.
        step: updates done before this start.
        made_with: packages, code, machine and devices of this start.
        differences: what of that is not as it was at the start before.
        notes: what the user is told of it.
        new_head: whether the model begins with pretrained weights that brought no head for these classes along.
    """

    state: TrainState
    progress: Progress
    step: int
    made_with: Mapping[str, Any]
    differences: tuple[drift.Difference, ...] = ()
    notes: tuple[str, ...] = ()
    new_head: bool = False


@contextlib.contextmanager
def checkpoints_of(run: Run, experiment: Experiment) -> Iterator[Checkpoints]:
    """The checkpoints of a run; all saves are over when this ends."""
    kept = experiment.config.checkpoint
    own = Checkpoints(
        run.directory.checkpoints, keep=kept.keep, best=kept.best, on_failure=kept.on_failure, group=run.group
    )
    own.prepare()
    by_itself = experiment.cadence.save is None and run.group.count == 1
    if run.options.shared is not None:
        checkpoints = run.options.shared.checkpoints(own)
    elif by_itself and by_time.is_small(experiment.programs.abstract_state):
        checkpoints = queued(own)  # the best and what follows it are written one after the other, and nothing waits
    else:
        checkpoints = own
    try:
        yield checkpoints
    finally:
        with contextlib.suppress(TrainingFailed):
            checkpoints.close()


def restore(run: Run, experiment: Experiment, checkpoints: Checkpoints) -> Start:
    """The state of the newest good checkpoint, or a new one where there is none; run.json notes the start.

    Raises:
        RunError: if no checkpoint can be read, or they do not belong to this configuration and data.
    """
    shared = run.options.shared
    made_with = _made_with(experiment.config) if shared is None else shared.made_with
    made_with = {**made_with, "devices": experiment.devices}
    _keep_tokenizer(run, experiment)
    run.group.first(checkpoints.clean)  # what interrupted saves have left behind
    start = _resumed(run, experiment, checkpoints, made_with) if run.resumes else _new(experiment, made_with)
    _record_start(run, experiment, start)
    return start


def _made_with(config: Config) -> dict[str, Any]:
    return provenance.made_with(Path.cwd(), diff=config.train.keep_diff)


def _new(experiment: Experiment, made_with: Mapping[str, Any]) -> Start:
    taken = taken_over(experiment)
    trained = experiment.programs.trained(experiment.programs.abstract_state.params)
    changes = thawing.told(experiment.config, trained, experiment.cadence.total)
    for line in [*changes, *experiment.sight]:
        log.info("%s", line)
    if taken is None:
        return Start(experiment.programs.initialise(), Progress(), 0, made_with)
    from bigctl.interop import transfer

    for line in taken.said:
        log.info("%s", line)
    state = experiment.programs.initialise(taken.params, taken.variables)
    # One whose classes are all others is taken over as zeros.
    new_head = not any(name.startswith(transfer.HEAD) and values.any() for name, values in taken.params.items())
    return Start(state, Progress(), 0, made_with, notes=taken.said, new_head=new_head)


def taken_over(experiment: Experiment) -> transfer.Transfer | None:
    """What the model takes over from the weights that it starts from; None without such. Raises DataError."""
    if experiment.source is None:
        return None
    from bigctl.interop import transfer

    dataset, variables = experiment.dataset, shapes_by_path(experiment.programs.abstract_state.variables)
    tokenizer = Path(dataset.path) / cache.TOKENIZER if dataset.features.tokenizer else None
    start = transfer.Start(experiment.config, dataset.features, experiment.parameter_shapes, variables, tokenizer)
    return transfer.take_over(experiment.source, start)


def _resumed(run: Run, experiment: Experiment, checkpoints: Checkpoints, made_with: Mapping[str, Any]) -> Start:
    saved = checkpoints.find("last")
    differences = run.group.first(
        lambda: _judge_surroundings(run, experiment, saved, made_with), pack=lambda _: None, unpack=lambda _: []
    )
    checkpoints.clean(after=saved.step)
    state = experiment.programs.carried(checkpoints.restore(saved, experiment.programs.abstract_state))
    log.info("resuming from step %d of %d", saved.step, experiment.cadence.total)
    progress, note = run.group.first(
        lambda: judged_as_now(run, experiment, checkpoints, checkpoints.without_lost_best(saved.progress)),
        pack=lambda found: [found[0].to_json(), found[1]],
        unpack=lambda found: (Progress.from_json(found[0]), found[1]),
    )
    run.directory.write_config(composing.to_yaml(experiment.config), run.overrides)
    return Start(state, progress, saved.step, made_with, tuple(differences), (note,) if note else ())


def judged_as_now(
    run: Run, experiment: Experiment, checkpoints: Checkpoints, progress: Progress
) -> tuple[Progress, str]:
    """Progress by what selects and stops this start, and what to say of it."""
    rule = experiment.config.train.early_stop
    progress, note = selection.carried_over(
        progress,
        experiment.metric,
        experiment.mode,
        before=run.directory.record().get("selection") or {},
        lines=lambda: read_metrics(run.directory.metrics),
        kept=checkpoints.steps(),
        min_delta=rule.min_delta,
    )
    if progress.stopped:
        why, best, stale = progress.stopped, progress.best, progress.stale
        progress.stopped = early_stop.still(rule, experiment.metric, experiment.mode, why, best, stale)
    return progress, note


def _judge_surroundings(
    run: Run, experiment: Experiment, saved: Saved, made_with: Mapping[str, Any]
) -> list[drift.Difference]:
    """What is not as it was at the start before, warned of where that matters."""
    before, now = provenance.comparable(run.directory.record()), provenance.comparable(made_with)
    tokenizer = experiment.dataset.features.tokenizer or {}
    differences = drift.judge_surroundings(
        {**before, "data": saved.meta.get("data"), "tokenizer": saved.meta.get("tokenizer")},
        {**now, "data": experiment.dataset.fingerprint, "tokenizer": tokenizer.get("sha256")},
        where=str(run.directory.path),
        told=lambda: changed_files.told(_data(run).get("files"), experiment.config.data),
    )
    for difference in differences:
        log.info("%s", difference)
    warned = [d.plain for d in differences if d.verdict == drift.WARN]
    if warned:
        log.warning(
            "%s: the run continues, but may differ in the last bits from the one it would have been", "; ".join(warned)
        )
    return differences


def _data(run: Run) -> Mapping[str, Any]:
    """What run.json says of the data."""
    found = run.directory.record().get("data")
    return found if isinstance(found, Mapping) else {}


def _keep_tokenizer(run: Run, experiment: Experiment) -> None:
    """The tokenizer belongs to the run: it is kept there, and used again rather than made again.

    So is what the weights that came with it say about generation.
    """
    config, dataset, kept = experiment.config, experiment.dataset, run.directory.tokenizer
    if not run.group.leads or not dataset.features.tokenizer or kept.exists():
        return
    from bigctl.interop import sources

    given = config.tokenizer is not None and config.tokenizer.type == "pretrained"
    if given and experiment.source is not None and experiment.source.model in sources.DECODERS:
        generation_config.write_generation_config(run.directory, experiment.source.generation_config)
    try:
        write_text(kept, (Path(dataset.path) / cache.TOKENIZER).read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainingFailed(f"cannot be written: {error.strerror}", where=str(kept)) from error


def _record_start(run: Run, experiment: Experiment, start: Start) -> None:
    run.directory.begun = True
    if not run.directory.writes:
        return
    dataset, options = experiment.dataset, run.options
    note = {} if options.shared is None else options.shared.note
    changed = [*run.changed, *map(str, start.differences)]
    this = {"time": run.started, "step": start.step, "argv": list(options.argv), "changed": changed, **note}
    this["folder"] = os.getcwd()
    this |= {"notes": list(start.notes)} if start.notes else {}
    run.directory.update_record(
        data={
            "fingerprint": dataset.fingerprint,
            "prepared": Path(dataset.path).name if experiment.config.recipe.purpose != "initialise" else "",
            "features": dataset.features.to_json(),
            "info": dataset.info,
            "notes": notes_of(dataset),
            "sizes": {split: dataset.size(split) for split in dataset.splits},
            "files": changed_files.known(experiment.config.data),
            **({"drawn": drawn} if (drawn := experiment.drawn()) else {}),
        },
        overrides=list(run.overrides),
        **start.made_with,
        parameters=experiment.parameter_count,
        steps=experiment.cadence.total,
        selection={"metric": experiment.metric, "mode": experiment.mode},
        starts=[*run.directory.record().get("starts", []), this],
    )
