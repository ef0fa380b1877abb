"""How well examples from elsewhere are told from those of the data: out-of-distribution scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float

from bigctl.config import compose
from bigctl.data import catalog
from bigctl.data.dataset import Dataset
from bigctl.data.preparation import prepare
from bigctl.data.sources.frames import Examples
from bigctl.errors import ConfigError
from bigctl.inference import confidence
from bigctl.inference.measured import require_classes
from bigctl.inference.trained import TrainedRun
from bigctl.recipes.classification import roc_auc

WHERE = "--ood"
MOST = 2000
"""Training examples that distances are measured from, and examples of a split that are looked at."""
NEIGHBOURS = 10
KEPT = 0.95
"""Share of the data's own examples that a threshold lets pass."""


@dataclass(frozen=True)
class Detection:
    """How well one score tells strange examples from the data's own; larger is stranger.

    Attributes:
        score: its name.
        auroc: the probability that a strange example has the larger score.
        fpr95: share of the strange examples that pass where 95% of the split's own do.
        threshold: which 95% of the validation examples lie below.
        flagged: share of the strange examples above the threshold.
        own_flagged: share of the split's own above it; 5% are expected.
    """

    score: str
    auroc: float
    fpr95: float
    threshold: float
    flagged: float
    own_flagged: float


@dataclass(frozen=True)
class Unfamiliar:
    """All scores of one set of strange examples."""

    data: str
    count: int
    split: str
    own_count: int
    scores: list[Detection]


def detect(trained: TrainedRun, given: str, split: str) -> Unfamiliar:
    """Score strange examples beside the run's own.

    Args:
        trained: a classifier whose model has a layer called `head`.
        given: a folder or file of examples, or the name of packaged data, of which the test split is taken.
        split: of the run's data to compare with.

    Raises:
        ConfigError: for a run that predicts no class, data that is not there or of another shape, or too few examples.
        DataError: for files that cannot be read.
    """
    require_classes(trained, WHERE)
    strange, dataset = examples_of(trained, given), trained.data()
    if len(strange) < confidence.LEAST:
        what = f"there are {len(strange)} examples, of which nothing can be said"
        raise ConfigError(what, where=given, hint=f"give {confidence.LEAST} at least")
    confidence.require_enough(dataset.size("validation"), WHERE)
    train, validation, own = (_some(dataset, part) for part in ("train", "validation", split))
    labels = np.asarray(dataset.splits["train"]["label"])[_rows(len(dataset.splits["train"]["label"]))]
    scores = scores_of(trained, train, labels)
    told = [scores(each) for each in (validation, own, strange)]
    found = [judged(name, *(each[name] for each in told)) for name in told[0]]
    return Unfamiliar(given, len(strange), split, len(own), found)


def judged(name: str, validation: np.ndarray, own: np.ndarray, strange: np.ndarray) -> Detection:
    """One score of validation examples, the split's own and strange ones, each [n]."""
    truth = np.repeat([0, 1], [len(own), len(strange)])
    cut = float(np.quantile(validation, KEPT))
    passed = float((strange <= np.quantile(own, KEPT)).mean())
    area = roc_auc(np.concatenate([own, strange]), truth)
    return Detection(name, area, passed, cut, float((strange > cut).mean()), float((own > cut).mean()))


def scores_of(trained: TrainedRun, train: Examples, labels: np.ndarray) -> Callable[[Examples], dict[str, np.ndarray]]:
    """The scores of any examples, each float64 [N].

    They are 1 - the largest probability (Hendrycks and Gimpel 2017), the energy of the logits (Liu et al. 2020), and,
    of what the last layer reads, Mahalanobis' distance to the nearest mean of a class with one covariance (Lee et al.
    2018) and the distance to the tenth nearest training example, both of length 1 (Sun et al. 2022).

    Args:
        trained: the model.
        train: training examples as the model takes them.
        labels: theirs.
    """
    known = np.asarray(trained.embed(train), np.float64)
    distance, unit = mahalanobis(known, labels), _unit(known)

    def scores(inputs: Examples) -> dict[str, np.ndarray]:
        logits = np.asarray(trained.logits(inputs), np.float64)
        features = np.asarray(trained.embed(inputs), np.float64)
        largest = np.asarray(jax.nn.softmax(logits, axis=-1)).max(1)
        return {
            "max softmax": 1 - largest,
            "energy": -np.logaddexp.reduce(logits, axis=1),
            "mahalanobis": distance(features),
            "nearest neighbours": neighbour_distance(unit, _unit(features), NEIGHBOURS),
        }

    return scores


