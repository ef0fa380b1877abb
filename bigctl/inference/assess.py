"""How far probabilities and scores of a run can be believed: `bigctl eval --calibration --conformal --bootstrap`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bigctl.inference import confidence
from bigctl.inference.confidence import Confidence
from bigctl.inference.scored import Scored
from bigctl.recipes.classification import classification_metrics, predicted_at
from bigctl.training.metrics import EACH


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error and loss, at temperature 1 and at the fitted one.

    Attributes:
        temperature: fitted on the validation split.
        split: that is scored.
        error, scaled_error: calibration error before and after, see `confidence.calibration_error`.
        loss, scaled_loss: mean negative log-likelihood [nats].
    """

    temperature: float
    split: str
    error: float
    scaled_error: float
    loss: float
    scaled_loss: float


@dataclass(frozen=True)
class Coverage:
    """What sets of classes hold on a split.

    Attributes:
        level: share of examples whose set was to hold their class.
        kind: one of `confidence.KINDS`.
        split: that is scored.
        coverage: share of its examples whose set holds their class.
        size: mean number of classes in a set.
        sizes: share of the sets with 0, 1, 2, ... classes.
        by_class: coverage of the examples of each class; None for one without.
    """

    level: float
    kind: str
    split: str
    coverage: float
    size: float
    sizes: list[float]
    by_class: dict[str, float | None]


def calibrate(trained: Scored, split: str) -> tuple[Scored, Calibration]:
    """Fit a temperature on the validation split, keep it in the run, and say what it does to a split.

    Raises:
        ConfigError: for a run without probabilities of classes, or one with too few examples.
        RunError: if the data has changed, or the run cannot be written.
    """
    fitted, labels = trained.probabilities("validation")
    confidence.require_enough(len(labels), "--calibration")
    kept = replace(_kept(trained), temperature=confidence.best_temperature(fitted, labels))
    if kept.level is not None:  # its sets were cut for other probabilities
        cuts = confidence.conformal_cuts(kept.scaled(fitted), labels, kept.level, kept.kind)
        kept = replace(kept, cuts=cuts)
    kept.save(trained.run.confidence)
    told, truth = (fitted, labels) if split == "validation" else trained.probabilities(split)
    scaled = kept.scaled(told)
    found = Calibration(
        float(kept.temperature or 1), split, confidence.calibration_error(told, truth),
        confidence.calibration_error(scaled, truth), confidence.loss(told, truth), confidence.loss(scaled, truth),
    )  # fmt: skip
    return trained.with_confidence(kept), found


def cover(trained: Scored, level: float, kind: str, split: str) -> tuple[Scored, Coverage]:
    """Cut sets of classes on the validation split, keep the cuts in the run, and say what they hold of a split.

    Args:
        trained: the model; probabilities are scaled as it keeps them.
        level: share of examples whose set is to hold their class.
        kind: one of `confidence.KINDS`.
        split: to score; on the validation split itself coverage is no evidence.

    Raises:
        ConfigError: for a level or kind that there is not, and as `calibrate` does.
        RunError: as `calibrate` does.
    """
    confidence.require_sets(level, kind)
    fitted, labels = trained.probabilities("validation")
    confidence.require_enough(len(labels), "--conformal")
    before = _kept(trained)
    cuts = confidence.conformal_cuts(before.scaled(fitted), labels, level, kind)
    kept = replace(before, level=level, kind=kind, cuts=cuts)
    kept.save(trained.run.confidence)
    told, truth = (fitted, labels) if split == "validation" else trained.probabilities(split)
    held = kept.sets(kept.scaled(told))
    assert held is not None
    right, sizes = held[np.arange(len(truth)), truth], held.sum(1)
    each = {
        name: float(right[truth == k].mean()) if np.any(truth == k) else None for k, name in enumerate(trained.classes)
    }
    shares = [float(np.mean(sizes == n)) for n in range(int(sizes.max(initial=0)) + 1)]
    found = Coverage(level, kind, split, float(right.mean()), float(sizes.mean()), shares, each)
    return trained.with_confidence(kept), found


def bootstrap(trained: Scored, split: str, rounds: int, level: float = 0.95) -> dict[str, tuple[float, float]]:
    """Intervals of the metrics of a split, see `confidence.intervals`; named as `eval` names them.

    Raises:
        ConfigError: for a run that predicts no single class.
        RunError: if the data has changed.
    """
    told, truth = trained.probabilities(split)
    metrics = metrics_of(trained, told, truth)
    prefix = {"validation": "val"}.get(split, split)
    found = confidence.intervals(metrics, len(truth), rounds=rounds, level=level)
    return {f"{prefix}/{name}": ends for name, ends in found.items()}


def metrics_of(trained: Scored, told: np.ndarray, truth: np.ndarray) -> Any:
    """Metrics of any examples of a split by their numbers, as `eval` computes them of all."""
    classes, positive = told.shape[1], trained.positive
    second = 1 if positive is None else trained.classes.index(positive)
    losses = -np.log(np.maximum(told[np.arange(len(truth)), truth], 1e-38))
    cut, score = _cut(trained), _score(told)
    predicted = predicted_of(trained, told)
    pairs = truth * classes + predicted

    def metrics(rows: np.ndarray) -> dict[str, float]:
        confusion = np.bincount(pairs[rows], minlength=classes**2).reshape(classes, classes)
        sums: dict[str, np.ndarray] = {"confusion": confusion, f"{EACH}label": truth[rows]}
        sums |= {f"{EACH}probabilities": told[rows]} if score is None else {f"{EACH}score": score[rows]}
        found = classification_metrics(sums, positive=second, cut=cut)
        kept = {name: value for name, value in found.items() if isinstance(value, float) and name != "threshold"}
        return {"loss": float(losses[rows].mean()), "accuracy": float((predicted == truth)[rows].mean()), **kept}

    return metrics


def predicted_of(trained: Scored, told: np.ndarray) -> np.ndarray:
    """The class that is predicted of each example, int [N], by probabilities [N, classes] and the run's threshold."""
    cut, score = _cut(trained), _score(told)
    if cut is None or score is None:
        return np.asarray(told.argmax(1))
    second = 1 if trained.positive is None else trained.classes.index(trained.positive)
    return np.asarray(predicted_at(score, second, cut)["predicted"])


def _cut(trained: Scored) -> float | None:
    return trained.threshold if isinstance(trained.threshold, float | None) else trained.threshold.threshold


def _score(told: np.ndarray) -> np.ndarray | None:
    """Log-odds of the second of two classes, [N]."""
    if told.shape[1] != 2:
        return None
    return np.asarray(np.log(np.maximum(told[:, 1], 1e-38)) - np.log(np.maximum(told[:, 0], 1e-38)))


def _kept(trained: Scored) -> Confidence:
    return Confidence.of(trained.run, trained.step, trained.config.eval.tta)
