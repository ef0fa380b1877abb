"""Statistics of batch normalisation computed anew for other weights, by one pass over the training split (Izmailov et
al. 2018, arXiv 1803.05407): those that are kept are of the weights that they were gathered with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bigctl import randomness
from bigctl.errors import RunError
from bigctl.inference.trained import TrainedRun
from bigctl.models.batch_norm import BatchNorm
from bigctl.parallel import mesh as meshes
from bigctl.training.checkpoints.arrays import flatten
from bigctl.training.state import Tree
from bigctl.training.step import add_places, split_model

_KEPT = ("mean", "var")
_BATCH = 512


def kept(trained: TrainedRun) -> bool:
    """Whether a model keeps any."""
    return any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in flatten(trained.variables).values())


def others(trained: TrainedRun) -> dict[str, np.ndarray]:
    """What a model keeps besides statistics, such as a whitening: by path."""
    leaves = flatten(trained.variables).items()
    return {name: np.asarray(leaf) for name, leaf in leaves if name.rpartition("/")[2] not in _KEPT}


class Statistics:
    """Computes them for any weights of one run's architecture, on its training split as training shows it, without
    dropout; of batches of the size that it was trained with, the mean.

    Raises:
        RunError: for a recipe that has no outputs for each example.
    """

    def __init__(self, trained: TrainedRun):
        self._trained, self._dataset = trained, trained.data()
        if not hasattr(trained.task, "outputs"):
            what = f"recipe={trained.config.recipe.kind} does not say how its model is trained without its loss"
            raise RunError(what, where=str(trained.run.path), hint="average models without batch normalisation")
        self._gathered: Callable[..., Tree] = jax.jit(self._gather)

    def of(self, params: Tree) -> Tree:
        """The variables with statistics for these weights."""
        trained, columns, layout = self._trained, self._dataset.splits["train"], self._dataset.batches
        size = min(int(trained.config.train.batch_size), self._dataset.size("train"), _BATCH)
        total, rows = None, 0.0
        for number, (indices, mask, length) in enumerate(
            layout.evaluation_plan(columns, batch_size=size, shards=1).batches()
        ):
            batch = add_places(dict(layout.gather(columns, indices, length)), len(mask), jnp.asarray(mask))
            found = flatten(self._gathered(params, trained.variables, batch, number))
            count = float(mask.sum())
            part = {name: count * np.asarray(found[name], np.float64) for name in found if self._is_kept(name)}
            total = part if total is None else {name: total[name] + part[name] for name in part}
            rows += count
        means = {name: values / rows for name, values in (total or {}).items()}
        leaves, structure = jax.tree.flatten(trained.variables)
        names = list(flatten(trained.variables))
        new = [
            jax.device_put(means[name].astype(leaf.dtype), leaf.sharding) if name in means else leaf
            for name, leaf in zip(names, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, new)

    def _is_kept(self, name: str) -> bool:
        return name.rpartition("/")[2] in _KEPT

    def _gather(self, params: Tree, variables: Tree, batch: dict[str, Any], number: jax.Array) -> Tree:
        """Those of one batch alone."""
        programs, task = self._trained.programs, cast(Any, self._trained.task)
        hparams = {**programs.hparams, **dict.fromkeys(programs.step.hyperparameters.values(), 0.0)}
        model = programs.merge(params, variables, hparams)
        for _, module in nnx.iter_graph(model):
            if isinstance(module, BatchNorm | nnx.BatchNorm):
                module.momentum = 0.0
        key = randomness.key(self._trained.config.seed, randomness.AUGMENTATION, number)
        with meshes.used(programs.mesh):
            seen = task.augment(batch, key) if task.augments else batch
            task.outputs(model, seen, key=key, mask=batch["mask"])
        return nnx.to_pure_dict(split_model(model)[3])
