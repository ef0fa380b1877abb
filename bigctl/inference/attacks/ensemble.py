"""Attacks one after the other, and what they tell: robust accuracy by eps, and whether gradients are masked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bigctl.inference.attacks import gradient
from bigctl.inference.attacks.square import square
from bigctl.inference.attacks.threat import Threat
from bigctl.training.state import Tree

BATCH = 128
Attack = Callable[..., Array]
Ask = Callable[[Tree, Array], Array]
"""Weights and inputs [n, ...] to logits [n, classes]."""
PROBED = 64
"""Examples that the attack without bounds is tried on."""


@dataclass(frozen=True)
class Effort:
    """How hard is attacked: steps of PGD and of APGD, restarts of PGD, queries of Square."""

    steps: int = 40
    restarts: int = 2
    queries: int = 500


USUAL = Effort()


@dataclass(frozen=True)
class Point:
    """What is left at one eps.

    Attributes:
        eps: of the ball.
        robust: share of all examples that no attack has made wrong.
        alone: accuracy under FGSM, and under PGD, each by itself.
        left: share of all examples that are right after each attack, in their order.
    """

    eps: float
    robust: float
    alone: dict[str, float]
    left: dict[str, float]


@dataclass
class Found:
    """All of a norm.

    Attributes:
        clean: accuracy without attack.
        points: one an eps, smallest first.
        warnings: why the numbers may be too good: gradients that tell nothing.
        broken_at: the smallest eps at which each example is wrong, infinite where at none, float [N].
        attacked: what was made of it there, [N, ...].
    """

    clean: float
    points: list[Point] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    broken_at: np.ndarray = field(default_factory=lambda: np.zeros(0))
    attacked: np.ndarray = field(default_factory=lambda: np.zeros(0))


class Arena:
    """A model under attack: its logits compiled with each attack, batch by batch.

    Args:
        ask: weights and inputs to logits.
        weights: of the model.
        threat: what an attacker may do.
        seed: of random starts and searches.
    """

    def __init__(self, ask: Ask, weights: Tree, threat: Threat, seed: int = 0):
        self.ask, self.weights, self.threat, self.seed = ask, weights, threat, seed
        self._compiled: dict[str, Callable[..., Array]] = {}

    def wrong(self, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Which inputs the model has wrong, bool [n]."""

        def judge(logits: gradient.Logits, threat: Threat, x: Array, y: Array, eps: Array, key: Array) -> Array:
            return ~(gradient.margin(logits(x), y) < 0)  # an answer that is no number is wrong too

        return self._run("wrong", judge, x, labels, 0.0)

    def attack(self, name: str, attack: Attack, x: np.ndarray, labels: np.ndarray, eps: float) -> np.ndarray:
        """What an attack makes of inputs, [n, ...]."""
        return self._run(name, attack, x, labels, eps)

    def _run(self, name: str, attack: Attack, x: np.ndarray, labels: np.ndarray, eps: float) -> np.ndarray:
        if name not in self._compiled:

            def run(weights: Tree, x: Array, y: Array, eps: Array, key: Array) -> Array:
                return attack(partial(self.ask, weights), self.threat, x, y, eps, key)

            self._compiled[name] = jax.jit(run)
        found = []
        for start in range(0, len(x), BATCH):
            rows = np.minimum(np.arange(start, start + BATCH), len(x) - 1)
            key = jax.random.fold_in(jax.random.key(self.seed), start)
            made = self._compiled[name](self.weights, x[rows], labels[rows], jnp.float32(eps), key)
            found.append(np.asarray(made)[: len(x) - start])
        return np.concatenate(found) if found else np.zeros(0, bool)


def attacks(classes: int, effort: Effort) -> dict[str, Attack]:
    """The ensemble, in its order; DLR needs three classes."""
    found: dict[str, Attack] = {
        "FGSM": gradient.fgsm,
        "PGD": partial(gradient.pgd, steps=effort.steps, restarts=effort.restarts),
        "APGD-CE": partial(gradient.apgd, steps=effort.steps),
    }
    if classes > 2:
        found["APGD-DLR"] = partial(gradient.apgd, loss=gradient.dlr, steps=effort.steps)
    return {**found, "Square": partial(square, queries=effort.queries)}


