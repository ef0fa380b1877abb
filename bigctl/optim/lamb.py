"""LAMB (You et al. 2020): Adam whose update of each matrix is as long, relative to the learning rate, as the matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from bigctl.config import schema
from bigctl.optim.masks import Path, decays, stacked_axes
from bigctl.optim.optimizers import decay_and_rate

if TYPE_CHECKING:
    from bigctl.config.schema.optimizers import Hparams, Scalar


def lamb(
    config: schema.Lamb, hparams: Hparams, factor: Scalar, stacked: tuple[str, ...]
) -> tuple[optax.GradientTransformation, ...]:
    """Adam, weight decay, the trust ratio, the learning rate."""
    decay, rate = decay_and_rate(config, hparams, factor, stacked)
    ratio = scale_by_trust_ratio(stacked, vectors=bool(config.bias_decay))
    return optax.scale_by_adam(config.b1, config.b2, config.eps), decay, ratio, rate


def scale_by_trust_ratio(stacked: Sequence[str] = (), *, vectors: bool = False) -> optax.GradientTransformation:
    """An update times |w| / |update|, where neither is 0: of the leaves that weight decay acts on, as in the authors'
    code and in timm, so of `vectors` where they decay too; of a leaf [layers or experts, ...] that `stacked` names,
    each part by itself."""

    def scale(updates: PyTree, params: PyTree | None = None) -> PyTree:
        def scaled(path: Path, update: jax.Array, param: jax.Array, adapts: bool) -> jax.Array:
            if not (adapts or vectors):
                return update
            rule = _scaled
            for _ in range(stacked_axes(path, stacked)):
                rule = jax.vmap(rule)
            return rule(update, param)

        return jax.tree_util.tree_map_with_path(scaled, updates, params, decays(updates, stacked))

    return optax.stateless(scale)


def _scaled(update: jax.Array, param: jax.Array) -> jax.Array:
    own, change = jnp.linalg.norm(param.ravel()), jnp.linalg.norm(update.ravel())
    return update * jnp.where((own > 0) & (change > 0), own / jnp.where(change > 0, change, 1.0), 1.0)
