"""How well a model tells whether an example was in its training split, and what that proves about its privacy.

A model of (epsilon, delta) cannot let anyone tell members by more than TPR <= e^epsilon FPR + delta, and the same of
the opposite guess (Kairouz, Oh & Viswanath 2015): rates that are measured prove an epsilon from below, by exact
intervals (Clopper & Pearson 1934; the audit of Jagielski, Ullman & Oprea 2020). Nobody's privacy is worse than that
because of it: a weak attack proves little.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from bigctl.engine import privacy
from bigctl.errors import ConfigError
from bigctl.inference import canaries, measured
from bigctl.inference.canaries import ByCanaries
from bigctl.inference.trained import TrainedRun

Scores = Float[np.ndarray, " examples"]
Counts = np.ndarray
GUESSES = ("member", "not a member")
LEAST = 50
"""Examples of each kind that an audit needs."""
_CANDIDATES, _POINTS = 400, 200
ATTACKS = ("loss", "loss within the class")


@dataclass(frozen=True)
class Proven:
    """An epsilon from below.

    Attributes:
        epsilon: at this confidence no smaller one fits the rates; 0 where they prove nothing.
        confidence: of that.
        guess: what is guessed of scores beyond the threshold, one of `GUESSES`.
        threshold: in the score.
        right: how many of those that are what is guessed are beyond it, of `count`.
        wrong: how many of the others are, of `others`.
    """

    epsilon: float
    confidence: float
    guess: str
    threshold: float
    right: int
    count: int
    wrong: int
    others: int


@dataclass(frozen=True)
class Attack:
    """One way of telling members.

    Attributes:
        name: one of `ATTACKS`.
        auc: the probability that a member scores above one that is none.
        tpr: of members that are found where 1% and 0.1% of the others are taken for such.
        roc: points (false positive rate, true positive rate).
    """

    name: str
    auc: float
    tpr: dict[str, float]
    roc: list[tuple[float, float]]


@dataclass(frozen=True)
class Audit:
    """What came out.

    Attributes:
        split: that is compared with the training split.
        members, others: examples of both.
        attacks: each by all examples.
        proven: by the better attack; it, its threshold and its guess are chosen on one half of the examples, and the
            rates counted on the other. None, and no attacks, where canaries alone are asked, as one of the splits has
            fewer than `LEAST` examples.
        promise: what the training has promised at this step, see `engine.privacy.spent`; None where nothing is.
        canaries: what those of the run prove; None where it has none. They count in nothing else.
    """

    split: str
    members: int
    others: int
    delta: float
    attacks: list[Attack]
    proven: Proven | None
    promise: dict[str, Any] | None
    canaries: ByCanaries | None = None

    @property
    def holds(self) -> bool:
        """Whether nothing was proven that contradicts the promise."""
        found = [each.epsilon for each in (self.proven, self.canaries) if each is not None]
        return self.promise is None or max(found) <= self.promise["epsilon"]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "holds": self.holds}


def audit(trained: TrainedRun, split: str, *, confidence: float = 0.95, delta: float = 1e-5, seed: int = 0) -> Audit:
    """Attack a run by its losses.

    Args:
        trained: of one class an example.
        split: whose examples were not trained on, "validation" or "test".
        confidence: of what is proven.
        delta: of a run that has promised none.
        seed: which examples are in which half.

    Raises:
        ConfigError: for a run that predicts no single class, or with too few examples and no canaries.
        RunError: if the data has changed.
    """
    measured.require_classes(trained, "audit")
    data = privacy.planted(trained.config, trained.data())
    planted = data.canaries
    left_out = np.arange(0) if planted is None else planted.rows
    losses, labels = zip(_losses(trained, "train", left_out), _losses(trained, split), strict=True)
    few = min(map(len, losses)) < LEAST
    if few and planted is None:
        what = f"the {split} split has {len(losses[1])} examples, the training split {len(losses[0])}"
        raise ConfigError(what, where="--split", hint=f"an audit needs {LEAST} of each; another --split may have more")
    promise = privacy.spent(trained.config, data, trained.step)
    delta = float(promise["delta"]) if promise else delta
    attacks, proven = ([], None) if few else _attacked(losses, labels, delta, confidence, seed)
    by_canaries = None
    if planted is not None:
        told = canaries.scores_of(planted, trained.probabilities("train")[0])
        by_canaries = canaries.proven(told, planted.inside, delta, confidence)
    return Audit(split, len(losses[0]), len(losses[1]), delta, attacks, proven, promise, by_canaries)


def _attacked(
    losses: tuple[Scores, ...], labels: tuple[np.ndarray, ...], delta: float, confidence: float, seed: int
) -> tuple[list[Attack], Proven | None]:
    """Each attack by all examples, and what the better one proves."""
    scores = [dict(zip(ATTACKS, each, strict=True)) for each in _scores(losses, labels)]
    rng = np.random.default_rng(seed)
    halves = [rng.permutation(len(each)) < len(each) // 2 for each in losses]
    proven, best = None, -1.0
    for name in ATTACKS:
        found = proven_by(scores[0][name], scores[1][name], halves[0], halves[1], delta, confidence)
        if found[0] > best:
            best, proven = found
    return [attack_of(name, scores[0][name], scores[1][name]) for name in ATTACKS], proven


def _losses(trained: TrainedRun, split: str, without: Counts | None = None) -> tuple[Scores, np.ndarray]:
    """Cross-entropy of each example of a split, and its label; but for some rows."""
    told, labels = trained.probabilities(split)
    found = np.asarray(told, np.float64)[np.arange(len(labels)), labels]
    losses = -np.log(np.maximum(found, 1e-30))
    return (losses, labels) if without is None else (np.delete(losses, without), np.delete(labels, without))


def _scores(losses: tuple[Scores, ...], labels: tuple[np.ndarray, ...]) -> list[tuple[Scores, Scores]]:
    """Of members and others, large where an example looks like a member: minus the loss (Yeom et al. 2018), and how far
    it is below the median of those of its class that are no members."""
    usual = np.full(int(max(each.max() for each in labels)) + 1, float(np.median(losses[1])))
    for label in np.unique(labels[1]):
        usual[label] = np.median(losses[1][labels[1] == label])
    return [(-loss, usual[label] - loss) for loss, label in zip(losses, labels, strict=True)]


def attack_of(name: str, members: Scores, others: Scores) -> Attack:
    """An attack by all examples."""
    thresholds = np.unique(np.concatenate([members, others]))[::-1]
    tpr, fpr = (1 - np.searchsorted(np.sort(each), thresholds) / len(each) for each in (members, others))
    tpr, fpr = np.concatenate([[0.0], tpr]), np.concatenate([[0.0], fpr])
    found = {f"{share:g}": float(tpr[fpr <= share].max()) for share in (0.01, 0.001)}
    some = np.unique(np.linspace(0, len(fpr) - 1, _POINTS).astype(int))
    roc = [(float(fpr[place]), float(tpr[place])) for place in some]
    return Attack(name, float(np.trapezoid(tpr, fpr)), found, roc)


def proven_by(
    members: Scores, others: Scores, first: np.ndarray, second: np.ndarray, delta: float, confidence: float
) -> tuple[float, Proven]:
    """What scores prove, and what the half that chose the threshold would have had them prove.

    Args:
        members, others: scores, large where an example looks like a member.
        first, second: which of the members and of the others choose the threshold; the rest are counted.
        delta: of the promise.
        confidence: of what is proven.
    """
    thresholds = np.quantile(np.concatenate([members[first], others[second]]), np.linspace(0, 1, _CANDIDATES))
    tried = [(guess, _counted(members[first], others[second], guess, thresholds)) for guess in GUESSES]
    bounds = np.stack([lower_bound(*counted, delta, confidence) for _, counted in tried])
    which, place = np.unravel_index(int(bounds.argmax()), bounds.shape)
    guess, threshold = GUESSES[which], thresholds[place : place + 1]
    counted = _counted(members[~first], others[~second], guess, threshold)
    right, wrong = int(counted[0][0]), int(counted[2][0])
    epsilon = float(lower_bound(*counted, delta, confidence)[0])
    told = Proven(epsilon, confidence, guess, float(threshold[0]), right, counted[1], wrong, counted[3])
    return float(bounds.max()), told


def _counted(members: Scores, others: Scores, guess: str, thresholds: np.ndarray) -> tuple[Counts, int, Counts, int]:
    """How many guesses are right and of how many, wrong and of how many, at each threshold."""
    inside, outside = np.sort(members), np.sort(others)
    if guess == GUESSES[0]:
        above = (len(each) - np.searchsorted(each, thresholds) for each in (inside, outside))
        right, wrong = above
        return right, len(members), wrong, len(others)
    wrong, right = (np.searchsorted(each, thresholds, side="right") for each in (inside, outside))
    return right, len(others), wrong, len(members)


def lower_bound(right: Counts, count: int, wrong: Counts, others: int, delta: float, confidence: float) -> Scores:
    """log((TPR - delta) / FPR) with the rate of right guesses from below and that of wrong ones from above, each by an
    exact one-sided interval at half of what the confidence leaves; 0 where that is no more."""
    from scipy import special

    miss = (1 - confidence) / 2
    right, wrong = np.asarray(right, np.float64), np.asarray(wrong, np.float64)
    least = np.where(right > 0, special.betaincinv(np.maximum(right, 1), count - right + 1, miss), 0.0)
    most = np.where(wrong < others, special.betaincinv(wrong + 1, np.maximum(others - wrong, 1), 1 - miss), 1.0)
    return np.asarray(np.log(np.maximum((least - delta) / most, 1.0)))
