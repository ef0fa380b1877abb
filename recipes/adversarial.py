"""Training on inputs that are moved against the model: PGD, fast FGSM and TRADES."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from bigctl import randomness
from bigctl.config import schema

Pixels = Float[Array, "batch height width channels"]
Logits = Callable[[Pixels], Float[Array, "batch classes"]]
JUDGED = 10
"""Steps of PGD that an evaluation takes at least."""
_PURPOSE = 7
"""What the key of augmentation is folded with for the start of an attack."""


class Adversary:
    """Moves pictures, pixels from 0 to 1, within a ball around each.

    Args:
        config: `train.adversarial`.
    """

    def __init__(self, config: schema.Adversarial):
        self.config, self.trades = config, config.method == "trades"

    def eps(self, step: Array | int) -> Array | float:
        """How far the update number `step`, counted from 0, moves pictures: over the warmup more and more."""
        if not self.config.warmup:
            return self.config.eps
        return self.config.eps * jnp.minimum(1.0, (step + 1) / self.config.warmup)

    def trained_on(
        self, logits: Logits, x: Pixels, labels: Int[Array, " batch"], key: Array, numbers: Array, step: Array | int = 0
    ) -> Pixels:
        """What a step trains on, no function of the weights.

        PGD begins at a random point of the ball and takes `steps` of 2.5 eps / steps (Madry et al. 2018), fast takes
        one of 1.25 eps (Wong et al. 2020); TRADES begins beside the picture and climbs the divergence from what the
        model says of that (Zhang et al. 2019).

        Args:
            logits: of the model as it evaluates.
            x: pictures.
            labels: theirs.
            key: of the step's augmentation; the start is drawn for each example by its number.
            numbers: of the examples in the global batch.
            step: of the training, counted from 0.
        """
        eps = self.eps(step)
        keys = randomness.per_example(jax.random.fold_in(key, _PURPOSE), numbers)
        if self.trades:
            said = jax.lax.stop_gradient(logits(x))
            noise = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:]))(keys)
            return self._climb(lambda z: divergence(said, logits(z)), x, x + 1e-3 * noise, self.config.steps, eps)
        fast = self.config.method == "fast"
        steps, share = (1, 1.25) if fast else (self.config.steps, None)
        return self._climb(_losses(logits, labels), x, self._start(x, keys, eps), steps, eps, share)

    def judged_on(self, logits: Logits, x: Pixels, labels: Int[Array, " batch"]) -> Pixels:
        """What an evaluation scores: PGD from the pictures themselves, nothing drawn."""
        steps, eps = max(JUDGED, self.config.steps), self.config.eps
        return self._climb(_losses(logits, labels), x, x, steps, eps)

    def _start(self, x: Pixels, keys: Array, eps: Array | float) -> Pixels:
        if self.config.norm == "linf":
            drawn = jax.vmap(lambda k: jax.random.uniform(k, x.shape[1:], minval=-eps, maxval=eps))(keys)
            return x + drawn
        drawn = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:]))(keys)
        far = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, 1), (1, 1, 1)))(keys)
        return x + eps * far * drawn / _length(drawn)

    def _climb(
        self, loss: Callable[[Pixels], Array], x: Pixels, begun: Pixels, steps: int, eps: Array | float,
        share: float | None = None,
    ) -> Pixels:  # fmt: skip
        length = eps * (2.5 / steps if share is None else share)
        gradient = jax.grad(lambda z: jnp.sum(loss(z)))

        def step(_: Array, here: Pixels) -> Pixels:
            grads = gradient(here)
            ahead = jnp.sign(grads) if self.config.norm == "linf" else grads / _length(grads)
            return self._inside(here + length * ahead, x, eps)

        found: Pixels = jax.lax.fori_loop(0, steps, step, self._inside(begun, x, eps))
        return jax.lax.stop_gradient(found)

    def _inside(self, moved: Pixels, x: Pixels, eps: Array | float) -> Pixels:
        apart = moved - x
        if self.config.norm == "linf":
            apart = jnp.clip(apart, -eps, eps)
        else:
            apart = apart * jnp.minimum(1.0, eps / _length(apart))
        return jnp.clip(x + apart, 0.0, 1.0)


def _losses(logits: Logits, labels: Int[Array, " batch"]) -> Callable[[Pixels], Array]:
    """The cross-entropy of each picture."""
    return lambda z: optax.softmax_cross_entropy_with_integer_labels(logits(z), labels)


def _length(x: Pixels) -> Array:
    return jnp.maximum(jnp.sqrt(jnp.square(x).sum((1, 2, 3), keepdims=True)), 1e-12)


def divergence(first: Float[Array, "batch classes"], second: Float[Array, "batch classes"]) -> Float[Array, " batch"]:
    """Kullback-Leibler divergence of the second's softmax from the first's [nats]."""
    one, two = jax.nn.log_softmax(first), jax.nn.log_softmax(second)
    return jnp.sum(jnp.exp(one) * (one - two), axis=-1)


def frozen(model: nnx.Module, ask: Callable[[Any, Pixels], Array]) -> Logits:
    """The model as a function of pictures alone: its weights are constants, and nothing in it changes."""
    structure, state = nnx.split(model)
    state = jax.lax.stop_gradient(state)
    return lambda x: ask(nnx.merge(structure, state), x)
