"""How far probabilities can be believed: calibration, prediction sets with a promise, intervals of metrics.

All is computed from the probabilities of each example. What is fitted is fitted on the validation split, kept in the
run (`confidence.json`) for the weights of one step, and used by `predict` from then on.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from bigctl.errors import ConfigError, RunError
from bigctl.files import write_json
from bigctl.inference.threshold import key_of
from bigctl.recipes.classification import sigmoid
from bigctl.runs import untrusted
from bigctl.runs.directory import RunDirectory
from bigctl.training.task import Record

BINS = 15
KINDS = ("split", "adaptive", "class")
log = logging.getLogger("bigctl")
FEW = 100
"""Examples below which a fitted temperature is warned of."""
LEAST = 20
"""Examples that a calibration needs at least."""
_TINY = 1e-38
_SHAPE: untrusted.Shape = {"schema": int, "run": str, "step": untrusted.COUNT}


@dataclass(frozen=True)
class Confidence:
    """What a run keeps for its predictions.

    Attributes:
        run: what the run is known by, see `threshold.key_of`.
        step: of the weights.
        tta: test-time augmentation that the probabilities come from.
        temperature: that logits are divided by; None as they are.
        level: share of examples whose set is to hold their class; None without sets.
        kind: of sets, one of `KINDS`.
        cuts: largest score of a class in a set: one number, or one a class; see `scores`.
    """

    run: str
    step: int
    tta: str = "none"
    temperature: float | None = None
    level: float | None = None
    kind: str = KINDS[0]
    cuts: tuple[float, ...] = ()

    @classmethod
    def of(cls, run: RunDirectory, step: int, tta: str) -> Self:
        """What is kept for these weights, used in this way; nothing where there is none, or for others."""
        nothing = cls(key_of(run), step, tta)
        if not run.confidence.is_file():
            return nothing
        try:
            found = untrusted.read(run.confidence, _SHAPE)
            kept = cls(**{name: found[name] for name in cls.__dataclass_fields__})
            numbers = [each for each in (kept.temperature, kept.level, *kept.cuts) if each is not None]
            if kept.kind not in KINDS or not all(float(each) > 0 for each in numbers):
                raise ValueError(kept.kind)
        except OSError as error:
            raise RunError(f"cannot be read: {error.strerror}", where=str(run.confidence)) from error
        except (ValueError, KeyError, TypeError) as error:
            hint = f"fit it anew: bigctl eval {run.path} --calibration"
            raise ConfigError("is not what bigctl wrote", where=str(run.confidence), hint=hint) from error
        same = (kept.run, kept.step, kept.tta) == (nothing.run, step, tta)
        return replace(kept, cuts=tuple(kept.cuts)) if same else nothing

    def save(self, path: Path) -> None:
        """Raises RunError if it cannot be written."""
        try:
            write_json(path, {"schema": 1, **asdict(self)})
        except OSError as error:
            raise RunError(f"cannot be written: {error.strerror}", where=str(path)) from error

    def scaled(self, probabilities: np.ndarray) -> np.ndarray:
        """Probabilities [N, classes] at the temperature that is kept."""
        return probabilities if self.temperature is None else scaled(probabilities, self.temperature)

    def sets(self, probabilities: np.ndarray) -> np.ndarray | None:
        """Which classes are in the set of each example, bool [N, classes], by probabilities as `scaled` gives them."""
        return None if self.level is None else in_set(probabilities, self.kind, np.asarray(self.cuts))

    def applied(self, record: Record, probabilities: np.ndarray, classes: list[str]) -> Record:
        """A record of `Task.describe` with what is kept: what is predicted stays, how sure it is may not."""
        if self.temperature is None and self.level is None:
            return record
        rows = self.scaled(probabilities[None])
        named = dict(zip(classes, (round(float(p), 6) for p in rows[0]), strict=True))
        found = {**record, "probability": named[record["label"]], "probabilities": named}
        held = self.sets(rows)
        return found if held is None else {**found, "set": [classes[k] for k in np.flatnonzero(held[0])]}


def probabilities_of(examples: Mapping[str, np.ndarray], where: str) -> np.ndarray:
    """Of each example and class, float64 [N, classes], from what an evaluation keeps of each example.

    Raises:
        ConfigError: for a run that predicts no single class, or more classes than evaluations keep.
    """
    if "probabilities" in examples and "predicted" in examples:
        return np.asarray(examples["probabilities"], np.float64)
    if "score" in examples and "predicted" in examples and examples["score"].ndim == 1:
        second = sigmoid(np.asarray(examples["score"], np.float64))
        return np.stack([sigmoid(-np.asarray(examples["score"], np.float64)), second], axis=1)
    raise ConfigError(
        "this run does not say how likely each class is", where=where, hint="it is for one class an example, up to 128"
    )


# --------------------------------------------------------------------------------------------------------- calibration


def scaled(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Softmax of logits / temperature, from the softmax of the logits (the same up to a constant)."""
    logits = np.log(np.maximum(np.asarray(probabilities, np.float64), _TINY)) / temperature
    logits -= logits.max(1, keepdims=True)
    found = np.exp(logits)
    return np.asarray(found / found.sum(1, keepdims=True), probabilities.dtype)


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error of the predicted class, in bins of equal mass (Nguyen and O'Connor 2015).

    Args:
        probabilities: [N, classes].
        labels: [N].
        bins: at most so many, of equally many examples each.
    """
    said, right = probabilities.max(1), probabilities.argmax(1) == labels
    order = np.argsort(said, kind="stable")
    parts = np.array_split(order, min(bins, len(order)))
    gaps = [len(part) * abs(float(said[part].mean()) - float(right[part].mean())) for part in parts]
    return sum(gaps) / len(order)


def loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood of the true classes [nats]."""
    return float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], _TINY)).mean())


