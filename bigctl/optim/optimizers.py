"""Optimizers, schedules and decay masks, by name, from optax.

An optimizer is built inside the compiled step from numbers that are the step's arguments, so another learning rate is
no new program. Its state has the same structure whatever those numbers are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bigctl.config import schema
from bigctl.optim.muon import scale_by_muon
from bigctl.parallel.partition import path_name

Numbers = Mapping[str, Any]


def build(
    config: schema.Optimizer, numbers: Numbers, factor: Any = 1.0, trained: Any = None
) -> optax.GradientTransformation:
    """The update rule as one optax transformation.

    Args:
        config: which rule, and its fixed numbers.
        numbers: "optimizer.lr", "optimizer.weight_decay", ... as floats or traced scalars.
        factor: the schedule's present multiple of the learning rate.
        trained: which leaves are trained, as `trained` gives it; None for all. The others have no optimizer state.

    Order: clip the gradient's global norm, the rule's own scaling, decoupled weight decay on the leaves that
    `decays` names, the learning rate, what `layer_decay` leaves of it.
    """
    parts: list[optax.GradientTransformation] = []
    if config.clip is not None:
        parts.append(optax.clip_by_global_norm(numbers["optimizer.clip"]))
    decay = optax.add_decayed_weights(numbers["optimizer.weight_decay"], mask=decays)
    rate = optax.scale(-numbers["optimizer.lr"] * factor)
    if isinstance(config, schema.Sgd):
        momentum = optax.trace(config.momentum, config.nesterov) if config.momentum else optax.identity()
        parts += [momentum, decay, rate]
    elif isinstance(config, schema.Adagrad):
        parts += [optax.scale_by_rss(config.initial_accumulator, config.eps), decay, rate]
    elif isinstance(config, schema.Adam):
        parts += [optax.scale_by_adam(config.b1, config.b2, config.eps), decay, rate]
    elif isinstance(config, schema.Lion):
        parts += [optax.scale_by_lion(config.b1, config.b2), decay, rate]
    elif isinstance(config, schema.Muon):
        matrices = optax.chain(scale_by_muon(config.momentum, config.iterations), decay, rate)
        others = optax.adamw(numbers["optimizer.adam_lr"] * factor, weight_decay=0.0, nesterov=True)
        parts.append(optax.partition({"muon": matrices, "adam": others}, _muon_or_adam))
    else:
        build_own = getattr(config, "build", None)
        if build_own is None:
            raise TypeError(f"optimizer {config.kind!r} has no method `build(numbers, factor)`")
        parts.append(build_own(numbers, factor))
    if config.layer_decay != 1:
        parts.append(_by_layer(numbers["optimizer.layer_decay"], trained))
    rule = optax.chain(*parts)
    return rule if trained is None or all(jax.tree.leaves(trained)) else optax.masked(rule, trained)


def trained(params: Any, frozen: Sequence[str]) -> Any:
    """Which leaves are trained, as a tree of bool: those whose path no pattern is found in.

    Args:
        params: the parameters, or their shapes.
        frozen: regular expressions, searched for in paths such as "encoder/layers/0/up/kernel".
    """
    patterns = [re.compile(pattern) for pattern in frozen]
    return jax.tree_util.tree_map_with_path(lambda p, _: not any(r.search(path_name(p)) for r in patterns), params)


def _by_layer(decay: Any, everything: Any = None) -> optax.GradientTransformation:
    """Layer-wise learning-rate decay (Clark et al. 2020): the top is trained at the full rate, each layer below it at
    `decay` times that of the one above, embeddings at the bottom.

    `everything` is a tree of all parameters, frozen ones too, which count as layers; None for what is updated.
    """

    def scale(updates: Any, params: Any = None) -> Any:
        whole = updates if everything is None else everything
        names = [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(whole)[0]]
        top = 1 + max((number for number in map(_layer, names) if number is not None), default=-1) + 1

        def apply(path: Any, update: Any) -> Any:
            number = _layer(path_name(path))
            return update if number is None else update * decay ** (top - number - 1)

        return jax.tree_util.tree_map_with_path(apply, updates)

    return optax.stateless(scale)


def _layer(path: str) -> int | None:
    """The layer that a parameter belongs to: -1 for embeddings, None for what is above all layers."""
    match = re.search(r"(^|/)layers/(\d+)/", path)
    if match:
        return int(match[2])
    return -1 if re.search(r"(^|/)(embeddings?|token|position)/", path) else None


def decays(params: Any) -> Any:
    """Which leaves weight decay acts on: matrices and kernels, never biases, norms and other vectors."""
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)


def _muon_or_adam(params: Any) -> Any:
    """Whose each leaf is: Muon's, or Adam's.

    Vectors, embeddings and the output layer are for Adam (Jordan et al. 2024): rows of an embedding, or columns of the
    output, stand for single tokens or classes.
    """

    def whose(path: Any, leaf: Any) -> str:
        inner = leaf.ndim >= 2 and not re.search(r"(^|/)embedding$|^head/", path_name(path))
        return "muon" if inner else "adam"

    return jax.tree_util.tree_map_with_path(whose, params)


def factor(config: schema.Schedule, step: Any, total_steps: int, xp: Any = jnp) -> Any:
    """The multiple of the peak learning rate for the update number `step`, which counts from 0.

    Warmup is linear from 1/warmup to 1. What follows spans the rest of the horizon, and stays at its last value after
    it. With `xp=numpy` it is plain arithmetic, for logs.
    """
    horizon = config.horizon or total_steps
    warmup = warmup_steps(config, total_steps)
    progress = xp.clip((step - warmup) / max(1, horizon - warmup), 0.0, 1.0)
    if isinstance(config, schema.Cosine):
        after = config.final + (1 - config.final) * 0.5 * (1 + xp.cos(math.pi * progress))
    elif isinstance(config, schema.Linear):
        line = xp.clip((progress - config.hold) / (1 - config.hold), 0.0, 1.0)
        after = 1 - (1 - config.final) * line
    elif isinstance(config, schema.Step):
        after = xp.ones_like(progress)
        for at in config.at:
            after = xp.where(step >= at * horizon, after * config.factor, after)
    elif isinstance(config, schema.Constant):
        after = xp.ones_like(progress)
    else:
        after = config.factor(progress, xp)  # type: ignore[attr-defined]  # a plugin's schedule
    return xp.where(step < warmup, (step + 1) / max(1, warmup), after)


def warmup_steps(config: schema.Schedule, total_steps: int) -> int:
    horizon = config.horizon or total_steps
    return round(config.warmup * horizon if config.warmup < 1 else config.warmup)
