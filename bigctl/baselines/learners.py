"""The cheap answers, made with scikit-learn: what each is called, and how it learns.

A learner is given the training and the validation examples and gives a function from examples to what a model of the
project would: probabilities [examples, classes], or the standardised target [examples, 1].
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from bigctl.data.target import CLASS, CLASSES, NUMBER, Target

MOST_PICTURES = 10_000
"""Training pictures that are looked at, evenly spread over all."""
MOST_CHARACTERS = 4_000_000
"""Characters of the training texts up to which pieces of words are counted too: they take most of the time."""
MOST_BOOSTED = 20
"""Classes up to which trees are boosted, as each takes trees of its own."""
MOST_VISITED = 10**9
"""Numbers that boosting looks at: rows times columns times trees, those of every class. Of large tables there are fewer
rounds than the usual 100, though not below 20."""
MOST_ROWS = 100_000
"""Training rows that trees are boosted on, evenly spread over all."""
ALONE = 2_000_000
"""Numbers of a training split, rows times columns, up to which a second thread waits longer than it helps: on a machine
with other work, threads that wait for one another at each small step take ten times as long as one of them alone."""

Examples = Any
Predict = Callable[[Examples], np.ndarray]


@dataclass(frozen=True)
class Data:
    """One split: examples, as texts or an array [N, features], and labels as prepared data has them."""

    examples: Examples
    labels: np.ndarray


@dataclass(frozen=True)
class Learner:
    """Attributes: name: in words. learn: from training and validation data."""

    name: str
    learn: Callable[[Data, Data], Predict]


def learners(kind: str, target: Target, train: Data) -> list[Learner]:
    """Those for a kind of data ("text", "table" or "image") and its target, the most simple one first."""
    if target.kind == NUMBER:
        found = [Learner("mean", lambda train, _: _constant(np.zeros(1)))]
    else:
        found = [Learner("most frequent class" if target.kind == CLASS else "frequencies", _frequencies(target))]
    labels = train.labels
    if target.kind == CLASS and len(np.unique(labels)) < 2:
        return found
    linear = "ridge regression" if target.kind == NUMBER else "logistic regression"
    if kind == "text":
        pieces = sum(map(len, train.examples)) <= MOST_CHARACTERS
        of = "words and characters" if pieces else "words"
        return [*found, Learner(f"TF-IDF of {of}, {linear}", _texts(target, pieces))]
    if kind == "image":
        some = f" (of {MOST_PICTURES:,} pictures)" if len(labels) > MOST_PICTURES else ""
        return [*found, Learner(f"{linear} on pixels{some}", _pictures(target))]
    found.append(Learner(linear, _linear(target)))
    if len(target.names) <= MOST_BOOSTED:
        some = f" (of {MOST_ROWS:,} rows)" if len(labels) > MOST_ROWS else ""
        found.append(Learner(f"gradient boosting{some}", _boosted(target)))
    return found


def threads(train: Data) -> AbstractContextManager[Any]:
    """Within it, scikit-learn takes as many threads as the size of the data is worth."""
    from threadpoolctl import threadpool_limits

    size = getattr(train.examples, "size", 0)
    return threadpool_limits(1) if 0 < size <= ALONE else nullcontext()


def _spread(rows: int, most: int) -> Int[np.ndarray, " n"]:
    """At most so many of some rows, evenly spread."""
    return np.unique(np.linspace(0, rows - 1, most).astype(np.int64))


def _constant(values: np.ndarray) -> Predict:
    return lambda examples: np.tile(values, (len(examples), 1))


def _frequencies(target: Target) -> Callable[[Data, Data], Predict]:
    def learn(train: Data, _: Data) -> Predict:
        return _constant((target.counts(train.labels) + 1e-9) / len(train.labels))

    return learn


# ------------------------------------------------------------------------------------------ fitted by scikit-learn


def _fitted(estimator: Any, target: Target, examples: Any, labels: np.ndarray) -> Predict:
    """An estimator's answers; classes that the training data lacks have none of the probability."""
    if target.kind == CLASSES:
        from sklearn.multiclass import OneVsRestClassifier

        estimator = OneVsRestClassifier(estimator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # steps that did not quite converge are good enough for a baseline
        estimator.fit(examples, (labels - target.mean) / target.std if target.kind == NUMBER else labels)

    def predict(examples: Any) -> np.ndarray:
        if target.kind == NUMBER:
            return np.asarray(estimator.predict(examples), np.float64)[:, None]
        found = np.asarray(estimator.predict_proba(examples), np.float64)
        if target.kind == CLASSES:
            return found
        values = np.zeros((len(found), len(target.names)))
        values[:, estimator.classes_] = found
        return values

    return predict


def _best(
    target: Target, estimators: Sequence[Any], train: tuple[Any, np.ndarray], held: tuple[Any, np.ndarray]
) -> Predict:
    """The estimator with the least error on the validation examples."""
    found = [_fitted(estimator, target, *train) for estimator in estimators]
    if len(found) == 1 or not len(held[1]):
        return found[0]
    return min(found, key=lambda predict: _error(target, predict(held[0]), held[1]))


def _error(target: Target, values: np.ndarray, labels: np.ndarray) -> float:
    if target.kind == NUMBER:
        return float(np.square(values[:, 0] - (labels - target.mean) / target.std).mean())
    if target.kind == CLASSES:
        return float(((values > 0.5) != (labels > 0)).mean())
    return float((values.argmax(1) != labels).mean())


def _regressions(target: Target, strengths: Sequence[float]) -> list[Any]:
    from sklearn.linear_model import LogisticRegression, Ridge

    if target.kind == NUMBER:
        return [Ridge(alpha=1 / strength) for strength in strengths]
    return [LogisticRegression(C=strength, max_iter=200) for strength in strengths]


def _linear(target: Target) -> Callable[[Data, Data], Predict]:
    def learn(train: Data, held: Data) -> Predict:
        found = _regressions(target, (0.1, 1.0, 10.0))
        return _best(target, found, (train.examples, train.labels), (held.examples, held.labels))

    return learn


def _boosted(target: Target) -> Callable[[Data, Data], Predict]:
    def learn(train: Data, held: Data) -> Predict:
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        kind = HistGradientBoostingRegressor if target.kind == NUMBER else HistGradientBoostingClassifier
        each = len(target.names) if target.kind != NUMBER and len(target.names) > 2 else 1
        rows = _spread(len(train.labels), MOST_ROWS)
        rounds = MOST_VISITED // (len(rows) * train.examples.shape[1] * each)
        return _fitted(
            kind(max_iter=min(100, max(20, rounds)), random_state=0), target, train.examples[rows], train.labels[rows]
        )

    return learn


def _pictures(target: Target) -> Callable[[Data, Data], Predict]:
    def pixels(examples: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        rows = np.arange(len(examples)) if rows is None else rows
        size = examples.shape[1:3]
        step = tuple(max(1, side // 32) for side in size)  # large pictures are thinned out to 32 to 63 pixels a side
        blocks = (examples[rows[start : start + 256]] for start in range(0, len(rows), 256))  # they may be in files
        thin = np.concatenate([block[:, :: step[0], :: step[1]].reshape(len(block), -1) for block in blocks])
        return thin.astype(np.float32) / 255 - 0.5

    def learn(train: Data, held: Data) -> Predict:
        rows = _spread(len(train.labels), MOST_PICTURES)
        some = pixels(train.examples, rows), train.labels[rows]
        predict = _best(target, _regressions(target, (0.01, 0.1)), some, (pixels(held.examples), held.labels))
        return lambda examples: predict(pixels(examples))

    return learn


def _texts(target: Target, pieces: bool) -> Callable[[Data, Data], Predict]:
    def learn(train: Data, held: Data) -> Predict:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression, Ridge
        from sklearn.multiclass import OneVsRestClassifier
        from sklearn.pipeline import make_union

        least = 1 if len(train.examples) < 20_000 else 2  # texts that a piece is in
        parts = [TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", min_df=least)]
        if pieces:
            parts.append(
                TfidfVectorizer(
                    sublinear_tf=True, ngram_range=(1, 4), analyzer="char_wb", min_df=2, max_features=200_000
                )
            )
        features = make_union(*parts)
        try:
            known = features.fit_transform(train.examples)
        except ValueError:  # nothing but blanks: there is no word to count
            return _frequencies(target)(train, held) if target.names else _constant(np.zeros(1))

        def estimator(strength: float) -> Any:
            if target.kind == NUMBER:
                return Ridge(alpha=1 / strength)
            found = LogisticRegression(C=strength, solver="liblinear", random_state=0)
            several = target.kind == CLASS and len(np.unique(train.labels)) > 2
            return OneVsRestClassifier(found) if several else found

        found = [estimator(strength) for strength in (1.0, 10.0)]
        predict = _best(target, found, (known, train.labels), (features.transform(held.examples), held.labels))
        return lambda examples: predict(features.transform(examples))

    return learn
