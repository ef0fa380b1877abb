"""Examples of any kind that a model knows -> explanations of what it answers."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from bigctl.data import catalog
from bigctl.data.dataset import Dataset
from bigctl.data.sources.frames import Examples
from bigctl.data.target import CLASS, CLASSES, NUMBER
from bigctl.errors import ConfigError, DataError
from bigctl.inference.explaining.asked import Explanation, require_class, require_explainable
from bigctl.inference.explaining.faithfulness import Dissects
from bigctl.inference.explaining.images import ImageExplainer
from bigctl.inference.explaining.language import LanguageExplainer
from bigctl.inference.explaining.tables import BACKGROUND, TableExplainer
from bigctl.inference.explaining.texts import TextExplainer
from bigctl.inference.trained import TrainedRun
from bigctl.training.task import Record


class Explainer(Dissects, Protocol):
    """Explains what one kind of model answers."""

    def methods(self) -> tuple[str, ...]:
        """Names of the methods that there are for the model, the usual one first."""

    def explain(self, inputs: Examples, method: str, wanted: str | None) -> Sequence[Explanation]:
        """One explanation an example, of the class that is wanted, else of the predicted one."""


@dataclass(frozen=True)
class Given:
    """Examples that are to be explained.

    Attributes:
        inputs: as `Predictor.describe_all` takes them.
        places: where each comes from, as records show it.
    """

    inputs: Examples
    places: list[Record] = field(default_factory=list)


def explainer_of(trained: TrainedRun, rows: int = BACKGROUND, seed: int = 0) -> Explainer:
    """What explains the answers of a model.

    Args:
        trained: the model.
        rows: of the training split, which stand for what is not known of a table's row.
        seed: by which these are drawn.

    Raises:
        RunError: for a model that gives no classes and no number, or one of tables whose data has changed.
    """
    if trained.features.kind == "stream":
        return LanguageExplainer(trained)
    require_explainable(trained)
    if trained.features.kind == "text":
        return TextExplainer(trained)
    if trained.features.kind == "image":
        return ImageExplainer(trained)
    return TableExplainer(trained, rows, seed)


def explain(
    trained: TrainedRun, explainer: Explainer, given: Given, *, method: str | None = None, wanted: str | None = None
) -> list[Explanation]:
    """Explanations of some examples.

    Args:
        trained: the model.
        explainer: from `explainer_of`.
        given: the examples.
        method: one of the explainer's; None for the usual one.
        wanted: a class; None for that which is predicted.

    Raises:
        ConfigError: for a method or a class that there is not.
        ValueError: for examples that the model does not take.
    """
    method = require_method(explainer, method)
    if wanted is not None and trained.features.kind != "stream":
        require_class(trained, wanted)
    found = list(explainer.explain(given.inputs, method, wanted))
    if not given.places:
        return found
    return [each.with_details(**place) for each, place in zip(found, given.places, strict=True)]


def require_method(explainer: Explainer, method: str | None) -> str:
    """The method that is meant. Raises ConfigError where the model has no such."""
    known = explainer.methods()
    if method is None or method in known:
        return method or known[0]
    close = difflib.get_close_matches(method, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"one of: {', '.join(known)}"
    raise ConfigError(f"there is no method {method!r} for this run", where="--method", hint=hint)


# -------------------------------------------------------------------------------------------------------- the examples


def of_files(trained: TrainedRun, files: Sequence[str]) -> Given:
    """The examples in some files. Raises DataError for the first that cannot be read."""
    parts, places = [], list[Record]()
    for name in files:
        if not Path(name).is_file():
            raise DataError("there is no such file", where=name, hint="give a file of the kind that `predict` takes")
        found = catalog.read_for_prediction(Path(name), trained.config.data, trained.features)
        if found.errors:
            raise found.errors[min(found.errors)]
        parts.append(found.inputs)
        places += [{"file": name, **({"row": row} if found.rows else {})} for row in range(len(found.inputs))]
    if all(isinstance(part, np.ndarray) for part in parts):
        return Given(np.concatenate(parts), places)
    return Given([text for part in parts for text in part], places)


def of_split(trained: TrainedRun, split: str, count: int) -> Given:
    """The first examples of a split of the run's own data, with their labels.

    Raises:
        ConfigError: if there is no such split.
        RunError: if the data has changed since.
    """
    dataset = trained.data()
    require_split(dataset, split)
    rows = min(count, dataset.size(split))
    places = [{"split": split, "row": row, **true} for row, true in enumerate(labels_of(dataset, split, rows))]
    return Given(examples(dataset, split, rows), places)


def require_split(dataset: Dataset, split: str) -> None:
    """Raises ConfigError if data has no such split."""
    if split not in dataset.splits or not dataset.size(split):
        there = ", ".join(name for name in dataset.splits if dataset.size(name))
        raise ConfigError(f"the data has no {split} split", where="--split", hint=f"there are: {there}")


def examples(dataset: Dataset, split: str, count: int) -> Examples:
    """The first examples of a split, as `Predictor.describe_all` takes them."""
    return examples_at(dataset, split, np.arange(count))


def examples_at(dataset: Dataset, split: str, rows: np.ndarray) -> Examples:
    """The examples of a split in some rows, int [n], as `Predictor.describe_all` takes them."""
    if dataset.texts.get(split):
        columns = [[texts[row] for row in rows.tolist()] for texts in dataset.texts[split]]
        return columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
    return np.asarray(dataset.splits[split]["inputs"][rows])


def labels_of(dataset: Dataset, split: str, count: int, first: int = 0) -> list[Record]:
    """What some examples of a split are truly, from its first one on, as records show it."""
    target, labels = dataset.features.target, dataset.splits[split].get("label")
    if labels is None:
        return [{}] * count
    values = np.asarray(labels[first : first + count])
    if target.kind == CLASS:
        return [{"true": target.names[value]} for value in values.tolist()]
    if target.kind == CLASSES:
        return [{"true": [name for name, has in zip(target.names, row, strict=True) if has]} for row in values.tolist()]
    return [{"true": value} for value in target.restored(values).tolist()] if target.kind == NUMBER else [{}] * count
