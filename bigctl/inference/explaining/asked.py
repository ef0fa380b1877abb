"""Which of a model's outputs is explained, and what an explanation says of itself."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bigctl.data.target import CLASS, CLASSES, NUMBER
from bigctl.errors import ConfigError, RunError
from bigctl.inference.explaining.gradients import ENOUGH, Integrated
from bigctl.inference.predictor import Predictor
from bigctl.training.task import Record


@dataclass(frozen=True)
class Output:
    """One of a model's outputs.

    Attributes:
        number: which class; 0 of a model that predicts a number.
        name: of the class; None where a number is predicted.
        unit: "logit", or "standard deviations" of a number's values in the training split.
    """

    number: int
    name: str | None
    unit: str


@dataclass(frozen=True)
class Attribution:
    """How much each part of an example adds to an output.

    Attributes:
        method: by its name on the command line.
        output: what is explained; None where a method sees no classes.
        values: one number a part.
        score: the output of the example.
        baseline: what stands for an absent part, in words; None where a method has none.
        baseline_score: the output where all parts are absent.
        completeness: |sum of the values - (score - baseline score)|; None where a method promises no such sum.
        points: gradients that were integrated.
        notes: what is to be known besides.
    """

    method: str
    output: Output | None
    values: Float[np.ndarray, "*parts"]
    score: float
    baseline: str | None = None
    baseline_score: float | None = None
    completeness: float | None = None
    points: int | None = None
    notes: tuple[str, ...] = ()

    def integrated(self, values: np.ndarray, found: Integrated) -> Self:
        """With the values of integrated gradients, and what is to be said of them."""
        told = replace(self, values=values, completeness=found.error, points=found.points)
        what = f"{found.points} points do not bring the error of completeness to {ENOUGH:g}"
        return told if found.complete else told.with_note(what)

    def with_note(self, note: str) -> Self:
        return replace(self, notes=(*self.notes, note))

    def to_json(self) -> Record:
        about = {"class": self.output.name, "unit": self.output.unit} if self.output is not None else {"class": None}
        told = ("score", "baseline", "baseline_score", "completeness", "points")
        return {"method": self.method, **about, **{n: getattr(self, n) for n in told}, "notes": [*self.notes]}


@dataclass(frozen=True)
class Explanation:
    """An attribution beside the example that it is of.

    Attributes:
        attribution: see there.
        prediction: what the model says of the example, as `predict` tells it.
        details: what is told beside it, by name: where it comes from, faithfulness, near training examples.
    """

    attribution: Attribution
    prediction: Record
    details: Record = field(default_factory=dict)

    def to_json(self) -> Record:
        """Everything that `--json` tells."""
        raise NotImplementedError

    def with_details(self, **more: object) -> Self:
        return replace(self, details={**self.details, **more})


def score_of(outputs: Float[Array, "batch outputs"], number: Array | int, classes: int) -> Float[Array, " batch"]:
    """One output of each example, float32; of two classes that share one, which is the log-odds of the second, the
    first one's is its opposite."""
    outputs = outputs.astype(jnp.float32).reshape(len(outputs), -1)
    if outputs.shape[-1] == 1 and classes > 1:
        outputs = jnp.concatenate([-outputs, outputs], -1)
    return jnp.take(outputs, number, axis=1)


def outputs_of(trained: Predictor, wanted: str | None, predictions: Sequence[Record]) -> list[Output]:
    """What is explained of each of some examples: the class that is asked for, else the one that is predicted, of
    several the likeliest.

    Raises:
        ConfigError: for a class that there is not, or where a number is predicted.
    """
    names = list(trained.classes)
    if wanted is not None:
        chosen = [require_class(trained, wanted)] * len(predictions)
    elif trained.features.target.kind == NUMBER:
        return [Output(0, None, "standard deviations")] * len(predictions)
    else:
        chosen = [_likeliest(record, names) for record in predictions]
    return [Output(number, names[number], "logit") for number in chosen]


def require_class(trained: Predictor, wanted: str) -> int:
    """The number of a class. Raises ConfigError where there is no such, or none at all."""
    names = list(trained.classes)
    if not names:
        what = "the run predicts a number, it has no classes"
        raise ConfigError(what, where="--class", hint="leave it out: the number is what is explained")
    if wanted in names:
        return names.index(wanted)
    close = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    lower = [name for name in names if name.lower() == wanted.lower()]
    some = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    hint = f"did you mean {' or '.join(lower or close)}?" if lower or close else f"one of: {some}"
    raise ConfigError(f"there is no class {wanted!r}", where="--class", hint=hint)


def _likeliest(record: Record, names: list[str]) -> int:
    if isinstance(record.get("label"), str):
        return names.index(record["label"])
    probabilities = record["probabilities"]
    return max(range(len(names)), key=lambda number: probabilities[names[number]])


def require_explainable(trained: Predictor) -> None:
    """Raises RunError for a run whose answer is none of one class, several classes or a number."""
    kind = trained.features.target.kind
    if trained.config.recipe.purpose == "predict" and kind in (CLASS, CLASSES, NUMBER):
        return
    what = f"a run of recipe={trained.config.recipe.kind} gives no classes for a whole example, which are explained"
    raise RunError(what, where=str(trained.run.path), hint="explain runs of a classifier, a regression or gpt_lm")
