"""How well each client of a federated training is served, at the end: on examples like its own that are held out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bigctl.config.schema import Config
from bigctl.data.dataset import Dataset
from bigctl.data.layouts import rounds
from bigctl.data.target import CLASS
from bigctl.engine import federated
from bigctl.training.task import Task

BINS = 20
"""Of the distribution of accuracies, from 0 to 1."""
WORST = 10
"""Clients that are told one by one."""
_MOST_CLASSES = 5


def of_clients(
    config: Config, dataset: Dataset, task: Task, examples: Mapping[str, np.ndarray]
) -> dict[str, Any] | None:
    """The accuracy of each client's part of the test split, which is shared out as the training split is; None where
    nothing is federated, the test split was not scored, or examples have no class each.

    Args:
        config, dataset: as resolved.
        task: decided for the weights.
        examples: values of each test example that the evaluation gave.

    Returns:
        JSON-serialisable, see `runs.summary.Federated`.
    """
    keys, target = config.train.federated, dataset.features.target
    if not keys.on or target.kind != CLASS or "predicted" not in examples:
        return None
    labels, count = np.asarray(dataset.splits["test"]["label"]), rounds.draw_of(config.train).clients
    right = np.ones(len(labels))
    right[[int(each["row"]) for each in task.errors(examples, labels, len(labels))]] = 0
    owners = federated.owners_of(config, dataset, "test", federated.law_of(config, dataset))
    known = owners >= 0
    scored = np.bincount(owners[known], minlength=count)
    accuracy = np.bincount(owners[known], right[known], minlength=count) / np.maximum(scored, 1)
    there = np.flatnonzero(scored)
    if not len(there):
        return None
    own, train = accuracy[there], dataset.splits["train"]
    classes = federated.classes_of(train[rounds.OWNER], train["label"], count, len(target.names))
    order = there[np.lexsort((-scored[there], own))]
    low, tenth, middle, high = (float(x) for x in np.quantile(own, (0, 0.1, 0.5, 1)))
    mean = float(right[known].sum() / scored.sum())
    return {
        "clients": count, "scored": len(there), "split": "column" if keys.column else keys.split,
        "accuracy": {"mean": float(own.mean()), "worst": low, "tenth": tenth, "median": middle, "best": high},
        "spread": float(own.std()),
        "spread_by_chance": float(np.sqrt(np.mean(mean * (1 - mean) / scored[there]))),
        "histogram": np.histogram(own, BINS, (0.0, 1.0))[0].tolist(),
        "worst": [_told(client, classes[client], scored, accuracy, target.names) for client in order[:WORST].tolist()],
    }  # fmt: skip


def _told(
    client: int, classes: np.ndarray, scored: np.ndarray, accuracy: np.ndarray, names: tuple[str, ...]
) -> dict[str, Any]:
    """One client, with the classes that it has most of."""
    most = [c for c in np.argsort(-classes, kind="stable").tolist() if classes[c]]
    told = [f"{names[c]} {classes[c]}" for c in most[:_MOST_CLASSES]]
    rest = len(most) - len(told)
    return {
        "client": client, "examples": int(classes.sum()), "scored": int(scored[client]),
        "accuracy": float(accuracy[client]), "classes": ", ".join(told) + (f" and {rest} more" if rest else ""),
    }  # fmt: skip
