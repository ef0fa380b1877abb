"""Stage 3, build: from data and a resolved configuration to everything that computes. Nothing is computed yet."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from bigctl.config import schema
from bigctl.config.cadence import Cadence
from bigctl.config.schema import Config
from bigctl.data.dataset import Dataset, Features
from bigctl.data.layouts import growing, packed_texts
from bigctl.data.layouts.layout import Parted
from bigctl.data.target import CLASSES
from bigctl.engine import device_memory, federated, privacy, teacher
from bigctl.errors import ConfigError
from bigctl.optim import masks, patterns, thawing
from bigctl.parallel import mesh as meshes
from bigctl.parallel.partition import path_name
from bigctl.training import feed as feeds
from bigctl.training import plans
from bigctl.training.calls import Check
from bigctl.training.evaluation import Evaluator
from bigctl.training.programs import ModelPrograms, Programs, compile_programs, model_programs
from bigctl.training.state import Tree
from bigctl.training.task import Task, require_task
from bigctl.training.throughput import Rates, rates

if TYPE_CHECKING:
    from bigctl.engine.resolve import Resolved
    from bigctl.interop.sources import Source


class Shared(Protocol):
    """What experiments of one process share: see `sweeps.packed`."""

    def feed(self, experiment: Experiment) -> feeds.Feed | None:
        """A feed in place of the experiment's own; None for its own."""

    def evaluator(self, split: str, prefix: str) -> Evaluator:
        """The evaluator of all of them."""


@dataclass(frozen=True)
class Experiment:
    """One experiment, built but not started.

    Attributes:
        config, dataset, cadence, source: as resolved.
        task: what the recipe adds.
        programs: what is compiled.
        metric: what selects the best checkpoint, and `mode` whether it should be large ("max") or small ("min").
        shared: what this experiment shares with others, and takes instead of its own.
    """

    config: Config
    dataset: Dataset
    task: Task
    programs: Programs
    cadence: Cadence
    metric: str
    mode: str
    source: Source | None = None
    shared: Shared | None = None

    def feed(self, observe: feeds.Observer | None = None, check: Check | None = None) -> feeds.Feed:
        """Where the batches of training come from; `observe` is told what each step is given, `check` of each compiled
        step before it runs first."""
        layout, columns = self.dataset.batches, self.dataset.splits["train"]
        if self.shared is not None and (feed := self.shared.feed(self)) is not None:
            return feed
        return feeds.make_feed(self.programs, layout, columns, self.config, observe, check)

    def evaluator(self, split: str, prefix: str) -> Evaluator:
        """How a split is scored; `prefix` is what its metrics' names begin with."""
        if self.shared is not None:
            return self.shared.evaluator(split, prefix)
        columns, check = self.dataset.splits[split], device_memory.check_of_evaluation(self.programs)
        return Evaluator(self.programs, self.dataset.batches, columns, self.config, prefix=prefix, check=check)

    def metric_names(self, prefix: str) -> list[str]:
        """The numbers that an evaluation gives."""
        return _metric_names(self.programs, self.dataset, prefix)

    def drawn(self) -> list[dict[str, Any]]:
        """What the training draws from each corpus of a mixture, see `Parted`; of other data nothing."""
        layout, draws = self.dataset.batches, self.cadence.total * self.config.train.batch_size
        return layout.drawn(self.dataset.splits["train"], draws) if isinstance(layout, Parted) else []

    @property
    def sight(self) -> list[str]:
        """How training sees its pictures or texts, as lines, where the configuration alone does not say it."""
        stages, shape = plans.stages_of(self.config, self.cadence.total), self.dataset.features.shape
        lines = growing.told(stages, self.config.train.batch_size, shape)
        augment = getattr(self.config.recipe, "augment", None)
        if augment is not None and augment.flip == "auto" and augment.alternates_of(shape[-1]):
            lines.append(
                "recipe.augment.flip: images have colour, each is mirrored in every other epoch; none turns it off"
            )
        if plans.packs_texts(self.task, self.config):
            columns = self.dataset.splits["train"]
            layout = plans.planned(self.programs, self.dataset.batches, columns, self.config)[0]
            lines.append(packed_texts.told(layout, self.config.train.batch_size))
        return lines

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return shapes_by_path(self.programs.abstract_state.params)

    @property
    def parameter_count(self) -> int:
        """Number of trained scalars."""
        return sum(map(math.prod, self.parameter_shapes.values()))

    @property
    def active_parameters(self) -> int:
        """Number of those that one example, or one token of a text, is multiplied with: of experts those it has."""
        share = self.config.model.active_share
        return round(sum(share(name) * math.prod(shape) for name, shape in self.parameter_shapes.items()))

    @property
    def rates(self) -> Rates | None:
        """How examples a second become tokens a second, for a language model."""
        programs = self.programs
        return rates(self.task, programs.abstract_state.params, programs.mesh, self.config.train.precision)

    @property
    def devices(self) -> dict[str, Any]:
        return describe_mesh(self.programs.mesh)


