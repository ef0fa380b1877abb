"""What a run with canaries (`train.privacy.canaries`) proves about its privacy: the audit by one training of Steinke,
Nasr and Jagielski 2023 (arXiv 2305.08846).

Each canary was in the training split or not by the toss of a coin. Of a model of (epsilon, delta) nobody guesses more
coins right than that many tosses of a coin with e^epsilon / (1 + e^epsilon) for heads, but for what delta allows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from bigctl.data.canaries import Canaries

SHARES = (
    (0.01, 0.0), (0.02, 0.0), (0.05, 0.0), (0.1, 0.0), (0.01, 0.01), (0.025, 0.025), (0.05, 0.05), (0.1, 0.1),
    (0.25, 0.25), (0.5, 0.5),
)  # fmt: skip
"""Of the canaries that are guessed to be inside and outside, those with the largest and the smallest scores; about the
others nothing is said. The best of these is told, at the confidence of all of them together (Bonferroni)."""
_MOST, _HALVINGS = 100.0, 40


@dataclass(frozen=True)
class ByCanaries:
    """What canaries prove.

    Attributes:
        epsilon: at this confidence no smaller one fits the guesses; 0 where they prove nothing.
        confidence: of that.
        count, inside: canaries, and those that were trained on.
        guesses, right: how many were guessed, and how many of these rightly.
    """

    epsilon: float
    confidence: float
    count: int
    inside: int
    guesses: int
    right: int


def proven(
    scores: Float[np.ndarray, " canaries"], inside: Bool[np.ndarray, " canaries"], delta: float, confidence: float
) -> ByCanaries:
    """What scores prove.

    Args:
        scores: large where a canary looks as if it was trained on, of the model alone.
        inside: whether it was.
        delta: of the promise.
        confidence: of what is proven.
    """
    count, miss = len(scores), (1 - confidence) / len(SHARES)
    ordered = inside[np.argsort(-scores, kind="stable")]
    tried = []
    for share in SHARES:
        first, last = (int(np.floor(part * count)) for part in share)
        right = int(ordered[:first].sum() + (~ordered[count - last :]).sum())
        tried.append((lower_bound(count, first + last, right, delta, miss), first + last, right))
    epsilon, guesses, right = max(tried)  # where nothing is proven, that of the most guesses
    return ByCanaries(epsilon, confidence, count, int(inside.sum()), guesses, right)


def lower_bound(count: int, guesses: int, right: int, delta: float, miss: float) -> float:
    """The largest epsilon under which so many right guesses, or more, have a probability below `miss`."""
    if p_value(count, guesses, right, 0.0, delta) >= miss:
        return 0.0
    low, high = 0.0, 1.0
    while high < _MOST and p_value(count, guesses, right, high, delta) < miss:
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(count, guesses, right, middle, delta) < miss else (low, middle)
    return low


def p_value(count: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """The largest probability of so many right guesses, or more, about so many canaries under (epsilon, delta).

    Appendix D of the paper: P(Binomial(guesses, q) >= right) + 2 count delta max over i of P(right > Binomial >= right
    - i) / i, with q = e^epsilon / (1 + e^epsilon).
    """
    from scipy import special

    if right == 0:
        return 1.0
    least = np.arange(right, -1, -1, dtype=np.float64)  # right, right - 1, ..., 0
    tails = np.ones(right + 1)
    tails[:-1] = special.betainc(least[:-1], guesses - least[:-1] + 1, special.expit(epsilon))
    most = float(((tails[1:] - tails[0]) / np.arange(1, right + 1)).max())
    return min(1.0, float(tails[0]) + 2 * count * delta * most)


def scores_of(canaries: Canaries, probabilities: Float[np.ndarray, "examples classes"]) -> Float[np.ndarray, " m"]:
    """The logarithm of the probability of each canary's wrong label, by those of the whole training split as it was."""
    found = np.asarray(probabilities, np.float64)[canaries.rows, canaries.labels]
    return np.asarray(np.log(np.maximum(found, 1e-30)))
