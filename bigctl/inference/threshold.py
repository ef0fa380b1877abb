"""The probability from which on the positive of two classes is predicted: chosen on validation, kept in the run.

It belongs to the weights of one step of one run, and is refused for any other.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bigctl.errors import ConfigError, RunError
from bigctl.files import write_json
from bigctl.recipes import curves
from bigctl.runs import untrusted
from bigctl.runs.directory import RunDirectory

OBJECTIVES = ("f1", "accuracy", "balanced_accuracy", "precision>=P", "recall>=R")
_SHAPE: untrusted.Shape = {
    "schema": int, "run": str, "step": untrusted.COUNT, "positive": str, "objective": str, "threshold": float,
    "value": float,
}  # fmt: skip


@dataclass(frozen=True)
class Threshold:
    """A threshold and where it is from.

    Attributes:
        run: what the run is known by, see `key_of`.
        step: of the weights.
        positive: the class that is predicted from it on.
        objective: what it was chosen by, one of `OBJECTIVES`.
        threshold: the least probability.
        value: what the objective was at it, on the validation split.
    """

    run: str
    step: int
    positive: str
    objective: str
    threshold: float
    value: float

    def save(self, path: Path) -> None:
        """Raises RunError if it cannot be written."""
        try:
            write_json(path, {"schema": 1, **asdict(self)})
        except OSError as error:
            raise RunError(f"cannot be written: {error.strerror}", where=str(path)) from error


def key_of(run: RunDirectory) -> str:
    """What a run is known by wherever it is moved or copied: when it was begun, and the data that it was trained on."""
    record = run.record()
    return f"{record.get('created')}-{record['data']['fingerprint']}"


def read(path: Path) -> Threshold:
    """A threshold that was saved. Raises ConfigError if the file is none."""
    try:
        found = untrusted.read(path, _SHAPE)
        return Threshold(**{name: found[name] for name in Threshold.__dataclass_fields__})
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except (ValueError, KeyError, TypeError) as error:
        hint = "bigctl eval RUN --threshold f1 writes one"
        raise ConfigError("is no threshold that bigctl wrote", where=str(path), hint=hint) from error


def require(found: Threshold, run: RunDirectory, step: int, positive: str | None, where: Path) -> None:
    """Raises ConfigError where a threshold is of another run, other weights, or another positive class."""
    again = f"choose it anew: {shlex.join(['bigctl', 'eval', str(run.path), '--threshold', found.objective])}"
    if found.run != key_of(run):
        raise ConfigError("is the threshold of another run", where=str(where), hint=again)
    if found.step != step:
        what = f"was chosen for the weights of step {found.step}, these are of step {step}"
        raise ConfigError(what, where=str(where), hint=again)
    if found.positive != positive:
        raise ConfigError(f"is about the class {found.positive!r}, not {positive!r}", where=str(where), hint=again)


# --------------------------------------------------------------------------------------------------------- the choice


def choose(objective: str, probability: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """The threshold at which an objective is best, and its value there.

    Where it lies, `curves.best_cut` says. "precision>=P" is the highest recall at such a precision, "recall>=R" the
    highest precision at such a recall.

    Args:
        objective: one of `OBJECTIVES`.
        probability: of the positive class, [N].
        truth: whether it is, [N].

    Raises:
        ConfigError: for another objective, or one that no threshold reaches.
    """
    score = _objective(objective)
    truth = np.asarray(truth, bool)
    if not 0 < truth.sum() < len(truth):
        what = "the validation split holds one class alone, and no threshold can be chosen"
        raise ConfigError(what, where="--threshold", hint="choose other splits, or give a number")
    cut, value = curves.best_cut(probability, truth, lambda hits, said: score(hits, said, truth.sum(), len(truth)))
    if not value > -np.inf:
        raise ConfigError(f"no threshold reaches {objective} on the validation split", where="--threshold")
    return cut, value


Score = Callable[[np.ndarray, np.ndarray, float, float], np.ndarray]
"""Positives that are predicted, all that are predicted, positives, examples -> what is to be large."""


def _objective(text: str) -> Score:
    plain: dict[str, Score] = {
        "f1": lambda hits, said, true, count: 2 * hits / (said + true),
        "accuracy": lambda hits, said, true, count: (2 * hits - said + count - true) / count,
        "balanced_accuracy": lambda hits, said, true, count: (hits / true + 1 - (said - hits) / (count - true)) / 2,
    }
    if text in plain:
        return plain[text]
    match = re.fullmatch(r"(precision|recall)>=(0?\.\d+|0|1|1\.0+)", text.replace(" ", ""))
    if match is None:
        hint = f"a number above 0 and below 1, none, a file, or one of {', '.join(OBJECTIVES)}"
        raise ConfigError(f"{text!r} is no threshold", where="--threshold", hint=hint)
    least = float(match[2])

    def bounded(hits: np.ndarray, said: np.ndarray, true: float, count: float) -> np.ndarray:
        precision, recall = hits / said, hits / true
        held, wanted = (precision, recall) if match[1] == "precision" else (recall, precision)
        return np.where(held >= least, wanted, -np.inf)

    return bounded


def parse(text: str) -> float | Path | str | None:
    """What is typed for a threshold: a number, a file, an objective; None for none. Raises ConfigError otherwise."""
    if text == "none":
        return None
    try:
        number = float(text)
    except ValueError:
        if text.endswith(".json"):
            return Path(text)
        _objective(text)
        return text
    return checked(number)


def checked(number: float) -> float:
    """The number, if it is a threshold. Raises ConfigError otherwise."""
    if not 0 < number < 1:
        said = f"{number:g} is no threshold"
        raise ConfigError(said, where="--threshold", hint="give a number above 0 and below 1")
    return float(number)


def describe(found: float | Threshold, temperature: float | None = None) -> str:
    """A threshold in a sentence; at a temperature that probabilities are scaled by also what it is of those."""
    if temperature is not None:
        value = found.threshold if isinstance(found, Threshold) else found
        scaled = 1 / (1 + (1 / value - 1) ** (1 / temperature))
        return f"{describe(found)}; {scaled:.4f} of the calibrated probability"
    if isinstance(found, Threshold):
        bound = found.objective.partition(">=")
        other = {"precision": "recall", "recall": "precision"}
        reached = f"with a {other[bound[0]]} of" if bound[1] else "which is"
        how = f"chosen on the validation split by {found.objective}, {reached} {found.value:.4f} there"
        return f"threshold {found.threshold:.4f} of {found.positive!r}, {how}"
    return f"threshold {found:g}"
