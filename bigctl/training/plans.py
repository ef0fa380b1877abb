"""Which batches training draws, and of what shape: the layout of the data with what an experiment makes of it."""

from __future__ import annotations

import jax

from bigctl.config import schema
from bigctl.data.layouts import growing, packed_texts, poisson, rounds
from bigctl.data.layouts.layout import Columns, Layout, Stages, TrainingPlan
from bigctl.data.layouts.packed_texts import PackedTexts
from bigctl.parallel import mesh as meshes
from bigctl.training.programs import Programs
from bigctl.training.task import Task


def planned(programs: Programs, layout: Layout, columns: Columns, config: schema.Config) -> tuple[Layout, TrainingPlan]:
    """The layout with what training makes of it, and the batches."""
    layout = growing.grown(layout, stages_of(config, programs.step.total_steps))
    if config.train.federated.on:
        layout = rounds.by_rounds(layout, config.train)
    elif config.train.privacy.on:
        layout = poisson.sampled(layout, config.train.privacy.microbatch)
    elif packs_texts(programs.task, config):
        cut = packed_texts.Cut(config.train.accumulate, meshes.batch_shards(programs.mesh))
        train = config.train
        layout = packed_texts.packed(layout, columns, train.batch_size, config.seed, train.overfit_one_batch, cut)
    return layout, training_plan(layout, columns, config)


def batch_shapes(
    programs: Programs, layout: Layout, columns: Columns, config: schema.Config
) -> dict[str, jax.ShapeDtypeStruct]:
    """Columns of a batch of training, the longest where they are of several lengths; and how they are placed."""
    found, task = planned(programs, layout, columns, config)[0], programs.task
    shapes = task.example_shapes(programs.step.rows)
    if isinstance(found, PackedTexts):
        rows, length, count = found.sizes
        shapes = task.example_shapes(count)
        shapes["inputs"] = jax.ShapeDtypeStruct((rows, length), shapes["inputs"].dtype)
        shapes["mask"] = jax.ShapeDtypeStruct((count,), jax.numpy.float32)
    where = meshes.batch_sharding(programs.mesh)
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where) for name, x in shapes.items()}


def evaluated(task: Task, layout: Layout, columns: Columns, config: schema.Config) -> Layout:
    """The layout of a split as an evaluation sees it."""
    if not packs_texts(task, config) or task.own_metrics:  # which are given texts in rows of their own
        return layout
    return packed_texts.evaluated(layout, columns, config.eval.batch_size)


def packs_texts(task: Task, config: schema.Config) -> bool:
    """Whether several texts may share a row."""
    wanted = getattr(getattr(config.recipe, "bucketing", None), "pack", False)
    return bool(wanted and config.model.packs and vars(type(task)).get("packs"))


def stages_of(config: schema.Config, total_steps: int) -> Stages:
    """What sides training sees its pictures at before it sees them whole."""
    augment = getattr(config.recipe, "augment", None)
    if augment is None:
        return ()
    stages: Stages = augment.stages(config.schedule.horizon or total_steps, config.train.batch_size)
    return stages


def training_plan(layout: Layout, columns: Columns, config: schema.Config) -> TrainingPlan:
    """The batches of an experiment."""
    train = config.train
    return layout.training_plan(columns, batch_size=train.batch_size, seed=config.seed, frozen=train.overfit_one_batch)
