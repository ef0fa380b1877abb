"""Features that a frozen model computes of all pictures, once: between restoring the weights and the first step."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import sys
import time
from pathlib import Path

import jax
import numpy as np

from bigctl.cache_root import cache_root
from bigctl.data.layouts.rows import Rows
from bigctl.engine.experiment import Experiment
from bigctl.engine.restore import Start
from bigctl.files import temporary_name
from bigctl.parallel import mesh as meshes
from bigctl.parallel.partition import path_name
from bigctl.training.programs import options_of_use
from bigctl.training.state import TrainState
from bigctl.training.task import FEATURES, Batch

_BATCH = 64


def computed(experiment: Experiment, start: Start) -> tuple[Experiment, Start]:
    """The experiment on features in place of pictures, for a task that trains on these; others as they are.

    They are kept in the cache, by what they were made of: the data, the weights, and how pictures become inputs.
    """
    if experiment.task.feature_width is None:
        return experiment, start
    began, known, weights = time.perf_counter(), 0, _weights_digest(start.state)
    splits = {}
    for split, columns in experiment.dataset.splits.items():
        file = _file(experiment, split, weights)
        found = _read(file, experiment.dataset.batches.size(columns, training=False))
        known += found is not None
        if found is None:
            found = _of_split(experiment, start.state, split)
            _write(file, found)
        splits[split] = {FEATURES: found, **{name: column for name, column in columns.items() if name != "inputs"}}
    count = sum(len(columns[FEATURES]) for columns in splits.values())
    how = "from the cache" if known == len(splits) else f"computed in {time.perf_counter() - began:.0f} s"
    note = f"features of {count:,} pictures: {how}"
    dataset = dataclasses.replace(experiment.dataset, splits=splits, layout=Rows())
    return dataclasses.replace(experiment, dataset=dataset), dataclasses.replace(start, notes=(*start.notes, note))


def _of_split(experiment: Experiment, state: TrainState, split: str) -> np.ndarray:
    """float32 [N, width], in the split's order."""
    task, programs, layout = experiment.task, experiment.programs, experiment.dataset.batches
    columns, where = experiment.dataset.splits[split], meshes.batch_sharding(programs.mesh)

    def run(params: object, variables: object, batch: Batch) -> jax.Array:
        with meshes.used(programs.mesh):
            return task.compute_features(programs.merge(params, variables), batch)

    compiled = jax.jit(run, compiler_options=options_of_use(programs.step))
    shards = meshes.batch_shards(programs.mesh)
    plan = layout.evaluation_plan(columns, batch_size=-(-_BATCH // shards) * shards, shards=shards)
    found = np.zeros((layout.size(columns, training=False), task.feature_width or 0), np.float32)
    print(f"features: computing those of the {split} split", file=sys.stderr, flush=True)
    for indices, mask, length in plan.batches():
        batch = {"inputs": meshes.put(layout.gather(columns, indices, length)["inputs"], where)}
        values = np.asarray(compiled(state.params, state.variables, batch))
        found[layout.rows(indices[mask > 0])] = values[mask > 0]
    return found


def _weights_digest(state: TrainState) -> str:
    """Of all that is below the head."""
    digest = hashlib.sha256()
    for tree in (state.params, state.variables):
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            if not (name := path_name(path)).startswith("head/"):
                digest.update(name.encode())
                digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _file(experiment: Experiment, split: str, weights: str) -> Path:
    config = experiment.config
    pixels = [getattr(config.recipe, name, None) for name in ("mean", "std")]
    keys = dataclasses.asdict(config.model)
    model = sorted((name, str(value)) for name, value in keys.items() if name != "init_from")
    said = [experiment.dataset.fingerprint, split, weights, pixels, model]
    return cache_root() / FEATURES / f"{hashlib.sha256(repr(said).encode()).hexdigest()[:32]}.npy"


def _read(file: Path, count: int) -> np.ndarray | None:
    """What is in the cache; None where it is not there, or damaged."""
    try:
        found = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.ndim == 2 and len(found) == count and found.dtype == np.float32 else None


def _write(file: Path, values: np.ndarray) -> None:
    """Into the cache, whole or not at all; without room there they are computed anew next time."""
    temporary = temporary_name(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as stream:
            np.save(stream, values)
        os.replace(temporary, file)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
