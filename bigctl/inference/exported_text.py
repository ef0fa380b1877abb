"""A language model that `bigctl export --format jax` wrote, writing as its run does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from bigctl.config import compose as composing
from bigctl.data.dataset import Features
from bigctl.engine import experiment
from bigctl.errors import RunError
from bigctl.generation.generate import LanguageModel
from bigctl.generation.slot_programs import Network
from bigctl.inference.run_text import language_model
from bigctl.parallel.partition import path_name
from bigctl.runs.directory import RunDirectory

WEIGHTS = "weights.npz"


def read(folder: Path, kept: Mapping[str, Any], *, hint: str) -> LanguageModel:
    """The network that the configuration describes, in float32, with the exported weights.

    Args:
        folder: of the export, its files as they were written.
        kept: what `bigctl.json` says.
        hint: what to do where the weights are not the network's.

    Raises:
        RunError: if they are not, or the tokenizer is not the one that it was.
        KeyError, TypeError, ValueError, AttributeError: for what is not as bigctl writes it.
    """
    config = experiment.on_one_device(composing.from_yaml(kept["config"], where=str(folder)))
    train = dataclasses.replace(config.train, precision="float32", quantize=None)  # as its model.jax computes
    config = dataclasses.replace(config, train=train)
    features = Features.from_json(kept["features"])
    programs = experiment.rebuild(config, features)
    shapes = (programs.weights.params, programs.weights.variables)
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    wanted = {path_name(path).partition("/")[2]: leaf for path, leaf in leaves}
    with np.load(folder / WEIGHTS) as stored:
        for name, leaf in wanted.items():
            if name not in stored or stored[name].shape != leaf.shape:
                raise RunError(f"does not hold {name} {list(leaf.shape)}", where=str(folder / WEIGHTS), hint=hint)
        values = [jax.device_put(stored[name].astype(leaf.dtype), leaf.sharding) for name, leaf in wanted.items()]
    params, variables = jax.tree_util.tree_unflatten(structure, values)
    network = cast(Network, programs.merge(params, variables))
    return language_model(RunDirectory(folder, writes=False), features, network, kept["step"])
