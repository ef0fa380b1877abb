"""Logistic regression on frozen features: the head of a pretrained model, solved for rather than trained.

Features are computed once (`engine.features`), standardised, and the head is the minimum of cross-entropy and the
squared weights of the standardised problem, found by L-BFGS (Liu & Nocedal 1989). A step is the solution for one cost
of a mistake, begun from that of the step before; the best checkpoint on the validation split is the one that counts.
What comes out is an ordinary model: the standardisation is part of its head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from bigctl.recipes.image_cls import ImageCls
from flax import nnx
from jaxtyping import Array, Float

from bigctl.config import schema
from bigctl.data.dataset import Features
from bigctl.errors import ConfigError
from bigctl.models.layers import Unchanged
from bigctl.training.task import FEATURES, Batch, Network

Weights = dict[str, Array]
Carry = tuple[Weights, optax.OptState, Array, Array]
"""Of the search: weights, state of L-BFGS, steps so far, norm of the gradient."""
_TOLERANCE = 1e-5
"""Norm of the gradient of the mean loss at which a solution is taken."""


class ProbeTask(ImageCls):
    """`Probe`. In training its examples are features; it predicts from pictures as any recipe of images.

    Raises:
        ConfigError: if the model has no linear layer called `head`.
    """

    solves = True
    frozen = (r"^(?!head/)",)
    feature_width: int

    def __init__(self, config: schema.Config, features: Features, class_counts: np.ndarray | None = None):
        super().__init__(config, features, class_counts)
        self.probe = schema.Probe.require(config.recipe, by="ProbeTask")
        head = getattr(nnx.eval_shape(lambda: self.build(nnx.Rngs(0))), "head", None)
        if head is None or not hasattr(head, "kernel") or head.bias is None:
            message = f"model={config.model.kind} has no linear layer called `head`, with a bias"
            raise ConfigError(message, where="recipe.kind", hint="recipe=probe solves for that layer")
        self.feature_width = int(head.kernel.shape[0])

    def inputs(self, n: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {FEATURES: jax.ShapeDtypeStruct((n, self.feature_width), jnp.float32)}

    def exported_inputs(self, n: int) -> dict[str, jax.ShapeDtypeStruct]:
        return super().inputs(n)

    def augment(self, batch: Batch, key: jax.Array) -> Batch:
        return batch

    def outputs(self, model: Network, batch: Batch, **options: jax.Array) -> jax.Array:
        if FEATURES not in batch:
            return super().outputs(model, batch, **options)
        logits: jax.Array = cast(Any, model).head(batch[FEATURES])
        return logits

    def seen(self, batch: Batch) -> Batch:
        return batch if FEATURES in batch else super().seen(batch)

    def scored_outputs(self, model: Network, batch: Batch) -> Float[Array, "batch outputs"]:
        return self.outputs(model, batch) if FEATURES in batch else super().scored_outputs(model, batch)

    def compute_features(self, model: nnx.Module, batch: Batch) -> Float[Array, "batch features"]:
        """What the head reads of each picture, float32; the model loses its head."""
        cast(Any, model).head = Unchanged()
        found = super().outputs(cast(Network, model), self.seen(batch))
        return found.astype(jnp.float32).reshape(len(found), -1)

    def solve(self, model: nnx.Module, batch: Batch, step: jax.Array, hparams: Mapping[str, Any]) -> None:
        head, x = cast(Any, model).head, batch[FEATURES]
        mean, deviation = x.mean(0), x.std(0)
        deviation = jnp.where(deviation > 0, deviation, 1.0)
        standard = (x - mean) / deviation
        cost = jnp.asarray(self.probe.costs, jnp.float32)[jnp.minimum(step, len(self.probe.costs) - 1)]

        def loss(weights: Weights) -> Array:
            total, weight = self.head.loss(standard @ weights["kernel"] + weights["bias"], batch, hparams)["loss"]
            return total / weight + jnp.square(weights["kernel"]).sum() / (2 * cost * len(x))

        kernel, bias = head.kernel[...] * deviation[:, None], head.bias[...] + mean @ head.kernel[...]
        begun = {"kernel": jnp.where(step > 0, kernel, 0.0), "bias": jnp.where(step > 0, bias, 0.0)}
        found = _minimum(loss, begun, self.probe.iterations)
        head.kernel[...] = found["kernel"] / deviation[:, None]
        head.bias[...] = found["bias"] - mean @ head.kernel[...]


def _minimum(loss: Callable[[Weights], Array], begun: Weights, iterations: int) -> Weights:
    """Where a convex function is least, from `begun` on, by L-BFGS with a line search."""
    rule = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def going(carry: Carry) -> Array:
        _, state, number, slope = carry
        del state
        return (number < iterations) & (slope > _TOLERANCE)

    def step(carry: Carry) -> Carry:
        weights, state, number, _ = carry
        value, grad = value_and_grad(weights, state=state)
        updates, state = rule.update(grad, state, weights, value=value, grad=grad, value_fn=loss)
        return optax.apply_updates(weights, updates), state, number + 1, optax.global_norm(grad)

    start = (begun, rule.init(begun), jnp.int32(0), jnp.float32(jnp.inf))
    found: Weights = jax.lax.while_loop(going, step, start)[0]
    return found
