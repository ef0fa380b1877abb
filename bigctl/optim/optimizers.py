"""Optimizers from optax. Our own stand in files beside this one.

An optimizer is built inside the compiled step from numbers that are the step's arguments, so another learning rate is
no new program. Its state has the same structure whatever those numbers are.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from bigctl.config import schema
from bigctl.optim.masks import USUAL_LEVELS, biases, by_layer, decays, named, norm_biases
from bigctl.optim.thawing import Thaw, by_groups

if TYPE_CHECKING:
    from bigctl.config.schema.optimizers import Hparams, Scalar

Parts = tuple[optax.GradientTransformation, ...]

_SELDOM = 1e-6
"""What the sums of squares of rows that are seldom seen begin with: it holds back the rarest."""


def update_rule(
    config: schema.Optimizer,
    hparams: Hparams,
    factor: Scalar = 1.0,
    *,
    trained: PyTree[bool] | None = None,
    stacked: tuple[str, ...] = (),
    levels: Sequence[str] = (),
    thaw: Thaw | None = None,
    seldom: tuple[str, float] | None = None,
    share: Scalar = 1.0,
) -> optax.GradientTransformation:
    """The optimizer as one optax transformation.

    Args:
        config: which rule, and its fixed numbers.
        hparams: "optimizer.lr", "optimizer.weight_decay", ... as floats or traced scalars.
        factor: the schedule's present multiple of the learning rate.
        trained: which leaves are trained, as `masks.trained` gives it; None for all. The others have no state.
        stacked: the model's patterns of parameters that hold several in one, see `schema.Model.stacked`.
        levels: the model's patterns of layers, see `schema.Model.levels`.
        thaw: which groups of layers are trained yet, each with a state of its own; None for all, with one state.
        seldom: what Adagrad trains, at a rate of its own and unclipped, see `schema.Model.seldom`.
        share: what gradients are multiplied by, before all else.

    Order: `share`, clip the gradient's global norm, the rule that `config` builds (its own scaling, decoupled weight
    decay, the learning rate), what `layer_decay` and the factors of biases make of the update. What is off keeps its
    place as an identity, so that it can be turned on in a run that is resumed: the others' state stays where it is.
    """
    # Rows that are seldom seen are multiplied before they are parted: in their chain it would move their state.
    before, within = (1.0, share) if seldom is None else (share, 1.0)
    clip = clip_by_global_norm(hparams["optimizer.clip"], within) if config.clip is not None else _times(within)
    built = config.build(hparams, factor, stacked) if stacked else config.build(hparams, factor)
    rule = (built,) if isinstance(built, optax.GradientTransformation) else built
    if not isinstance(rule, tuple) or not all(isinstance(part, optax.GradientTransformation) for part in rule):
        raise config.incomplete(f"must build an optax.GradientTransformation, not {type(built).__name__}")
    if seldom is not None:
        rows = scale_by_root(_SELDOM, 1e-7), optax.scale(-seldom[1] * factor)
        parts = {"rows": optax.chain(*rows), "others": optax.chain(clip, *rule)}  # rows would use up the norm
        clip, rule = _times(before), (optax.partition(parts, partial(named, pattern=seldom[0])),)
    rates = [
        optax.masked(optax.scale(hparams[f"optimizer.{name}"]), those)
        for name, those in (("bias_factor", biases), ("norm_bias_factor", norm_biases))
        if getattr(config, name) != 1
    ]
    if config.layer_decay != 1:
        rates.append(by_layer(hparams["optimizer.layer_decay"], trained, levels or USUAL_LEVELS))
    changed = optax.chain(*rates) if rates else optax.identity()
    whole = optax.chain(clip, *((by_groups(optax.chain(*rule), thaw),) if thaw else rule), changed)
    return whole if trained is None or all(jax.tree.leaves(trained)) else optax.masked(whole, trained)


def clip_by_global_norm(limit: Scalar, share: Scalar = 1.0) -> optax.GradientTransformation:
    """The gradient times `share`, no longer than `limit` (Pascanu et al. 2013), as optax has it but for rounding.

    It is one product with one factor. optax divides, multiplies and then chooses for each number, which XLA does again,
    and reads the gradient for, in whatever uses the outcome. The norm is that of the gradient before `share`, times it:
    else XLA on a CPU writes the product down for the norm alone.
    """

    def update(
        grads: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        norm = share * optax.global_norm(grads)
        return _times(share * jnp.where(norm < limit, 1.0, limit / norm)).update(grads, state)

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _times(factor: Scalar) -> optax.GradientTransformation:
    """All gradients times this."""
    if isinstance(factor, float) and factor == 1:
        return optax.identity()

    def update(
        grads: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        return jax.tree.map(lambda g: (g * factor).astype(g.dtype), grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def decay_and_rate(config: schema.Optimizer, hparams: Hparams, factor: Scalar, stacked: tuple[str, ...]) -> Parts:
    """What every rule ends in: decoupled weight decay (Loshchilov & Hutter 2019), then the learning rate."""
    decay = optax.add_decayed_weights(hparams["optimizer.weight_decay"], mask=partial(decays, stacked=stacked))
    if config.bias_decay:
        decay = optax.chain(decay, decay_of_vectors(config, hparams, stacked))
    return decay, optax.scale(-hparams["optimizer.lr"] * factor)


def decay_of_vectors(
    config: schema.Optimizer, hparams: Hparams, stacked: tuple[str, ...]
) -> optax.GradientTransformation:
    """Decoupled weight decay of biases, norms and other vectors, which is off where it is not asked for."""
    if not config.bias_decay:
        return optax.identity()
    others = lambda params: jax.tree.map(operator.not_, decays(params, stacked))  # noqa: E731
    return optax.add_decayed_weights(hparams["optimizer.bias_decay"], mask=others)


def sgd(config: schema.Sgd, hparams: Hparams, factor: Scalar, stacked: tuple[str, ...]) -> Parts:
    momentum = optax.trace(config.momentum, config.nesterov) if config.momentum else optax.identity()
    return momentum, *decay_and_rate(config, hparams, factor, stacked)


def adagrad(config: schema.Adagrad, hparams: Hparams, factor: Scalar, stacked: tuple[str, ...]) -> Parts:
    return scale_by_root(config.initial_accumulator, config.eps), *decay_and_rate(config, hparams, factor, stacked)


def scale_by_root(initial_accumulator: float, eps: float) -> optax.GradientTransformation:
    """g / (sqrt(sum of g^2) + eps), as torch has it (Duchi et al. 2011); optax adds eps inside of the root.

    The sum begins at `initial_accumulator`; its place in the state is that of `optax.scale_by_rss`.
    """

    def init(params: PyTree) -> optax.ScaleByRssState:
        return optax.ScaleByRssState(sum_of_squares=optax.tree.full_like(params, initial_accumulator))

    def update(
        updates: PyTree, state: optax.ScaleByRssState, params: PyTree | None = None
    ) -> tuple[PyTree, optax.ScaleByRssState]:
        sums = jax.tree.map(lambda g, total: jnp.square(g) + total, updates, state.sum_of_squares)
        scaled = jax.tree.map(lambda g, total: g / (jnp.sqrt(total) + eps), updates, sums)
        return scaled, optax.ScaleByRssState(sum_of_squares=sums)

    return optax.GradientTransformation(init, update)


def adam(config: schema.Adam, hparams: Hparams, factor: Scalar, stacked: tuple[str, ...]) -> Parts:
    return optax.scale_by_adam(config.b1, config.b2, config.eps), *decay_and_rate(config, hparams, factor, stacked)


def lion(config: schema.Lion, hparams: Hparams, factor: Scalar, stacked: tuple[str, ...]) -> Parts:
    return optax.scale_by_lion(config.b1, config.b2), *decay_and_rate(config, hparams, factor, stacked)
