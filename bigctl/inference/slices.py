"""Metrics by slice: the examples of a class, of a length, or of a value of a column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bigctl.data import column_values
from bigctl.data.dataset import Dataset
from bigctl.data.target import CLASS
from bigctl.errors import ConfigError
from bigctl.inference import confidence
from bigctl.inference.measured import Measured, measure
from bigctl.inference.scored import Scored

WHERE = "--slices"
PARTS = 5
"""Slices that numbers are cut into, of equally many examples each."""
_FEW = 8
"""Different numbers up to which each is a slice of its own."""


@dataclass(frozen=True)
class Slice:
    """Some examples of a split.

    Attributes:
        name: of the slice.
        count: how many there are.
        metrics: by name, without prefix.
        intervals: of 95%: Wilson's of the accuracy, of the others by bootstrap.
        p: how likely a slice is to do as badly as this one beside the others if it were no worse than they are: by
            Fisher's exact test of the errors, or Welch's of the absolute errors, times the slices that are left
            (Holm 1979).
    """

    name: str
    count: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    p: float


@dataclass(frozen=True)
class Slices:
    """All slices of a split, the worst first.

    Attributes:
        by: "class", "length" or a column.
        split: that is scored.
        headline: the metric by which they are ordered.
        whole: that metric of all examples.
        slices: those with enough examples.
        small: names and counts of the others.
        worse: names of those with p < 0.05.
    """

    by: str
    split: str
    headline: str
    whole: float
    slices: list[Slice]
    small: dict[str, int]
    worse: list[str]


def by_slice(trained: Scored, split: str, by: str, *, least: int = 20, rounds: int = 200) -> Slices:
    """Metrics of each slice of a split.

    Args:
        trained: of one class or one number an example.
        split: to score.
        by: "class", "length" of texts in characters, or a column: numbers are cut into `PARTS` quantiles.
        least: examples that a slice needs.
        rounds: of the bootstrap.

    Raises:
        ConfigError: for a column that there is not, or where no slice has enough examples.
        RunError: if the data has changed.
    """
    names, codes = _groups(trained, trained.data(), split, by)
    measured = measure(trained, split, WHERE)
    counts = np.bincount(codes, minlength=len(names))
    large = [k for k in range(len(names)) if counts[k] >= least]
    if not large:
        most = f"the largest of the {np.count_nonzero(counts)} slices has {int(counts.max(initial=0))} examples"
        raise ConfigError(f"{most}, fewer than {least}", where=WHERE, hint="lower --min-slice, or slice by another")
    raw = [p_worse(measured, codes == k) for k in large]
    corrected = holm(raw)
    found = [
        _slice(measured, names[k], np.flatnonzero(codes == k), p, rounds)
        for k, p in zip(large, corrected, strict=True)
    ]  # fmt: skip
    sign = 1 if measured.headline == "accuracy" else -1
    found.sort(key=lambda each: sign * each.metrics[measured.headline])
    whole = float(measured.metrics(np.arange(measured.count))[measured.headline])
    small = {names[k]: int(counts[k]) for k in range(len(names)) if 0 < counts[k] < least}
    worse = [each.name for each in found if each.p < 0.05]
    return Slices(by, split, measured.headline, whole, found, small, worse)


def _slice(measured: Measured, name: str, rows: np.ndarray, p: float, rounds: int) -> Slice:
    metrics = {key: value for key, value in measured.metrics(rows).items() if np.isfinite(value)}
    ends = confidence.intervals(lambda drawn: measured.metrics(rows[drawn]), len(rows), rounds=rounds)
    if measured.wrong is not None:  # of which a bootstrap says nothing where all are right
        ends["accuracy"] = wilson(int((~measured.wrong[rows]).sum()), len(rows))
    return Slice(name, len(rows), metrics, {key: ends[key] for key in metrics if key in ends}, p)


def wilson(hits: int, count: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """The score interval of a share (Wilson 1927), of 95% by default."""
    share, square = hits / count, z * z / count
    middle = (share + square / 2) / (1 + square)
    half = z * (share * (1 - share) / count + square / (4 * count)) ** 0.5 / (1 + square)
    return max(0.0, middle - half) if hits else 0.0, min(1.0, middle + half) if hits < count else 1.0


def p_worse(measured: Measured, inside: np.ndarray) -> float:
    """One-sided, of one slice, bool [N], beside all other examples; 1 where these are too few to compare."""
    from scipy import stats

    if inside.all():
        return 1.0
    if measured.error is not None:
        ours, others = measured.error[inside], measured.error[~inside]
        if min(len(ours), len(others)) < 2 or ours.std() + others.std() == 0:
            return 1.0
        return float(stats.ttest_ind(ours, others, equal_var=False, alternative="greater").pvalue)
    assert measured.wrong is not None
    ours, others = measured.wrong[inside], measured.wrong[~inside]
    table = [[int(ours.sum()), int((~ours).sum())], [int(others.sum()), int((~others).sum())]]
    return float(stats.fisher_exact(table, alternative="greater").pvalue)


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for how many there are (Holm 1979), in their order."""
    order = np.argsort(values, kind="stable")
    scaled = np.asarray(values, float)[order] * (len(values) - np.arange(len(values)))
    found = np.empty(len(values))
    found[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(value) for value in found]


