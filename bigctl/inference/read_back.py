"""Exports for torch and llama.cpp, which are scored as bigctl reads them: their weights, in the model of their run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bigctl.config.schema import Config
from bigctl.data.dataset import Dataset, Features
from bigctl.engine import experiment
from bigctl.errors import RunError
from bigctl.inference.from_export import FromExport
from bigctl.inference.scored import evaluated
from bigctl.interop import sources, transfer
from bigctl.parallel.partition import path_name
from bigctl.runs.exports import AGAIN, Export
from bigctl.training.evaluation import Scores
from bigctl.training.programs import ModelPrograms
from bigctl.training.state import Tree, Weights


class ReadBack(FromExport):
    """A folder that `bigctl export --format hf`, timm, or gguf, wrote."""

    runtime = f"jax {jax.__version__}, read by bigctl"

    def __init__(self, export: Export, settings: Mapping[str, Any]):
        super().__init__(export, settings)
        self._programs, self._weights = read(export.path, self.config, self.features)

    def _used(self, config: Config) -> Config:
        """In float32, without rounding by training, views of pictures, and what is done in training alone."""
        adversarial = dataclasses.replace(config.train.adversarial, eps=0.0)
        train = dataclasses.replace(config.train, precision="float32", quantize=None, adversarial=adversarial)
        return dataclasses.replace(config, train=train, eval=dataclasses.replace(config.eval, tta="none"))

    def _examined(self, dataset: Dataset, split: str, prefix: str) -> Scores:
        return evaluated(self._programs, self._weights, self._task, dataset, split, self.config, prefix)


def read(folder: Path, config: Config, features: Features) -> tuple[ModelPrograms, Weights]:
    """The model that a folder describes, and all of its weights. Takes what `by_path` takes, and raises as it does."""
    programs, values = by_path(folder, config, features)

    def filled(shapes: Tree) -> Tree:
        leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
        placed = [
            jax.device_put(np.asarray(values[path_name(path)], leaf.dtype), leaf.sharding) for path, leaf in leaves
        ]
        return jax.tree_util.tree_unflatten(structure, placed)

    weights = programs.weights
    return programs, dataclasses.replace(weights, params=filled(weights.params), variables=filled(weights.variables))


def by_path(folder: Path, config: Config, features: Features) -> tuple[ModelPrograms, dict[str, np.ndarray]]:
    """The model that a folder describes, as `model.init_from` reads it, and the arrays of its weights by path.

    Args:
        folder: of weights.
        config: of the run.
        features: of its data.

    Raises:
        ConfigError, DataError: if it cannot be read, or is of another model.
        RunError: if it lacks a tensor.
    """
    place = str(folder.absolute())  # not the name of a run, nor of packaged weights
    source = sources.locate_source(place)
    known: dict[str, Any] = {**source.architecture, "init_from": place}
    if (lora := getattr(config.model, "lora", None)) is not None:
        known["lora"] = type(lora)()  # it was merged
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **known))
    programs = experiment.rebuild(config, features)
    params, variables = (experiment.shapes_by_path(t) for t in (programs.weights.params, programs.weights.variables))
    taken = transfer.take_over(source, transfer.Start(config, features, params, variables))
    found = {**taken.params, **taken.variables}
    if missing := [name for name in (*params, *variables) if name not in found]:
        raise RunError(f"lacks {missing[0]}", where=str(folder), hint=AGAIN)
    return programs, found