def mahalanobis(
    features: Float[np.ndarray, "n width"], labels: np.ndarray
) -> Callable[[Float[np.ndarray, "m width"]], Float[np.ndarray, " m"]]:
    """The squared distance to the nearest mean of a class, by the covariance within classes, whose diagonal is made
    larger by a thousandth of its mean: features of few examples are not of full rank."""
    classes = np.unique(labels)
    means = np.stack([features[labels == k].mean(0) for k in classes])
    centred = features - means[np.searchsorted(classes, labels)]
    covariance = centred.T @ centred / len(features)
    covariance += np.eye(len(covariance)) * max(1e-3 * float(np.trace(covariance)) / len(covariance), 1e-12)
    whiten = np.linalg.inv(np.linalg.cholesky(covariance)).T
    centres = means @ whiten

    def distance(given: np.ndarray) -> np.ndarray:
        white = given @ whiten
        return np.asarray(_squares(white, centres).min(1))

    return distance


def neighbour_distance(known: np.ndarray, given: np.ndarray, k: int) -> np.ndarray:
    """The distance of each of [m, width] to its k-th nearest of [n, width]."""
    parts = [given[start : start + 512] for start in range(0, len(given), 512)]
    at = min(k, len(known)) - 1
    found = [np.partition(_squares(part, known), at, axis=1)[:, at] for part in parts]
    return np.asarray(np.sqrt(np.concatenate(found)))


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    found = (a * a).sum(1)[:, None] - 2 * a @ b.T + (b * b).sum(1)[None]
    return np.asarray(np.maximum(found, 0))


def _unit(features: np.ndarray) -> np.ndarray:
    return np.asarray(features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12))


# ------------------------------------------------------------------------------------------------------------ examples


def _rows(count: int) -> np.ndarray:
    """At most `MOST` rows, evenly over all."""
    return np.unique(np.linspace(0, count - 1, min(count, MOST)).astype(int))


def _some(dataset: Dataset, split: str) -> Examples:
    """Examples of a split as a model takes them."""
    rows = _rows(dataset.size(split))
    if dataset.texts.get(split):
        parts = [[texts[row] for row in rows.tolist()] for texts in dataset.texts[split]]
        return parts[0] if len(parts) == 1 else list(zip(*parts, strict=True))
    inputs = dataset.splits[split]["inputs"]
    if isinstance(inputs, np.ndarray):
        return np.asarray(inputs[rows])
    return np.stack([np.asarray(inputs[int(row)]) for row in rows])  # pictures that stay encoded


def examples_of(trained: TrainedRun, given: str) -> Examples:
    """The examples of a folder, a file, or packaged data, as the model takes them. Raises as `detect` does."""
    path, features = Path(given), trained.features
    if path.exists():
        suffixes = tuple(catalog.suffixes(features))
        files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.name.lower().endswith(suffixes))
        if not files:
            raise ConfigError("holds no examples", where=given, hint=f"files of these kinds: {', '.join(suffixes)}")
        read = [catalog.read_for_prediction(file, trained.config.data, features) for file in files]
        found = [example for each in read for number, example in enumerate(each.inputs) if number not in each.errors]
        return found[:MOST] if features.kind == "text" else np.stack([np.asarray(one) for one in found[:MOST]])
    if features.kind == "table":
        raise ConfigError("there is no such file", where=given, hint="give a file of rows with the run's columns")
    if not given.replace("_", "").isalnum():
        raise ConfigError("there is no such file or folder", where=given, hint="bigctl data lists packaged data")
    config = compose.compose([f"data={given}"], partial=True).config
    dataset = prepare.prepare(config.data)
    there = dataset.features
    if there.kind != features.kind or (features.kind == "image" and there.shape != features.shape):
        want, have = (
            f"{each.kind}s {'x'.join(map(str, each.shape)) if each.kind == 'image' else ''}".strip()
            for each in (features, there)
        )
        raise ConfigError(f"holds {have}, the model takes {want}", where=given, hint="choose data of the same shape")
    return _some(dataset, "test")
