"""How scores tell classes apart, two or each against the rest, and how far probabilities can be believed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

POINTS = 100
"""Points of a curve that are kept; the first and the last are among them."""
BINS = 10
WORST = 5
"""Of several classes, the curves of so many are kept beside their mean: those with the smallest area below."""
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


def areas(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The area under each class's ROC curve and its average precision, one class against the rest.

    Their means are scikit-learn's `roc_auc_score(multi_class="ovr", average="macro")` and `average_precision_score`.

    Args:
        scores: by which each class ranks the examples, [examples, classes].
        truth: whether an example is of a class, the same shape.

    Returns:
        float64 [classes] each; NaN for a class without examples, or without others.
    """
    found = np.full((2, scores.shape[1]), np.nan)
    for number, (score, true) in enumerate(zip(scores.T, truth.T, strict=True)):
        hits, places = _cumulative(score, true)
        positives, negatives = int(hits[-1]), int(places[-1] - hits[-1])
        if positives and negatives:
            steps = np.insert(places - hits, 0, 0)
            found[0, number] = np.trapezoid(np.insert(hits, 0, 0), steps) / (positives * negatives)
            found[1, number] = np.sum(np.diff(hits, prepend=0) * hits / places) / positives
    return found[0], found[1]


def mean_known(values: np.ndarray) -> float:
    """The mean of those that are no NaN; NaN where all are."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


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


def one_vs_rest(scores: np.ndarray, truth: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Of several classes: the areas of each and their means, and the mean curves and those of the worst classes, as
    JSON; nothing where no class has examples and others.

    Arguments are those of `areas`, and the names of the classes.
    """
    area, precision = areas(scores, truth)
    if np.isnan(area).all():
        return {}
    rows = zip(names, truth.mean(0), area, precision, strict=True)
    return {
        "roc_auc": round(mean_known(area), 6),
        "average_precision": round(mean_known(precision), 6),
        "classes": [
            {"name": name, "share": round(float(share), 6), "roc_auc": _or_none(a), "average_precision": _or_none(p)}
            for name, share, a, p in rows
        ],
        "roc": _mean_and_worst(scores, truth, names, area, _roc_at, ("false_positive_rate", "true_positive_rate")),
        "precision_recall": _mean_and_worst(scores, truth, names, precision, _precision_at, ("recall", "precision")),
    }


def _mean_and_worst(
    scores: np.ndarray, truth: np.ndarray, names: Sequence[str], by: np.ndarray, curve: Value, axes: tuple[str, str]
) -> list[dict[str, Any]]:
    """The mean curve of all classes, without a name, and those of the classes with the smallest areas."""
    known = np.flatnonzero(~np.isnan(by))
    values = {number: curve(scores[:, number], truth[:, number]) for number in known.tolist()}
    worst = sorted(values, key=lambda number: by[number])[:WORST]
    mean: np.ndarray = np.mean(list(values.values()), axis=0)
    lines = [(None, mean), *((names[number], values[number]) for number in worst)]
    grid = _kept(np.linspace(0, 1, POINTS))
    return [{"name": name, axes[0]: grid, axes[1]: _kept(line)} for name, line in lines]


def _roc_at(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """True positive rate at each of `POINTS` false positive rates from 0 to 1."""
    return np.asarray(np.interp(np.linspace(0, 1, POINTS), *roc(scores, truth)))


def _precision_at(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Precision at each of `POINTS` recalls from 0 to 1: that of the least recall which reaches it."""
    precision, recall = precision_recall(scores, truth)
    return np.asarray(precision[::-1][np.searchsorted(recall[::-1], np.linspace(0, 1, POINTS) - 1e-12)])


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)


def _places(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, POINTS)).round().astype(int))


def _kept(values: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in values]
