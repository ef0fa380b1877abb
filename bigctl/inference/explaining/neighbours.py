"""The training examples that are nearest to an example in what the model's last layer reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from bigctl.data.dataset import Dataset
from bigctl.data.sources.frames import Examples
from bigctl.errors import ConfigError
from bigctl.inference.explaining.asked import Explanation
from bigctl.inference.explaining.explain import labels_of
from bigctl.inference.explaining.tables import cells_of, columns_of
from bigctl.inference.trained import TrainedRun
from bigctl.training.task import Record

MOST = 2000
"""Training examples that are looked at."""


def require_nearest(trained: TrainedRun) -> None:
    """Raises ConfigError for a run that has no examples to be near to."""
    if trained.features.kind == "stream":
        what = "a language model is trained on one long text, of which nothing is near to a prompt"
        raise ConfigError(what, where="--nearest", hint="leave it out")


def with_nearest(
    trained: TrainedRun, inputs: Examples, explanations: Sequence[Explanation], count: int, seed: int = 0
) -> list[Explanation]:
    """Explanations with the nearest training examples of each, by the cosine of what the last layer reads.

    Args:
        trained: the model.
        inputs: the examples.
        explanations: of these.
        count: how many are named.
        seed: by which those that are looked at are drawn, where there are more than `MOST`.

    Raises:
        RunError: if the model has no layer called `head`, or its data has changed.
    """
    own = _unit(trained.embed(inputs))
    dataset = trained.data()
    size = dataset.size("train")
    rows = np.arange(size)
    if size > MOST:
        rows = np.sort(np.random.default_rng(seed).choice(size, MOST, replace=False))
    near = own @ _unit(trained.embed(_examples(dataset, rows))).T
    order = np.argsort(-near, axis=1, kind="stable")[:, :count]
    among = f"{len(rows):,} of {size:,} training examples" + (f", drawn with seed {seed}" if size > MOST else "")
    found = []
    for number, each in enumerate(explanations):
        told = [{**_shown(trained, dataset, int(rows[p])), "cosine": float(near[number, p])} for p in order[number]]
        found.append(each.with_details(nearest=told, nearest_among=among))
    return found


def _unit(vectors: np.ndarray) -> Float[np.ndarray, "examples width"]:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


def _examples(dataset: Dataset, rows: np.ndarray) -> Examples:
    if dataset.texts.get("train"):
        columns = [[texts[row] for row in rows.tolist()] for texts in dataset.texts["train"]]
        return columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
    return np.asarray(dataset.splits["train"]["inputs"][rows])


def _shown(trained: TrainedRun, dataset: Dataset, row: int) -> Record:
    """A training example as it is told: its row, its label, and its text or cells."""
    found: Record = {"row": row, **labels_of(dataset, "train", 1, first=row)[0]}
    if dataset.texts.get("train"):
        return {**found, "text": " | ".join(texts[row] for texts in dataset.texts["train"])}
    if trained.features.kind == "table":
        cells = cells_of(trained.features, np.asarray(dataset.splits["train"]["inputs"][row]))
        return {**found, "cells": dict(zip(columns_of(trained.features)[0], cells, strict=True))}
    return found
