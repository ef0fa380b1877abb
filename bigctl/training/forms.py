"""The step of an experiment, and the shapes of its state: what is known before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from bigctl import randomness
from bigctl.config import schema
from bigctl.models import depth, rounded
from bigctl.parallel import partition
from bigctl.training import stacking
from bigctl.training.state import TrainState, Tree, Weights
from bigctl.training.step import Hparams, Step, split_model
from bigctl.training.task import Task


def make_step(config: schema.Config, task: Task, mesh: Mesh, total_steps: int) -> Step:
    """The step of an experiment; nothing is computed but shapes."""
    rounding: Callable[[nnx.Module], nnx.Module] = rounded.rounding if config.train.quantize else lambda model: model
    graphdef, hyperparameters, weights = _parts(task, rounding)
    step = Step(config, task, mesh, total_steps, graphdef, hyperparameters, placed_by_rules(weights, config, mesh))
    count = stacking.layers_of(weights.params, step.trained) if stacking.is_asked(config) else 0
    if count < 2:
        return step
    with depth.made_as_one():
        graphdef, hyperparameters, weights = _parts(task, depth.as_one)
    patterns = (*config.model.stacked, stacking.PATTERN)
    deep = stacking.Form(graphdef, hyperparameters, placed_by_rules(weights, config, mesh, patterns), count)
    return replace(step, deep=deep)


def _parts(task: Task, changed: Callable[[nnx.Module], nnx.Module]) -> tuple[Any, Mapping[tuple[Any, ...], str], Any]:
    """The structure of a model, where the hparams stand in it, and the shapes of its weights."""
    graphdef, params, hyper, variables = jax.eval_shape(
        lambda k: split_model(changed(task.build(nnx.Rngs(params=k)))), _a_key()
    )
    hyperparameters = {path: v.get_metadata()["key"] for path, v in nnx.to_flat_state(hyper)}
    return graphdef, hyperparameters, Weights(nnx.to_pure_dict(params), nnx.to_pure_dict(variables))


def _a_key() -> Any:
    """The form of a key, of which none is computed."""
    return jax.eval_shape(lambda: randomness.key(0, randomness.PARAMETERS))


def carried_state(step: Step, hparams: Hparams) -> TrainState:
    """Shapes, dtypes and placements of the state as training keeps it, as ShapeDtypeStructs; nothing is allocated."""
    shapes = jax.eval_shape(step.initial, _a_key(), hparams, {}, {})
    return placed_by_rules(shapes, step.config, step.mesh, step.stacked)


def placed_by_rules(shapes: Tree, config: schema.Config, mesh: Mesh, stacked: tuple[str, ...] | None = None) -> Any:
    """Shapes and dtypes with the placements that the rules give them."""
    patterns = config.model.stacked if stacked is None else stacked
    where = partition.shardings(mesh, shapes, config.mesh.min_shard, patterns)
    return jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, where)
