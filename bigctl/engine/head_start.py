"""The head of a pretrained model before it is fine-tuned: solved for on features, rather than drawn.

A head drawn at random sends gradients through the pretrained layers that spoil what these know, before it is of use
itself; one that fits them already does not (Kumar et al. 2022, arXiv 2202.10054).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from bigctl.config import schema
from bigctl.engine import features
from bigctl.engine.experiment import Experiment, make_task
from bigctl.engine.restore import Start
from bigctl.parallel import mesh as meshes
from bigctl.training.checkpoints.arrays import flatten
from bigctl.training.programs import compile_programs
from bigctl.training.state import Tree

_HEAD, _METRIC = "head/", "val/loss"


def begun(experiment: Experiment, start: Start) -> Start:
    """The start with a head by `recipe.head`; as it is where nothing begins, or the weights brought a head along.

    Of the solutions for the costs of `recipe=probe` it is the one with the lowest loss on the validation split.
    """
    if not start.new_head or getattr(experiment.config.recipe, "head", schema.NEW) != schema.PROBE:
        return start
    probe, solving = features.computed(_probe(experiment), start)
    stored = experiment.programs.stored(start.state)
    params, variables = (_on_host(tree) for tree in (stored.params, stored.variables))
    state = probe.programs.initialise(params, variables)
    feed, scored, size = probe.feed(), probe.evaluator("validation", "val"), probe.config.train.batch_size
    costs: list[float] = getattr(probe.config.recipe, "costs", [])
    best: Mapping[str, Any] = {_METRIC: np.inf}
    cost, head = costs[0], dict[str, np.ndarray]()
    for step, tried in enumerate(costs):
        state, _ = feed.advance(state, step * size, 1)
        found = scored(state.params, state.variables)
        if found[_METRIC] < best[_METRIC] or not head:
            best, cost = found, tried
            head = {name: value for name, value in _on_host(state.params).items() if name.startswith(_HEAD)}
    feed.close()
    said = f"recipe.head: logistic regression on features, cost {cost:g}: {_METRIC} {best[_METRIC]:.4f}"
    metric = experiment.metric
    said += f", {metric} {best[metric]:.4f}" if metric in best and metric != _METRIC else ""
    begun = experiment.programs.initialise({**params, **head}, variables)
    return dataclasses.replace(start, state=begun, notes=(*solving.notes, said))


def _probe(experiment: Experiment) -> Experiment:
    """The experiment as `recipe=probe` has it: on the same data, with the same model."""
    config, dataset, mesh = experiment.config, experiment.dataset, experiment.programs.mesh
    shared = {f.name: getattr(config.recipe, f.name) for f in dataclasses.fields(schema.ImageCls)}
    ours = {"kind", "head", "augment", "label_smoothing", "loss"}
    recipe = schema.Probe(**{name: value for name, value in shared.items() if name not in ours})
    shards = meshes.batch_shards(mesh)
    whole = dataset.size("train") // shards * shards
    train = dataclasses.replace(config.train, batch_size=whole, precision="float32", accumulate=1, ema=0.0)
    config = dataclasses.replace(config, recipe=recipe, train=train, distil=schema.Distil())
    task = make_task(config, dataset.features, dataset)
    programs = compile_programs(config, task, mesh, len(recipe.costs))
    seen = {name: columns for name, columns in dataset.splits.items() if name != "test"}
    dataset = dataclasses.replace(dataset, splits=seen)
    return dataclasses.replace(experiment, config=config, dataset=dataset, task=task, programs=programs, shared=None)


def _on_host(tree: Tree) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in flatten(tree).items()}
