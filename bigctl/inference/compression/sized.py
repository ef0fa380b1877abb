"""The network of a run at some size, as functions of its weights by path."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigctl.config.schema import Config, Model
from bigctl.data.dataset import Features
from bigctl.engine import experiment
from bigctl.inference.trained import TrainedRun
from bigctl.parallel import mesh as meshes
from bigctl.parallel.partition import path_name
from bigctl.training.programs import ModelPrograms
from bigctl.training.state import Weights
from bigctl.training.step import add_places
from bigctl.training.task import evaluation_sums

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Sized:
    """A network of some size, without weights."""

    config: Config
    features: Features

    @classmethod
    def of(cls, trained: TrainedRun) -> Sized:
        """That of a run, in float32."""
        config = trained.config
        plain = dataclasses.replace(config, train=dataclasses.replace(config.train, precision="float32"))
        return cls(plain, trained.features)

    def with_model(self, model: Model) -> Sized:
        return Sized(dataclasses.replace(self.config, model=model), self.features)

    @cached_property
    def programs(self) -> ModelPrograms:
        return experiment.rebuild(self.config, self.features)

    @cached_property
    def _layout(self) -> tuple[list[str], Any, list[Any]]:
        weights = self.programs.weights
        leaves, structure = jax.tree_util.tree_flatten_with_path((weights.params, weights.variables))
        names = [path_name(path).partition("/")[2] for path, _ in leaves]
        return names, structure, [leaf for _, leaf in leaves]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all weights, by path."""
        names, _, leaves = self._layout
        return {name: tuple(leaf.shape) for name, leaf in zip(names, leaves, strict=True)}

    def arrays(self, weights: Weights) -> Arrays:
        """By path, parameters and what the model updates by itself alike."""
        leaves = jax.tree.leaves((weights.params, weights.variables))
        return {name: np.asarray(leaf) for name, leaf in zip(self._layout[0], leaves, strict=True)}

    def weights(self, values: Mapping[str, np.ndarray]) -> Weights:
        """The inverse, on the devices."""
        names, structure, leaves = self._layout
        placed = [
            jax.device_put(np.asarray(values[name], leaf.dtype), leaf.sharding)
            for name, leaf in zip(names, leaves, strict=True)
        ]
        return Weights(*jax.tree.unflatten(structure, placed))

    def loss(self, values: Mapping[str, Any], batch: Mapping[str, Any]) -> jax.Array:
        """Sum of the loss over a batch and its weight, float32 [2]."""
        names, structure, _ = self._layout
        params, variables = jax.tree.unflatten(structure, [values[name] for name in names])
        whole = add_places(dict(batch), len(next(iter(batch.values()))))
        with meshes.used(self.programs.mesh):
            return jnp.asarray(
                evaluation_sums(self.programs.task, self.programs.merge(params, variables), whole)["loss"]
            )

    @cached_property
    def _compiled(self) -> Callable[..., jax.Array]:
        return jax.jit(self.loss)

    def mean_loss(self, values: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> float:
        total = np.sum([np.asarray(self._compiled(dict(values), dict(batch)), np.float64) for batch in rows], axis=0)
        return float(total[0] / total[1])