# -------------------------------------------------------------------------------------------------------------- groups


def _groups(trained: Scored, dataset: Dataset, split: str, by: str) -> tuple[list[str], np.ndarray]:
    """Names of the slices, and the slice of each example, int [N]."""
    features = trained.features
    if by == "class" and features.target.kind == CLASS:
        return list(features.target.names), np.asarray(dataset.splits[split]["label"])
    if by == "length" and features.kind == "text":
        texts = dataset.texts[split]
        return cut(np.array([sum(map(len, parts)) for parts in zip(*texts, strict=True)], float))
    values = column_values.read(trained.data_config, dataset, split, by, where=WHERE)
    if values is None:
        raise _unknown(trained, dataset, by)
    return cut(values) if values.dtype.kind == "f" else named(values)


def _unknown(trained: Scored, dataset: Dataset, by: str) -> ConfigError:
    features = trained.features
    known = ["class"] if features.target.kind == CLASS else []
    known += ["length"] if features.kind == "text" else []
    if by == "class":
        return ConfigError("this run predicts no single class", where=WHERE, hint="slice by a column")
    if by == "length":
        named = ", ".join(column_values.known(dataset, known)[:20])
        return ConfigError("the examples are no texts", where=WHERE, hint=f"one of: {named}")
    return column_values.unknown(dataset, by, where=WHERE, besides=known)


def cut(values: np.ndarray, parts: int = PARTS) -> tuple[list[str], np.ndarray]:
    """Numbers, float [N] with NaN for a missing one, in parts of about equally many; few different ones each by
    itself."""
    known = ~np.isnan(values)
    different = np.unique(values[known])
    if len(different) <= _FEW:
        names, codes = [f"{value:.6g}" for value in different], np.searchsorted(different, values)
    else:
        inner = np.unique(np.quantile(values[known], np.arange(1, parts) / parts))
        inner = inner[inner < different[-1]]
        if not len(inner):  # four in five have the largest
            inner = different[-2:-1]
        ends = [f"{value:.4g}" for value in inner]
        names = [f"up to {ends[0]}", *(f"{low} to {high}" for low, high in zip(ends, ends[1:], strict=False))]
        names.append(f"above {ends[-1]}")
        codes = np.searchsorted(inner, values, side="left")
    return [*names, "(missing)"], np.where(known, codes, len(names))


def named(values: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Texts, object [N] with None for a missing one, each value a slice."""
    texts = np.array(["(missing)" if value is None else str(value) for value in values.tolist()], object)
    found, codes = np.unique(texts.astype(str), return_inverse=True)
    return [str(name) for name in found], codes