def build(config: Config) -> Experiment:
    """The experiment of a configuration that is no run.

    Raises:
        ConfigError, DataError: where configuration, data and devices do not fit each other.
    """
    from bigctl.engine.resolve import resolve  # here: who uses a trained model prepares no data

    resolved = resolve(config)
    if config.distil.teacher is not None:
        teacher.find(config, resolved.dataset)
    return build_resolved(resolved)


def build_resolved(resolved: Resolved) -> Experiment:
    """As `build`, for what is resolved already."""
    config, dataset = resolved.config, resolved.dataset
    mesh = meshes.make_mesh(config.mesh)
    federated.require_one_device(config, mesh)
    meshes.check_batch(mesh, config.train.batch_size, config.train.accumulate)
    meshes.check_model(mesh, config)
    task = make_task(config, dataset.features, dataset)
    device_memory.require_batches(config, task)
    programs = compile_programs(config, task, mesh, resolved.cadence.total)
    federated.require_no_statistics(config, programs)
    privacy.require_private(config, programs)
    metric = config.eval.metric or task.metric
    _check_freeze(config, programs)
    _check_biases(config, programs)
    _check_layer_decay(config, programs)
    _check_unfreeze(config, programs, resolved.cadence.total)
    known = _metric_names(programs, dataset, "val")
    if metric not in known:
        raise ConfigError(
            f"there is no metric {metric!r} to select by", where="eval.metric", hint=f"one of: {', '.join(known)}"
        )
    mode = config.eval.mode or schema.require_direction(config.recipe, metric, "eval.mode")
    return Experiment(config, dataset, task, programs, resolved.cadence, metric, mode, resolved.source)


def _metric_names(programs: Programs, dataset: Dataset, prefix: str) -> list[str]:
    """The numbers that an evaluation gives, those of each part of a split after those of the whole."""
    layout, columns = dataset.batches, dataset.splits["validation"]
    names = programs.metric_names(prefix, layout.extra_sums(columns))
    if isinstance(layout, Parted):
        for part in layout.names:
            own = programs.metric_names(prefix, layout.part_sums(columns, part))
            names += [f"{name}/{part}" for name in own]
    return names


def _check_freeze(config: Config, programs: Programs) -> None:
    names = list(shapes_by_path(programs.abstract_state.params))
    for pattern in config.optimizer.freeze:
        if not any(patterns.found_in(pattern, tuple(names))):
            raise ConfigError(
                f"no parameter's path has {pattern!r} in it", where="optimizer.freeze", hint=f"paths are {few(names)}"
            )
    if not any(jax.tree.leaves(programs.trained(programs.abstract_state.params))):
        raise ConfigError("nothing is left to train", where="optimizer.freeze", hint="freeze less")


def _check_biases(config: Config, programs: Programs) -> None:
    if config.optimizer.bias_factor != 1 and not any(jax.tree.leaves(masks.biases(programs.abstract_state.params))):
        what = f"model={config.model.kind} has no biases with these keys"
        raise ConfigError(what, where="optimizer.bias_factor", hint="leave it out")


