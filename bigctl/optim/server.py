"""What the server of federated training makes of the average of its clients' updates.

The average comes as a gradient would, with its sign turned round: these rules take steps against it. Adaptive ones are
those of Reddi et al. 2021 (Algorithm 2), which unlike Adam correct no bias and begin with squares of tau^2.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from bigctl.config import schema


def server_rule(config: schema.Federated) -> optax.GradientTransformation:
    """The rule that `train.federated.server` names."""
    rate = optax.scale(-config.server_lr)
    if config.server == "avg":
        return rate
    if config.server == "momentum":  # FedAvgM: Hsu et al. 2019
        return optax.chain(optax.trace(config.server_momentum), rate)
    return optax.chain(_adaptive(config), rate)


def _adaptive(config: schema.Federated) -> optax.GradientTransformation:
    decay, tau = config.server_beta2, config.server_tau

    def init(params: PyTree) -> dict[str, PyTree]:
        return {"mean": optax.tree.zeros_like(params), "squares": optax.tree.full_like(params, tau**2)}

    def squared(total: jax.Array, update: jax.Array) -> jax.Array:
        new = jnp.square(update)
        if config.server == "adagrad":
            return total + new
        if config.server == "yogi":
            return total - (1 - decay) * new * jnp.sign(total - new)
        return decay * total + (1 - decay) * new

    def update(
        updates: PyTree, state: dict[str, PyTree], params: PyTree | None = None
    ) -> tuple[PyTree, dict[str, PyTree]]:
        b1 = config.server_momentum
        mean = jax.tree.map(lambda m, u: b1 * m + (1 - b1) * u, state["mean"], updates)
        squares = jax.tree.map(squared, state["squares"], updates)
        scaled = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + tau), mean, squares)
        return scaled, {"mean": mean, "squares": squares}

    return optax.GradientTransformation(init, update)
