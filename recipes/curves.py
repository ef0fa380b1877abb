"""How scores tell two classes apart, and whether probabilities are to be believed; as scikit-learn defines them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

POINTS = 100
"""Points of a curve that are kept; the first and the last are among them."""
BINS = 10
Value = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Positives among the highest scores, how many these are, at each distinct score -> what is to be large."""


def roc(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates at every threshold from the highest on, beginning with none predicted; NaN where
    there are no negatives, or no positives. scikit-learn's `roc_curve(drop_intermediate=False)`."""
    hits, places = _cumulative(scores, truth)
    misses = places - hits
    with np.errstate(invalid="ignore"):
        rates = [np.insert(found, 0, 0) / np.float64(found[-1]) for found in (misses, hits)]
    return rates[0], rates[1]


def precision_recall(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall at every threshold from the lowest on, ending with precision 1 and recall 0.
    scikit-learn's `precision_recall_curve`; recall is 1 where there are no positives."""
    hits, places = _cumulative(scores, truth)
    precision = hits / places
    recall = hits / hits[-1] if hits[-1] else np.ones(len(hits))
    return np.append(precision[::-1], 1.0), np.append(recall[::-1], 0.0)


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """The sum of precision times the gain in recall; 0 without positives. scikit-learn's `average_precision_score`."""
    if not np.any(truth):
        return 0.0
    hits, places = _cumulative(scores, truth)
    return float(np.sum(np.diff(hits, prepend=0) * hits / places) / hits[-1])


def _cumulative(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positives among the highest scores, and how many these are, at each distinct score from the highest on."""
    scores, truth = np.asarray(scores, np.float64), np.asarray(truth, bool)
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    return np.cumsum(truth[order])[last], last + 1


def best_cut(scores: np.ndarray, truth: np.ndarray, value: Value) -> tuple[float, float]:
    """The least score that is predicted to be true for the highest value, and that value.

    It lies midway between two scores that occur, so that rounding moves no example across it; of several equal ones
    the highest is taken.
    """
    hits, places = _cumulative(scores, truth)
    values = value(hits, places)
    best = int(np.argmax(values))
    ordered = np.sort(np.asarray(scores, np.float64))[::-1]
    below = ordered[places[best]] if places[best] < len(ordered) else 0.0
    return float((ordered[places[best] - 1] + below) / 2), float(values[best])


def reliability(probability: np.ndarray, truth: np.ndarray) -> dict[str, list[Any]]:
    """What a prediction says beside how often it comes true, in ten bins of equal width: mean probability, share that
    is true, and count of each bin that is not empty. The first two are those of scikit-learn's `calibration_curve`."""
    probability, truth = np.asarray(probability, np.float64), np.asarray(truth, np.float64)
    place = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], probability)
    count = np.bincount(place, minlength=BINS)
    some = count > 0
    mean = np.bincount(place, probability, minlength=BINS)[some] / count[some]
    share = np.bincount(place, truth, minlength=BINS)[some] / count[some]
    return {"probability": _kept(mean), "share": _kept(share), "count": count[some].tolist()}


def calibration_error(found: dict[str, list[Any]]) -> float:
    """The mean distance of the two, weighted by count: expected calibration error (Guo et al. 2017)."""
    count = np.asarray(found["count"], np.float64)
    gap = np.abs(np.asarray(found["probability"]) - np.asarray(found["share"]))
    return float((gap * count).sum() / max(1.0, count.sum()))


def described(
    probability: np.ndarray, truth: np.ndarray, *, scores: np.ndarray | None = None, positive: str | None = None
) -> dict[str, Any]:
    """The curves of a split, thinned, as JSON.

    Args:
        probability: of what was predicted, or with two classes of the positive one.
        truth: whether that is true.
        scores: with two classes, what ranks the examples.
        positive: with two classes, the name of the positive one.
    """
    bins = reliability(probability, truth)
    found: dict[str, Any] = {"reliability": {**bins, "error": round(calibration_error(bins), 6)}}
    if scores is None or not 0 < np.count_nonzero(truth) < len(truth):
        return found
    rates, pairs = roc(scores, truth), precision_recall(scores, truth)
    kept, others = _places(len(rates[0])), _places(len(pairs[0]))
    found["roc"] = {"false_positive_rate": _kept(rates[0][kept]), "true_positive_rate": _kept(rates[1][kept])}
    found["precision_recall"] = {"precision": _kept(pairs[0][others]), "recall": _kept(pairs[1][others])}
    return {"positive": positive, "share_positive": round(float(np.mean(truth)), 6), **found}


def _places(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, POINTS)).round().astype(int))


def _kept(values: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in values]
