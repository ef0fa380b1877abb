"""What can be said of any examples of a split: metrics of some of them, and which the model has wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from bigctl.data.target import CLASS, NUMBER
from bigctl.errors import ConfigError
from bigctl.inference import assess
from bigctl.inference.scored import Scored


@dataclass(frozen=True)
class Measured:
    """The examples of a split as a model does on them.

    Attributes:
        count: how many there are.
        metrics: of the examples with some numbers, int [n], by name without prefix, as `eval` computes them of all.
        wrong: whether each is taken for another class, bool [N]; None where a number is predicted.
        error: the absolute error of each in the target's unit, float64 [N]; None where a class is predicted.
    """

    count: int
    metrics: Callable[[np.ndarray], Mapping[str, float]]
    wrong: np.ndarray | None = None
    error: np.ndarray | None = None

    @property
    def headline(self) -> str:
        """The metric that examples are judged by."""
        return "accuracy" if self.error is None else "mae"


def measure(trained: Scored, split: str, where: str) -> Measured:
    """The examples of a split, each predicted once.

    Args:
        trained: of one class or one number an example.
        split: of its data.
        where: what messages call the question.

    Raises:
        ConfigError: for a run that predicts something else.
        RunError: if the data has changed.
    """
    kind = trained.features.target.kind
    if kind == CLASS:
        told, truth = trained.probabilities(split)
        wrong = assess.predicted_of(trained, told) != truth
        return Measured(len(truth), assess.metrics_of(trained, told, truth), wrong=wrong)
    if kind != NUMBER:
        hint = "it is for one class or one number an example"
        raise ConfigError(f"recipe={trained.config.recipe.kind} predicts neither", where=where, hint=hint)
    columns = trained.data().splits[split]
    target = trained.features.target
    values = np.asarray(trained.predict(np.asarray(columns["inputs"])), np.float64)[:, 0]
    error = values - np.asarray(target.restored(np.asarray(columns["label"])), np.float64)

    def metrics(rows: np.ndarray) -> dict[str, float]:
        squared = float(np.square(error[rows]).mean())
        return {"mse": squared, "rmse": squared**0.5, "mae": float(np.abs(error[rows]).mean())}

    return Measured(len(error), metrics, error=np.abs(error))


def require_classes(trained: Scored, where: str) -> None:
    """Raises ConfigError for a run that predicts no single class."""
    if trained.features.target.kind != CLASS:
        what = "predicts a number" if trained.features.target.kind == NUMBER else "predicts no single class"
        raise ConfigError(f"this run {what}", where=where, hint="it is for one class an example")
