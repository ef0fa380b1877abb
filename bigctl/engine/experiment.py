"""Configuration -> everything that is needed to compute: mesh, data, task, programs."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import jax
import numpy as np

from bigctl.cache_root import cache_root
from bigctl.config import cadence, schema
from bigctl.config.cadence import Cadence
from bigctl.data.dataset import Dataset, Features
from bigctl.data.target import CLASS, CLASSES, TOKEN_CLASS
from bigctl.engine import resolve
from bigctl.errors import ConfigError
from bigctl.parallel import mesh as meshes
from bigctl.parallel import partition
from bigctl.runs import provenance
from bigctl.training import feed as feeds
from bigctl.training.evaluation import Evaluator
from bigctl.training.programs import Programs, compile_programs
from bigctl.training.task import Task

log = logging.getLogger("bigctl")


class Shared(Protocol):
    """What experiments of one process share: see `sweeps.packed`."""

    def feed(self, experiment: Experiment) -> feeds.Feed | None:
        """A feed in place of the experiment's own; None for its own."""

    def evaluator(self, split: str, prefix: str) -> Evaluator:
        """The evaluator of all of them."""


@dataclass(frozen=True)
class Experiment:
    """One experiment, built but not started."""

    config: schema.Config
    dataset: Dataset
    task: Task
    programs: Programs
    cadence: Cadence
    metric: str
    mode: str

    shared: Shared | None = None
    """What this experiment shares with others, and takes instead of its own."""

    def feed(self, observe: feeds.Observer | None = None) -> feeds.Feed:
        """Where the batches of training come from; `observe` is told what each step is given."""
        layout, columns = self.dataset.batches, self.dataset.splits["train"]
        if self.shared is not None and (feed := self.shared.feed(self)) is not None:
            return feed
        return feeds.make_feed(self.programs, layout, columns, self.config, observe)

    def evaluator(self, split: str, prefix: str) -> Evaluator:
        """How a split is scored; `prefix` is what its metrics' names begin with."""
        if self.shared is not None:
            return self.shared.evaluator(split, prefix)
        return Evaluator(self.programs, self.dataset.batches, self.dataset.splits[split], self.config, prefix=prefix)

    def metric_names(self, prefix: str) -> list[str]:
        """The numbers that an evaluation gives."""
        extra = self.dataset.batches.extra_sums(self.dataset.splits["validation"])
        return self.programs.metric_names(prefix, extra)


def initial_weights(experiment: Experiment) -> tuple[dict[str, np.ndarray], list[str]]:
    """Weights that training starts from, by parameter path, and what there is to say of them."""
    init_from = experiment.config.model.init_from
    if init_from is None:
        return {}, []
    from bigctl.interop import loading, sources

    shapes = {
        partition.path_name(path): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_flatten_with_path(experiment.programs.abstract_state.params)[0]
    }
    target = experiment.dataset.features.target
    classes = target.names if target.kind in (CLASS, TOKEN_CLASS) else None
    weights, new, unused = loading.load_weights(sources.locate_source(init_from), shapes, classes=classes)
    notes = [f"{len(weights)} of {len(shapes)} parameters from {init_from}"]
    notes += [f"newly initialised: {_few(new)}"] if new else []
    notes += [f"not used: {_few(unused)}"] if unused else []
    return weights, notes


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def build(config: schema.Config, dataset: Dataset | None = None) -> Experiment:
    """Build the programs; nothing is computed yet. The data is prepared if it is not given.

    Raises:
        ConfigError, DataError: where configuration, data and devices do not fit each other.
    """
    if dataset is None:
        config = resolve.resolve(config)
        dataset = resolve.prepare_data(config)
    when = cadence.make(config, dataset.size("train"))
    mesh = meshes.make_mesh(config.mesh)
    meshes.check_batch(mesh, config.train.batch_size, config.train.accumulate)
    meshes.check_model(mesh, config.model)
    task = make_task(config, dataset.features, dataset)
    programs = compile_programs(config, task, mesh, when.total)
    _check_freeze(config, programs)
    metric = config.eval.metric or task.metric
    extra = dataset.batches.extra_sums(dataset.splits["validation"])
    known = programs.metric_names("val", extra)
    if metric not in known:
        raise ConfigError(
            f"there is no metric {metric!r} to select by", where="eval.metric", hint=f"one of: {', '.join(known)}"
        )
    mode = config.eval.mode or schema.require_direction(config.recipe, metric, "eval.mode")
    return Experiment(config, dataset, task, programs, when, metric, mode)


def _check_freeze(config: schema.Config, programs: Programs) -> None:
    names = [
        partition.path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(programs.abstract_state.params)[0]
    ]
    for pattern in config.optimizer.freeze:
        if not any(re.search(pattern, name) for name in names):
            raise ConfigError(
                f"no parameter's path has {pattern!r} in it", where="optimizer.freeze", hint=f"paths are {_few(names)}"
            )
    if not any(jax.tree.leaves(programs.trained(programs.abstract_state.params))):
        raise ConfigError("nothing is left to train", where="optimizer.freeze", hint="freeze less")


def rebuild(config: schema.Config, features: Features) -> Programs:
    """The programs of a trained run, from what it says of its data; the data itself is not touched."""
    return compile_programs(config, make_task(config, features), meshes.make_mesh(config.mesh), total_steps=1)


def make_task(config: schema.Config, features: Features, dataset: Dataset | None = None) -> Task:
    """The recipe's task; `dataset` where classes are to be counted.

    Raises:
        ConfigError: if recipe, model and data do not fit each other.
    """
    counts = None
    if dataset is not None and features.target.names:
        labels = dataset.splits["train"]["label"]
        counts = features.target.counts(labels)
        if features.target.kind == CLASSES:
            counts = np.stack([len(labels) - counts, counts])
    return config.recipe.build(config, features, counts)


def use_compile_cache() -> Path | None:
    """Keep compiled programs between starts, in a folder of this jaxlib and processor that only the user can write.

    Whoever can write such a folder can run code as its reader, so one that others can write is not used.
    """
    import stat

    import jaxlib

    host = provenance.digest(provenance.cpu() + os.environ.get("XLA_FLAGS", ""))
    folder = cache_root() / "compiled" / f"jaxlib-{jaxlib.__version__}-{host}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for private in (folder.parent, folder):
            found = private.stat()
            if found.st_uid != os.getuid():
                log.warning("compiled programs are not kept: %s belongs to another user", private)
                return None
            if stat.S_IMODE(found.st_mode) & 0o077:
                private.chmod(0o700)
    except OSError as error:
        log.warning("compiled programs are not kept: %s: %s", folder, error.strerror)
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_compilation_cache_max_size", 2 * 2**30)
    return folder
