"""Whether one run is better than another on the same examples: paired tests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from bigctl.data.dataset import Dataset
from bigctl.errors import ConfigError
from bigctl.inference.measured import measure
from bigctl.inference.scored import Scored

WHERE = "--significance"


@dataclass(frozen=True)
class Paired:
    """One metric of two runs on the same examples.

    Attributes:
        metric: with the split it is of, such as "test/f1".
        first, second: of either run.
        difference: second - first.
        interval: of the difference, 95%: percentiles of a paired bootstrap, both runs scored on the same draws.
        p: two-sided, of no difference: twice the share of draws on the rarer side of 0.
    """

    metric: str
    first: float
    second: float
    difference: float
    interval: tuple[float, float]
    p: float


@dataclass(frozen=True)
class McNemar:
    """Examples that one of two runs alone has right, and how likely a count so uneven is (McNemar 1947, exact)."""

    first_only: int
    second_only: int
    p: float


@dataclass(frozen=True)
class Significance:
    """Two runs on the same examples of a split."""

    first: str
    second: str
    split: str
    count: int
    rounds: int
    metrics: list[Paired]
    mcnemar: McNemar | None


def compare(first: Scored, second: Scored, *, split: str = "test", rounds: int = 1000) -> Significance:
    """Paired tests of two runs.

    Raises:
        ConfigError: where the examples of the split are not the same, or one predicts a class and the other does not.
        RunError: if the data of either has changed.
    """
    require_same(first, second, split)
    a, b = measure(first, split, WHERE), measure(second, split, WHERE)
    if (a.wrong is None) != (b.wrong is None):
        raise ConfigError("one run predicts a class, the other a number", where=WHERE, hint="compare two of a kind")
    exact = mcnemar(~a.wrong, ~b.wrong) if a.wrong is not None and b.wrong is not None else None
    found = differences(a.metrics, b.metrics, a.count, rounds=rounds, prefix={"validation": "val"}.get(split, split))
    return Significance(str(first.run.path), str(second.run.path), split, a.count, rounds, found, exact)


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """The exact test of two runs, by which examples each has right, bool [N]."""
    from scipy import stats

    only, other = int((first & ~second).sum()), int((second & ~first).sum())
    p = 1.0 if only + other == 0 else float(stats.binomtest(only, only + other, 0.5).pvalue)
    return McNemar(only, other, p)


def differences(
    first: Callable[[np.ndarray], Mapping[str, float]],
    second: Callable[[np.ndarray], Mapping[str, float]],
    count: int,
    *,
    rounds: int,
    prefix: str,
    seed: int = 0,
) -> list[Paired]:
    """A paired bootstrap of every metric that both have (Efron and Tibshirani 1993, chapter 16).

    Args:
        first, second: metrics of the examples with some numbers, of either run.
        count: examples there are.
        rounds: draws.
        prefix: of the names.
        seed: of the draws.
    """
    rng, every = np.random.default_rng(seed), np.arange(count)
    drawn: dict[str, list[float]] = {}
    for _ in range(rounds):
        rows = rng.integers(0, count, count)
        one, two = first(rows), second(rows)
        for name in one.keys() & two.keys():
            drawn.setdefault(name, []).append(two[name] - one[name])
    one, two, found = first(every), second(every), []
    for name in one:
        gaps = np.asarray(drawn.get(name, [np.nan]))
        if np.isfinite(gaps).all():
            rarer = min(int((gaps <= 0).sum()), int((gaps >= 0).sum()))
            low, high = np.quantile(gaps, (0.025, 0.975))
            p = min(1.0, 2 * (1 + rarer) / (rounds + 1))
            numbers = (one[name], two[name], two[name] - one[name])
            found.append(Paired(f"{prefix}/{name}", *numbers, (float(low), float(high)), p))
    return found


def require_same(first: Scored, second: Scored, split: str) -> None:
    """Raises ConfigError unless both runs are scored on the very same examples, in the same order."""
    one, two = first.data(), second.data()
    if one.fingerprint == two.fingerprint:
        return
    names = [f"{run.run.path} (data {data.fingerprint[:8]})" for run, data in ((first, one), (second, two))]
    said = f"the {split} examples of {names[0]} and {names[1]} are not the same"
    sizes = [data.size(split) for data in (one, two)]
    if sizes[0] != sizes[1]:
        said += f": there are {sizes[0]:,} and {sizes[1]:,}"
    if sizes[0] != sizes[1] or _digest(one, split) != _digest(two, split):
        hint = "train both on the same data with the same data.split_seed, data.validation and data.test"
        raise ConfigError(said, where=WHERE, hint=hint)


def _digest(data: Dataset, split: str) -> str:
    """Of the examples of a split and their labels, in their order: of texts the texts, whatever their tokens."""
    target, columns = data.features.target, data.splits[split]
    found = hashlib.sha256(repr(target.names).encode())
    found.update(np.ascontiguousarray(columns["label"]).tobytes())
    for texts in data.texts.get(split, ()):
        for row in range(len(texts)):
            found.update(texts[row].encode() + b"\0")
    if not data.texts.get(split):
        inputs = columns["inputs"]
        for start in range(0, len(inputs), 1024):
            found.update(np.ascontiguousarray(inputs[start : start + 1024]).tobytes())
    return found.hexdigest()