_TOP = re.compile(r"(head|pooler|transform|transform_norm|decoder_bias|final_norm)(/|$)")


def _check_layer_decay(config: Config, programs: Programs) -> None:
    """Of a model that does not tell its layers, every parameter must be known to be in one or above them all."""
    optimizer = config.optimizer
    if (optimizer.layer_decay == 1 and not optimizer.unfreeze) or config.model.levels:
        return
    key, off = ("layer_decay", "1") if optimizer.layer_decay != 1 else ("unfreeze", "[]")
    found = masks.depths(programs.abstract_state.params)
    unplaced = [name for name, depth in found.items() if depth is None and not _TOP.match(name)]
    if unplaced or all(depth is None for depth in found.values()):
        raise ConfigError(
            f"model={config.model.kind} does not tell which layers are below which"
            + (f": {few(unplaced)} may be anywhere" if unplaced else ""),
            where=f"optimizer.{key}",
            hint=f"set optimizer.{key}={off}, or give the model's dataclass `levels`, as bigctl.config.schema.Cnn has",
        )


def _check_unfreeze(config: Config, programs: Programs, total_steps: int) -> None:
    """Every group of layers must have one, and a time within the training."""
    if not config.optimizer.unfreeze:
        return
    where, begins = "optimizer.unfreeze", thawing.times(config, total_steps)
    trained = programs.trained(programs.abstract_state.params)
    layers = max(masks.layers_of(trained, config.model.levels).values(), default=0)
    if layers < len(begins):
        there = f"{layers} layer{'s' * (layers != 1)} below its head"
        what = f"names {len(begins)} times, of model={config.model.kind} {there} can be trained"
        raise ConfigError(what, where=where, hint=f"give {layers} or fewer" if layers else "leave it out")
    if any(later <= earlier for earlier, later in itertools.pairwise(begins)):
        what = f"groups of layers begin at steps {', '.join(map(str, begins))}, each below the one before"
        raise ConfigError(what, where=where, hint="give rising numbers that are a step or more apart")
    if begins[-1] >= total_steps:
        what = f"the last group of layers begins at step {begins[-1]:,}, training has {total_steps:,}"
        hint = "numbers below 1 are fractions of the training; optimizer.freeze leaves layers as they are"
        raise ConfigError(what, where=where, hint=hint)


def rebuild(config: Config, features: Features) -> ModelPrograms:
    """What a trained run is used with, from what it says of its data; the data itself is not touched."""
    if getattr(config.model, "remat", "none") == "offload":  # nothing is trained, and the host's memory may be none
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, **{"remat": "names"}))
    return model_programs(config, make_task(config, features), meshes.make_mesh(config.mesh))


def rebuild_training(config: Config, features: Features) -> Programs:
    """The same with the programs that train, and the shapes of all their state."""
    return compile_programs(config, make_task(config, features), meshes.make_mesh(config.mesh), total_steps=1)


def on_one_device(config: Config) -> Config:
    """A trained model is used on one device, whatever mesh it was trained on."""
    sizes: dict[str, Any] = dict.fromkeys(config.mesh.axes, 1)
    return dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, **sizes))


def make_task(config: Config, features: Features, dataset: Dataset | None = None) -> Task:
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
    task = require_task(config.recipe.build(config, features, counts), config.recipe)
    if dataset is not None:
        task.look(dataset.splits["train"])
    task.own_metrics = tuple(metric() for metric in schema.Metric.chosen(config.eval.metrics))
    return task


def shapes_by_path(params: Tree) -> dict[str, tuple[int, ...]]:
    return {path_name(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}


def describe_mesh(mesh: Mesh) -> dict[str, Any]:
    """What the mesh is made of, as JSON."""
    devices = mesh.devices.flat
    found = {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": mesh.size}
    return {**found, "mesh": dict(mesh.shape), "processes": len({device.process_index for device in devices})}


def few(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
