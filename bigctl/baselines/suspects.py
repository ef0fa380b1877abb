"""Examples whose label is likely wrong: by what cheap models that have not seen them say (Northcutt et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from bigctl.baselines import learners
from bigctl.data import origins
from bigctl.data.dataset import SPLITS, Dataset
from bigctl.data.target import CLASS
from bigctl.data.text.encoding import Texts
from bigctl.errors import ConfigError

FOLDS = 5
LEAST = 50
"""Examples that are needed at least."""
WHERE = "--suspects"


@dataclass(frozen=True)
class Suspect:
    """One example.

    Attributes:
        split, row: where it is in the prepared data.
        origin: the file and the line or row in it, where that is known.
        given, likely: its label, and the class that it more likely is of.
        given_probability, likely_probability: of either, by a model that has not seen the example.
        text: the beginning of it, of texts.
    """

    split: str
    row: int
    origin: str | None
    given: str
    likely: str
    given_probability: float
    likely_probability: float
    text: str = ""


@dataclass(frozen=True)
class Suspects:
    """What was found.

    Attributes:
        learner: whose answers were used, in words.
        accuracy: of these, on all examples.
        count: examples looked at, of all splits.
        found: how many are suspected: those whose likelier class is not their label.
        confident: how many of these reach the mean confidence of the examples that are labelled so.
        worst: the first of them, the likeliest errors first.
    """

    learner: str
    accuracy: float
    count: int
    found: int
    confident: int
    worst: list[Suspect]


def suspects(dataset: Dataset, most: int) -> Suspects:
    """Rank the examples of all splits by how little their label fits.

    Each is judged by a cheap model (`learners`; of several that with the least loss) of the folds that it is not in. It
    is suspected where that takes it for another class, and ranked by the margin between both probabilities; the count
    of the confident joint says how many of them are errors rather than hard.

    Args:
        dataset: with one class an example.
        most: how many to name.

    Raises:
        ConfigError: for data of another target, too few examples, or pictures that stay in their files.
    """
    features = dataset.features
    if features.target.kind != CLASS:
        raise ConfigError("the data has no single class an example", where=WHERE, hint="name a column: data.label")
    if dataset.streamed:
        hint = "leave out data.decoding=stream"
        raise ConfigError("the pictures are decoded while training", where=WHERE, hint=hint)
    sizes = [len(dataset.splits[split]["label"]) for split in SPLITS]
    labels = np.concatenate([np.asarray(dataset.splits[split]["label"]) for split in SPLITS])
    if len(labels) < LEAST or len(np.unique(labels)) < 2:
        what = f"{len(labels)} examples of {len(np.unique(labels))} classes tell nothing"
        raise ConfigError(what, where=WHERE, hint=f"it takes {LEAST} examples, and two classes")
    examples = _all(dataset)
    name, told = _out_of_fold(dataset, examples, labels)
    order, likely, confident = ranked(told, labels)
    names, ends, found = features.target.names, np.cumsum([0, *sizes]), []
    for place in order[:most].tolist():
        part = int(np.searchsorted(ends, place, side="right")) - 1
        split, row = SPLITS[part], int(place - ends[part])
        (origin,) = origins.read(dataset.path, split, [row])
        text = " ".join(str(examples[place]).split())[:300] if features.kind == "text" else ""
        pair = names[int(labels[place])], names[int(likely[place])]
        chances = float(told[place, labels[place]]), float(told[place, likely[place]])
        found.append(Suspect(split, row, origin, *pair, *chances, text))
    return Suspects(name, float((told.argmax(1) == labels).mean()), len(labels), len(order), confident, found)


def ranked(
    told: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " n"], int]:
    """The suspected examples, the likeliest errors first; of all examples the likeliest class; and how many of the
    suspected are off the diagonal of the confident joint."""
    classes, own = told.shape[1], np.arange(len(labels))
    means = np.array([told[labels == k, k].mean() if np.any(labels == k) else np.inf for k in range(classes)])
    likely = told.argmax(1)
    margin = told[own, labels] - told[own, likely]
    some = np.flatnonzero(margin < 0)
    confident = int((told[some, likely[some]] >= means[likely[some]]).sum())
    return some[np.argsort(margin[some], kind="stable")], likely, confident


def _all(dataset: Dataset) -> learners.Examples:
    """The examples of all splits: texts, those of a pair in one, or an array."""
    if dataset.features.kind != "text":
        return np.concatenate([np.asarray(dataset.splits[split]["inputs"]) for split in SPLITS])
    rows = [zip(*(list(_of(part)) for part in dataset.texts[split]), strict=True) for split in SPLITS]
    return ["\n".join(parts) for each in rows for parts in each]


def _of(texts: Texts) -> Iterator[str]:
    return (texts[row] for row in range(len(texts)))


def _out_of_fold(dataset: Dataset, examples: learners.Examples, labels: np.ndarray) -> tuple[str, np.ndarray]:
    """The name of the learner with the least loss, and its probabilities of each example, float64 [N, classes]."""
    fold = _folds(labels)
    target, kind = dataset.features.target, dataset.features.kind
    some = learners.learners(kind, target, learners.Data(examples, labels))[1:]
    best: tuple[float, str, np.ndarray] | None = None
    for learner in some:
        told = np.zeros((len(labels), len(target.names)))
        for number in range(FOLDS):
            here, held = fold == number, fold == (number + 1) % FOLDS
            train = _part(examples, labels, ~here & ~held)
            with learners.threads(train):
                predict = learner.learn(train, _part(examples, labels, held))
                told[here] = predict(_part(examples, labels, here).examples)
        loss = float(-np.log(np.maximum(told[np.arange(len(labels)), labels], 1e-12)).mean())
        if best is None or loss < best[0]:
            best = loss, learner.name, told
    assert best is not None
    return best[1], best[2]


def _folds(labels: np.ndarray) -> np.ndarray:
    """The fold of each example, each with the same share of every class: int [N], a function of the labels alone."""
    shuffled = np.random.default_rng(0).permutation(len(labels))
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]
    found = np.empty(len(labels), int)
    found[order] = np.arange(len(labels)) % FOLDS
    return found


def _part(examples: learners.Examples, labels: np.ndarray, which: np.ndarray) -> learners.Data:
    rows = np.flatnonzero(which)
    some = examples[rows] if isinstance(examples, np.ndarray) else [examples[row] for row in rows.tolist()]
    return learners.Data(some, labels[rows])
