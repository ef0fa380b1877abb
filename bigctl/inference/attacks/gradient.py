"""Attacks by the gradient of the loss: FGSM, PGD and APGD. Pure functions of arrays, for `jax.jit`.

Each takes the logits as a function of inputs and gives inputs within the ball, of each example one that the model has
wrong if it has come by any, else the one with the largest loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from bigctl.inference.attacks.threat import Threat

Logits = Callable[[Array], Float[Array, "n classes"]]
Loss = Callable[[Float[Array, "n classes"], Int[Array, " n"]], Float[Array, " n"]]


def cross_entropy(logits: Float[Array, "n classes"], labels: Int[Array, " n"]) -> Float[Array, " n"]:
    return jnp.asarray(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def margin(logits: Float[Array, "n classes"], labels: Int[Array, " n"]) -> Float[Array, " n"]:
    """Largest logit of another class minus that of the true one: positive where the model is wrong."""
    own = jax.nn.one_hot(labels, logits.shape[-1]) > 0
    return jnp.where(own, -jnp.inf, logits).max(1) - jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]


def dlr(logits: Float[Array, "n classes"], labels: Int[Array, " n"]) -> Float[Array, " n"]:
    """The margin over the gap between the largest and the third largest logit (Croce and Hein 2020), which no scaling
    of the logits changes; of three classes or more."""
    ordered = jnp.sort(logits, axis=1)
    return margin(logits, labels) / (ordered[:, -1] - ordered[:, -3] + 1e-12)


def _losses(logits: Logits, loss: Loss, labels: Array) -> Callable[[Array], tuple[Array, Array, Array]]:
    """A function of inputs that gives the loss of each, which are wrong, and the gradient of the loss."""

    def summed(x: Array) -> tuple[Array, tuple[Array, Array]]:
        found = logits(x)
        each = loss(found, labels)
        return each.sum(), (each, margin(found, labels) >= 0)

    gradient = jax.grad(summed, has_aux=True)

    def at(x: Array) -> tuple[Array, Array, Array]:
        grads, (each, wrong) = gradient(x)
        return each, wrong, grads

    return at


def _each(mask: Bool[Array, " n"], like: Array) -> Array:
    return mask.reshape(-1, *[1] * (like.ndim - 1))


class _Best(NamedTuple):
    """What is given back so far: inputs, whether they are wrong, and their loss."""

    x: Array
    wrong: Array
    loss: Array

    def with_(self, x: Array, wrong: Array, loss: Array) -> _Best:
        better = jnp.where(wrong == self.wrong, loss > self.loss, wrong)
        return _Best(jnp.where(_each(better, x), x, self.x), self.wrong | wrong, jnp.where(better, loss, self.loss))


def zero_gradients(logits: Logits, x: Array, labels: Array) -> Bool[Array, " n"]:
    """Of which inputs the gradient of the cross-entropy is 0 or not finite."""
    _, _, gradient = _losses(logits, cross_entropy, labels)(x)
    size = jnp.abs(gradient).max(tuple(range(1, x.ndim)))
    return ~(size > 0) | ~jnp.isfinite(size)


def fgsm(logits: Logits, threat: Threat, x: Array, labels: Array, eps: Array | float, key: Array) -> Array:
    """One step as far as the ball goes (Goodfellow et al. 2015)."""
    _, _, gradient = _losses(logits, cross_entropy, labels)(x)
    return threat.inside(x + eps * threat.uphill(gradient), x, eps)


def pgd(
    logits: Logits, threat: Threat, x: Array, labels: Array, eps: Array | float, key: Array,
    *, steps: int = 40, restarts: int = 2,
) -> Array:  # fmt: skip
    """Projected gradient ascent on the cross-entropy (Madry et al. 2018), steps of 2.5 eps / `steps`; the first of the
    restarts begins at the input, all others at a random point of the ball."""
    at = _losses(logits, cross_entropy, labels)
    length = 2.5 * eps / steps

    def step(_: Array, carry: tuple[Array, _Best]) -> tuple[Array, _Best]:
        here, best = carry
        loss, wrong, gradient = at(here)
        best = best.with_(here, wrong, loss)
        return threat.inside(here + length * threat.uphill(gradient), x, eps), best

    def restart(number: Array, best: _Best) -> _Best:
        begun = jnp.where(number == 0, x, threat.start(jax.random.fold_in(key, number), x, eps))
        here, best = jax.lax.fori_loop(0, steps, step, (begun, best))
        loss, wrong, _ = at(here)
        return best.with_(here, wrong, loss)

    found: _Best = jax.lax.fori_loop(0, restarts, restart, _nothing(x))
    return found.x


def _nothing(x: Array) -> _Best:
    return _Best(x, jnp.zeros(len(x), bool), jnp.full(len(x), -jnp.inf, jnp.float32))


class _Walk(NamedTuple):
    """Where APGD is: inputs, the last ones, the gradient, the highest point so far and what was seen since the last
    checkpoint."""

    x: Array
    before: Array
    gradient: Array
    top: Array
    top_gradient: Array
    top_loss: Array
    last_loss: Array
    step: Array
    rises: Array
    checked_loss: Array
    halved: Array
    best: _Best


def apgd(
    logits: Logits, threat: Threat, x: Array, labels: Array, eps: Array | float, key: Array,
    *, loss: Loss = cross_entropy, steps: int = 50,
) -> Array:  # fmt: skip
    """Auto-PGD (Croce and Hein 2020): momentum 0.75, steps that begin with 2 eps and are halved, and the walk taken up
    again at its highest point, where too few of the steps since the last checkpoint went up, or nothing higher was
    found and the step was not halved there."""
    at, (checks, spans) = _losses(logits, loss, labels), checkpoints(steps)
    here = threat.start(key, x, eps)
    value, wrong, gradient = at(here)
    size = jnp.full((len(x), *[1] * (x.ndim - 1)), 2.0) * eps
    none = jnp.zeros(len(x), jnp.int32)
    begun = _Walk(
        here, here, gradient, here, gradient, value, value, size, none, value, jnp.ones(len(x), bool),
        _nothing(x).with_(here, wrong, value),
    )  # fmt: skip

    def step(number: Array, walk: _Walk) -> _Walk:
        share = jnp.where(number > 0, 0.75, 1.0)
        onward = threat.inside(walk.x + walk.step * threat.uphill(walk.gradient), x, eps)
        moved = walk.x + share * (onward - walk.x) + (1 - share) * (walk.x - walk.before)
        moved = threat.inside(moved, x, eps)
        value, wrong, gradient = at(moved)
        higher = value > walk.top_loss
        new = walk._replace(
            x=moved, before=walk.x, gradient=gradient,
            top=jnp.where(_each(higher, x), moved, walk.top),
            top_gradient=jnp.where(_each(higher, x), gradient, walk.top_gradient),
            top_loss=jnp.maximum(value, walk.top_loss), last_loss=value,
            rises=walk.rises + (value > walk.last_loss), best=walk.best.with_(moved, wrong, value),
        )  # fmt: skip
        looked: _Walk = jax.lax.cond(
            jnp.asarray(checks)[number], lambda w: check(w, jnp.asarray(spans)[number]), lambda w: w, new
        )
        return looked

    def check(walk: _Walk, span: Array) -> _Walk:
        stuck = ~walk.halved & (walk.checked_loss >= walk.top_loss)
        halve = (walk.rises <= 0.75 * span) | stuck
        back = _each(halve, x)
        return walk._replace(
            x=jnp.where(back, walk.top, walk.x), gradient=jnp.where(back, walk.top_gradient, walk.gradient),
            step=jnp.where(back, walk.step / 2, walk.step), rises=jnp.zeros_like(walk.rises),
            checked_loss=walk.top_loss, halved=halve,
        )  # fmt: skip

    found: _Walk = jax.lax.fori_loop(0, steps, step, begun)
    return found.best.x


def checkpoints(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """After which steps APGD looks back, bool [steps], and over how many, int [steps]: 22% of all at first, then 3%
    less each time, 6% at least."""
    span, least, less = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    checks, spans, count = np.zeros(steps, bool), np.ones(steps, np.int32), 0
    for number in range(steps):
        count += 1
        if count == span:
            checks[number], spans[number] = True, span
            span, count = max(span - less, least), 0
    return checks, spans