def best_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature with the least loss (Guo et al. 2017), between 0.05 and 20."""
    from scipy.optimize import minimize_scalar

    if len(labels) < FEW:
        log.warning("a temperature fitted on %d examples, fewer than %d, may be far off", len(labels), FEW)
    exact = np.asarray(probabilities, np.float64)
    found = minimize_scalar(
        lambda log: loss(scaled(exact, math.exp(log)), labels), bounds=(math.log(0.05), math.log(20)), method="bounded"
    )
    return float(math.exp(found.x))


def require_enough(count: int, where: str) -> None:
    """Raises ConfigError where a split is too small to fit anything on."""
    if count < LEAST:
        what = f"the validation split has {count} examples, of which nothing can be said"
        raise ConfigError(what, where=where, hint=f"have {LEAST} at least: data.validation=0.2 or more data")


# ---------------------------------------------------------------------------------------------------- sets of classes


def scores(probabilities: np.ndarray, kind: str) -> np.ndarray:
    """How little each class fits each example, [N, classes]; those with a score up to a cut are in its set.

    "split" and "class" take 1 - probability (Sadinle, Lei and Wasserman 2019), "adaptive" the mass of all classes that
    are no less likely (Romano, Sesia and Candès 2020, without their randomisation: it covers somewhat more).
    """
    exact = np.asarray(probabilities, np.float64)
    if kind != "adaptive":
        return np.asarray(1 - exact)
    order = np.argsort(-exact, axis=1, kind="stable")
    found = np.empty_like(exact)
    np.put_along_axis(found, order, np.cumsum(np.take_along_axis(exact, order, 1), axis=1), axis=1)
    return found


def conformal_cuts(probabilities: np.ndarray, labels: np.ndarray, level: float, kind: str) -> tuple[float, ...]:
    """The cuts at which sets hold the true class of a new example with probability `level` at least.

    The ceil((n + 1) level)-th smallest score of the true classes of n examples (Vovk, Gammerman and Shafer 2005), of
    all together, or for "class" of each class by itself; above all scores where n is too small for that.
    """
    true = scores(probabilities, kind)[np.arange(len(labels)), labels]

    def cut(part: np.ndarray) -> float:
        place = math.ceil((len(part) + 1) * level)
        return float(np.sort(part)[place - 1]) if place <= len(part) else 2.0

    if kind != "class":
        return (max(cut(true), 1e-12),)
    return tuple(max(cut(true[labels == k]), 1e-12) for k in range(probabilities.shape[1]))


def in_set(probabilities: np.ndarray, kind: str, cuts: np.ndarray) -> np.ndarray:
    """Which classes are in the set of each example, bool [N, classes]."""
    found = scores(probabilities, kind) <= np.asarray(cuts)
    if kind == "adaptive":  # whose likeliest class is always in it
        found[np.arange(len(found)), probabilities.argmax(1)] = True
    return found


def require_sets(level: float, kind: str) -> None:
    """Raises ConfigError for what is no share of examples, and for sets that there are not."""
    if kind not in KINDS:
        raise ConfigError(f"there are no sets {kind!r}", where="--sets", hint=f"one of: {', '.join(KINDS)}")
    if not 0 < level < 1:
        raise ConfigError(f"{level:g} is no share of examples", where="--conformal", hint="a number such as 0.9")


# ---------------------------------------------------------------------------------------------------------- intervals


def intervals(
    metrics: Callable[[np.ndarray], Mapping[str, float]], count: int, *, rounds: int, seed: int = 0, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals (Efron 1979): examples are drawn with replacement, metrics computed each time.

    Args:
        metrics: of the examples with these numbers [count].
        count: examples there are.
        rounds: how often they are drawn.
        seed: of the draws.
        level: that the interval is for.
    """
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, value in metrics(rng.integers(0, count, count)).items():
            drawn.setdefault(name, []).append(value)
    ends = ((1 - level) / 2, (1 + level) / 2)
    return {
        name: (float(low), float(high)) for name, values in drawn.items()
        if np.isfinite(values).all() for low, high in [np.quantile(values, ends)]
    }  # fmt: skip
