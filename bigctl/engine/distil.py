"""What a teacher says of the training split, computed once before the first step: a column of logits like any other.
Of a text, where it has to say something of each token, it is asked in each step instead: its weights are an argument of
the step beside the student's.

They are kept in the cache, by what they were made of: the teacher's checkpoint and the student's data. A start that is
killed has computed what it has computed; the next one goes on from there. A run notes their digest, and does not go on
with others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from bigctl.config.schema import Config
from bigctl.data import taught as kept
from bigctl.data.dataset import Dataset
from bigctl.data.progress import Progress
from bigctl.engine import teacher as teachers
from bigctl.engine.experiment import Experiment, on_one_device, rebuild
from bigctl.engine.run import Run
from bigctl.engine.teacher import KEY, Teacher
from bigctl.errors import RunError, TrainingFailed
from bigctl.files import sha256, temporary_name
from bigctl.parallel import mesh as meshes
from bigctl.runs import manifest
from bigctl.training.checkpoints.store import Checkpoints
from bigctl.training.programs import ModelPrograms
from bigctl.training.state import Tree, Weights
from bigctl.training.task import TEACHER, Batch

log = logging.getLogger("bigctl")
_ROWS = 2**16
"""Of a new file that are written at once."""


def taught(run: Run, experiment: Experiment) -> Experiment:
    """The experiment whose training split has the column `TEACHER`; as it is where nobody teaches.

    Raises:
        ConfigError, RunError: where the teacher cannot teach it; where a run that is resumed has another one by now.
    """
    config, dataset = experiment.config, experiment.dataset
    if config.distil.teacher is None:
        return experiment
    noted = run.directory.record().get(TEACHER) if run.resumes else None
    if dataset.features.kind == teachers.STREAM:
        asked = asked_by(experiment, run.options.plugins, noted)
        experiment, said = asked.joined(experiment), asked.said
    else:
        logits, said = run.group.in_turn(lambda: _logits(config, dataset, run.options.plugins, noted))
        experiment = _with_column(experiment, logits)
        if config.distil.hidden:
            experiment = asked_by(experiment, run.options.plugins, said).joined(experiment)
    if run.directory.writes:
        run.directory.update_record(**{TEACHER: said})
    return experiment


def of_experiment(experiment: Experiment) -> Experiment:
    """As `taught`, for an experiment that is no run."""
    config, dataset = experiment.config, experiment.dataset
    if config.distil.teacher is None:
        return experiment
    if dataset.features.kind == teachers.STREAM:
        return asked_by(experiment).joined(experiment)
    logits, said = _logits(config, dataset, (), None)
    experiment = _with_column(experiment, logits)
    return asked_by(experiment, (), said).joined(experiment) if config.distil.hidden else experiment


@dataclass(frozen=True)
class Asked:
    """A teacher that is asked in each step.

    Attributes:
        weights: of its checkpoint, whole on each device.
        network: weights -> its network.
        said: what a run keeps of which checkpoint that is.
    """

    weights: Weights
    network: Callable[[Weights], nnx.Module]
    said: Mapping[str, Any]

    def joined(self, experiment: Experiment) -> Experiment:
        """The experiment whose steps are given its weights."""
        programs = experiment.programs
        programs.task.teacher = self.network
        programs = dataclasses.replace(programs, hparams={**programs.hparams, TEACHER: self.weights})
        return dataclasses.replace(experiment, programs=programs)


def asked_by(experiment: Experiment, plugins: Sequence[str] = (), noted: Mapping[str, Any] | None = None) -> Asked:
    """The teacher that the steps of an experiment ask; `noted` is what a run that goes on says of it.

    Raises:
        ConfigError, RunError: where it cannot teach.
    """
    teacher = teachers.find(experiment.config, experiment.dataset, plugins)
    said = _source(teacher, noted)
    train = dataclasses.replace(teacher.config.train, precision=experiment.config.train.precision)
    with meshes.over(jax.local_devices()[:1]):
        theirs = rebuild(on_one_device(dataclasses.replace(teacher.config, train=train)), teacher.features)
        weights = _restored(teacher, theirs, int(said["step"]))
    where = meshes.replicated(experiment.programs.mesh)
    given = jax.tree.map(lambda values: meshes.put(np.asarray(values), where), weights)
    return Asked(given, lambda weights: theirs.merge(weights.params, weights.variables), said)


def _with_column(experiment: Experiment, logits: np.ndarray) -> Experiment:
    dataset = experiment.dataset
    splits = {**dataset.splits, "train": {**dataset.splits["train"], TEACHER: logits}}
    return dataclasses.replace(experiment, dataset=dataclasses.replace(dataset, splits=splits))


def _logits(
    config: Config, dataset: Dataset, plugins: Sequence[str], noted: Mapping[str, Any] | None
) -> tuple[np.ndarray, dict[str, Any]]:
    """A memory map float32 [N, classes], and what the record says of it."""
    shape = (dataset.size("train"), dataset.features.num_classes)
    if noted is not None:
        found = _read(_file(dataset, noted), shape)
        if found is not None and sha256(_file(dataset, noted)) == noted.get("logits"):
            return found, dict(noted)
    teacher = teachers.find(config, dataset, plugins)
    said = _source(teacher, noted)
    file = _file(dataset, said)
    if (found := _read(file, shape)) is None:
        with _alone(file):
            if (found := _read(file, shape)) is None:
                _compute(config, dataset, teacher, int(said["step"]), file, shape)
                found = _read(file, shape)
    if found is None:
        raise TrainingFailed("cannot be read again", where=str(file))
    said["logits"] = sha256(file)
    if noted is not None and said["logits"] != noted.get("logits"):
        log.warning("what %s says was computed anew, and differs from before: so will the run", teacher.name)
    return found, said


def _source(teacher: Teacher, noted: Mapping[str, Any] | None) -> dict[str, Any]:
    """Which checkpoint teaches: the one that the run began with, else the best."""
    checkpoints = Checkpoints(teacher.run.checkpoints, best=teacher.config.checkpoint.best)
    try:
        if noted is not None:
            step = int(noted["step"])
        else:
            step = checkpoints.find("best" if checkpoints.has_best() else "last").step
    finally:
        checkpoints.close()
    listed = teacher.run.checkpoints / f"{step:09d}" / manifest.MANIFEST
    digest = sha256(listed) if listed.is_file() else None
    if noted is not None and digest != (noted.get("checkpoint") or {}).get(manifest.MANIFEST):
        what = f"its checkpoint of step {step:,}, which this run began with, is not there any more"
        raise RunError(what, where=f"{KEY}={teacher.name}", hint="bring it back, or start a new run")
    return {"run": teacher.run.path.name, "step": step, "checkpoint": {manifest.MANIFEST: digest}}


def _file(dataset: Dataset, said: Mapping[str, Any]) -> Path:
    of = [1, dataset.fingerprint, list(dataset.features.target.names), said.get("checkpoint"), said.get("step")]
    return kept.folder(dataset.fingerprint) / f"{hashlib.sha256(repr(of).encode()).hexdigest()[:32]}.npy"


def _read(file: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == shape and found.dtype == np.float32 else None


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[None]:
    """One process at a time computes a file; others wait for it."""
    import fcntl

    with _storing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = file.with_suffix(".lock").open("w")
    with lock:
        with _storing(file):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _storing(file: Path) -> Iterator[None]:
    """Raises TrainingFailed for an error of the file system within, where only this file and its folder are touched."""
    try:
        yield
    except OSError as error:
        hint = "free some space, or set BIGCTL_CACHE_DIR to a folder that can be written"
        what = f"what the teacher says cannot be stored: {error.strerror or error}"
        raise TrainingFailed(what, where=str(file.parent), hint=hint) from error


# ------------------------------------------------------------------------------------------------------------ computing


def _compute(config: Config, dataset: Dataset, teacher: Teacher, step: int, file: Path, shape: tuple[int, ...]) -> None:
    """Fill a file beside it batch by batch, rows that are not known yet being NaN; then give it its name."""
    seen, partial = teachers.its_data(teacher, config, dataset), file.with_suffix(".partial")
    with _storing(file):
        if _read(partial, shape) is None:
            _begin(partial, shape)
        found = np.lib.format.open_memmap(partial, mode="r+")
    with meshes.over(jax.local_devices()[:1]):
        programs = rebuild(on_one_device(teacher.config), teacher.features)
        weights = _restored(teacher, programs, step)
        columns, layout = seen.splits["train"], seen.batches
        names, run = list(programs.task.exported_inputs(1)), _compiled(programs, weights)
        plan, done = layout.evaluation_plan(columns, batch_size=None, shards=1), 0
        known = int(np.isfinite(found[:, 0]).sum())
        said = f"{KEY}: {teacher.run.path.name} reads the training split"
        with Progress(said, shape[0], ("examples", 1), done=known) as progress:
            for indices, mask, length in plan.batches():
                real = mask > 0
                rows = layout.rows(indices[real])
                done += len(rows)
                if np.isfinite(found[rows]).all():
                    continue
                batch = layout.gather(columns, indices, length)
                values = np.asarray(run({name: batch[name] for name in names}), np.float32)[real]
                if not np.isfinite(values).all():
                    raise RunError("its answers are no finite numbers", where=f"{KEY}={teacher.name}")
                found[rows] = values[:, teacher.order]
                progress.update(done)
    with _storing(file):
        found.flush()
        os.replace(partial, file)


def _compiled(programs: ModelPrograms, weights: Weights) -> Any:
    """Columns of a batch -> logits [batch, classes]."""

    @jax.jit
    def run(params: Tree, variables: Tree, batch: Batch) -> jax.Array:
        with meshes.used(programs.mesh):
            return programs.task.exported(programs.merge(params, variables), batch)["logits"]

    return lambda batch: run(weights.params, weights.variables, batch)


def _restored(teacher: Teacher, programs: ModelPrograms, step: int) -> Weights:
    checkpoints = Checkpoints(teacher.run.checkpoints, best=teacher.config.checkpoint.best)
    try:
        averaged = bool(teacher.config.train.ema)
        return checkpoints.restore_weights(checkpoints.find(step), programs.weights, averaged=averaged)
    finally:
        checkpoints.close()


def _begin(partial: Path, shape: tuple[int, ...]) -> None:
    """A file of which nothing is known, whole or not at all."""
    temporary = temporary_name(partial)
    try:
        values = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
        for first in range(0, shape[0], _ROWS):
            values[first : first + _ROWS] = np.nan
        values.flush()
        os.replace(temporary, partial)
    finally:
        temporary.unlink(missing_ok=True)