def evaluate(
    ask: Ask, weights: Tree, x: np.ndarray, labels: np.ndarray, threat: Threat, values: Sequence[float],
    *, classes: int, effort: Effort = USUAL, seed: int = 0,
) -> Found:  # fmt: skip
    """Accuracy under attack at each eps, and whether gradients are masked.

    FGSM and PGD are tried on all examples that are right, all later attacks on what is still right.

    Args:
        ask: weights and inputs to logits.
        weights: of the model.
        x: float32 [N, ...], within the bounds of the threat.
        labels: int [N].
        threat: norm and bounds.
        values: eps, smallest first.
        classes: how many there are.
        effort: see there.
        seed: of random starts and searches.
    """
    arena, all_ = Arena(ask, weights, threat, seed), attacks(classes, effort)
    right = ~arena.wrong(x, labels)
    found = Found(float(right.mean()), broken_at=np.where(right, np.inf, 0.0), attacked=x.copy())
    masked: dict[str, str] = {}
    for eps in values:
        point, robust, attacked, late = _at(arena, all_, x, labels, right, eps)
        found.points.append(point)
        fresh = ~robust & np.isinf(found.broken_at)
        found.attacked[fresh], found.broken_at[fresh] = attacked[fresh], eps
        masked |= {key: said for key, said in told(point, late, len(x)).items() if key not in masked}
    masked |= _probe(arena, all_, x, labels, right)
    found.warnings = list(masked.values())
    return found


def _at(
    arena: Arena, all_: dict[str, Attack], x: np.ndarray, labels: np.ndarray, right: np.ndarray, eps: float
) -> tuple[Point, np.ndarray, np.ndarray, dict[str, int]]:
    """One eps: the point, which are robust, what was made of each, and how many each late attack has broken."""
    robust, attacked = right.copy(), x.copy()
    alone, left, late = {}, {}, {}
    for name, attack in all_.items():
        first = name in ("FGSM", "PGD")
        rows = np.flatnonzero(right if first else robust)
        if len(rows):
            made = arena.attack(name, attack, x[rows], labels[rows], eps)
            broken = arena.wrong(made, labels[rows])
            fresh = rows[broken & robust[rows]]
            attacked[fresh] = made[broken & robust[rows]]
            if first:
                alone[name] = float((len(rows) - broken.sum()) / len(x))
            else:
                late[name] = len(fresh)
            robust[fresh] = False
        elif first:
            alone[name] = 0.0
        left[name] = float(robust.mean())
    return Point(float(eps), float(robust.mean()), alone, left), robust, attacked, late


def told(point: Point, late: dict[str, int], count: int) -> dict[str, str]:
    """Signs of masked gradients at one eps (Athalye et al. 2018), by kind: what should not be, with its numbers."""
    found = {}
    at = f"at eps {point.eps:g}"
    gap = point.alone["PGD"] - point.alone["FGSM"]
    if gap * count > _noise(count):
        found["steps"] = (
            f"one step (FGSM, {point.alone['FGSM']:.3f}) is stronger than many (PGD, {point.alone['PGD']:.3f}) {at}"
        )
    before = point.left["PGD"]
    if (broken := late.get("APGD-DLR", 0)) > _noise(count) + 0.1 * before * count:
        found["scale"] = (
            f"a loss that no scaling changes (APGD-DLR) breaks {broken} examples that the cross-entropy cannot {at}: "
            "the softmax is saturated"
        )
    if (broken := late.get("Square", 0)) > _noise(count) + 0.1 * (point.robust * count + broken):
        found["black box"] = f"the black box (Square) breaks {broken} examples that no gradient could {at}"
    return found


def _noise(count: int) -> float:
    """Examples by which attacks may differ by chance."""
    return max(2.0, 0.01 * count)


def _probe(
    arena: Arena, all_: dict[str, Attack], x: np.ndarray, labels: np.ndarray, right: np.ndarray
) -> dict[str, str]:
    """What inputs that may become anything, and gradients that are 0, tell."""
    rows = np.flatnonzero(right)[:PROBED]
    found: dict[str, str] = {}
    if not len(rows):
        return found

    def flat(logits: gradient.Logits, threat: Threat, x: Array, y: Array, eps: Array, key: Array) -> Array:
        return gradient.zero_gradients(logits, x, y)

    zero = arena.attack("flat", flat, x[rows], labels[rows], 0.0)
    if zero.mean() > 0.05:
        found["zero"] = f"the gradient of the loss is 0 of {int(zero.sum())} of {len(rows)} examples"
    made = arena.attack("PGD", all_["PGD"], x[rows], labels[rows], arena.threat.widest(x.shape[1:]))
    left = int((~arena.wrong(made, labels[rows])).sum())
    if left > max(1, 0.05 * len(rows)):
        found["unbounded"] = f"PGD leaves {left} of {len(rows)} examples right that may become any input at all"
    return found
