"""Metrics by slice: the examples of a class, of a length, or of a value of a column."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigctl.config import schema
from bigctl.data import catalog
from bigctl.data.dataset import Dataset
from bigctl.data.sources.decoded import Origins
from bigctl.data.table_encoder import Numeric, TableEncoder
from bigctl.data.target import CLASS
from bigctl.errors import ConfigError
from bigctl.files import expanded
from bigctl.inference import confidence
from bigctl.inference.measured import Measured, measure
from bigctl.inference.trained import TrainedRun

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


def by_slice(trained: TrainedRun, split: str, by: str, *, least: int = 20, rounds: int = 200) -> Slices:
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


def _groups(trained: TrainedRun, dataset: Dataset, split: str, by: str) -> tuple[list[str], np.ndarray]:
    """Names of the slices, and the slice of each example, int [N]."""
    features = trained.features
    if by == "class" and features.target.kind == CLASS:
        return list(features.target.names), np.asarray(dataset.splits[split]["label"])
    if by == "length" and features.kind == "text":
        texts = dataset.texts[split]
        return cut(np.array([sum(map(len, parts)) for parts in zip(*texts, strict=True)], float))
    values = _of_encoder(dataset, split, by) if features.kind == "table" else None
    if values is None:
        values = _of_files(trained, dataset, split, by)
    if values is None:
        raise _unknown(trained, dataset, by)
    return cut(values) if values.dtype.kind == "f" else named(values)


def _unknown(trained: TrainedRun, dataset: Dataset, by: str) -> ConfigError:
    features = trained.features
    known = [column.name for column in TableEncoder.from_json(features.encoder).columns] if features.encoder else []
    known += ["class"] if features.target.kind == CLASS else []
    known += ["length"] if features.kind == "text" else []
    info = dataset.info.get("types") or dataset.info.get("columns") or []
    known = list(dict.fromkeys([*known, *map(str, info)]))
    if by == "class":
        return ConfigError("this run predicts no single class", where=WHERE, hint="slice by a column")
    if by == "length":
        return ConfigError("the examples are no texts", where=WHERE, hint=f"one of: {', '.join(known[:20])}")
    if by in known:
        return ConfigError(f"{by!r} is not kept, nor found in the files", where=WHERE, hint="slice by another column")
    close = difflib.get_close_matches(by, known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"one of: {', '.join(known[:20])}"
    return ConfigError(f"there is no column {by!r}", where=WHERE, hint=hint)


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


def _of_encoder(dataset: Dataset, split: str, by: str) -> np.ndarray | None:
    """A column of an encoded table as it was, float64 or object [N]; None where it has no such."""
    matrix, features, start = dataset.splits[split]["inputs"], dataset.features, 0
    if features.encoder is None:
        at = list(features.feature_names).index(by) if by in features.feature_names else None
        return None if at is None else np.asarray(matrix[:, at], np.float64)
    for column in TableEncoder.from_json(features.encoder).columns:
        part = np.asarray(matrix[:, start : start + len(column.features)])
        if column.name == by and isinstance(column, Numeric):
            values = (part[:, 0].astype(np.float64) * column.std + column.mean).round(9)
            return np.where(part[:, 1] > 0.5, np.nan, values) if column.missing else values
        if column.name == by:
            labels = [feature.removeprefix(f"{by}=") for feature in column.features]
            seen = part.max(1, initial=0) > 0
            told = np.array([*labels, "(new)"], object)
            return np.asarray(told[np.where(seen, part.argmax(1) if part.size else 0, len(labels))])
        start += len(column.features)
    return None


def _of_files(trained: TrainedRun, dataset: Dataset, split: str, by: str) -> np.ndarray | None:
    """A column of the files that examples come from, which no model reads; None where they have no such.

    Which row of a file an example is, is known by its place, and checked by its class.
    """
    config = trained.config.data
    if dataset.features.target.kind != CLASS or not isinstance(label := getattr(config, "label", None), str):
        return None
    try:
        with np.load(Path(dataset.path) / "origins.npz", allow_pickle=False) as stored:
            unit, sources = json.loads(stored["sources"].tobytes())
            places = stored[split]
    except (OSError, ValueError, KeyError):
        return None
    files = _files(config)
    classes = np.array(dataset.features.target.names, object)[np.asarray(dataset.splits[split]["label"])]
    found = np.full(len(places), None, object)
    for number, name in enumerate(sources):
        mine = np.flatnonzero(places >> Origins.BITS == number)
        if not len(mine):
            continue
        if name not in files:
            return None
        own, given = (catalog.read_column(files[name], config, dataset.features, each) for each in (by, label))
        if own is None or given is None:
            return None
        rows = (places[mine] & Origins.MOST) - 1
        told = _told(rows, given, classes[mine], unit)
        if told is None:
            hint = "its cells go over several lines: slice by another column"
            raise ConfigError(f"which row of {name} an example is cannot be told", where=WHERE, hint=hint)
        found[mine] = np.array(own, object)[told]
    numbers = _as_numbers(found)
    return found if numbers is None else numbers


def _files(config: schema.Data) -> dict[str, Path]:
    """The files of the data by name, but for those whose name occurs twice."""
    path = expanded(str(getattr(config, "path", None) or ""))
    found = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    names = [each.name for each in found]
    return {each.name: each for each in found if names.count(each.name) == 1}


def _told(rows: np.ndarray, given: list[Any], classes: np.ndarray, unit: str) -> np.ndarray | None:
    """The rows, which may stand below a header, if they have the classes that they should."""
    for header in (0, 1) if unit == "line" else (0,):
        told = rows - header
        if told.min() >= 0 and told.max() < len(given):
            there = [str(given[row]) for row in told.tolist()]
            if there == [str(name) for name in classes]:
                return told
    return None


def _as_numbers(values: np.ndarray) -> np.ndarray | None:
    try:
        return np.array([float("nan") if value in (None, "") else float(value) for value in values.tolist()], float)
    except (TypeError, ValueError):
        return None
