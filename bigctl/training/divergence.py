"""Steps that go wrong: which they are, judged on the devices. The way back to a checkpoint is in `rewind`.

A step is bad if its loss, its gradient or the weights after it are not finite, or, where `train.divergence.deviations`
is set, if its loss or gradient norm stands out of those of the good steps before. `skip` is the rule of OLMo's and
levanter's skip-step optimizers (128 steps, 6 standard deviations), but counted in the state and with an end; unlike
theirs, the window holds good steps only, so a spike does not make room for the next. `rewind` is how PaLM
(https://arxiv.org/abs/2204.02311, section 5.1) was brought past its spikes by hand: an earlier checkpoint, other
batches.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bigctl.config.schema import Divergence
from bigctl.training.state import Tree

AnomalyState = dict[str, jax.Array]

HINT = "lower optimizer.lr, add schedule.warmup or optimizer.clip; checkpoints from before are kept"
_ROUNDING = 1e-6  # of the mean: equal losses have no deviation, and their mean is not quite their value


def new_anomaly_state(rule: Divergence) -> AnomalyState:
    """What the judgement of later steps depends on, all of it 0 at first; empty where nothing is to be remembered.

    `loss` and `grad_norm`, float32 [window], are those of the latest good steps, `good` how many there were;
    `skipped` counts all skipped steps, `in_a_row` those since the last good one; int32 [].
    """
    anomaly_state: AnomalyState = {}
    if rule.deviations is not None:
        anomaly_state |= {name: jnp.zeros((rule.window,), jnp.float32) for name in ("loss", "grad_norm")}
        anomaly_state |= {"good": jnp.int32(0)}
    if rule.policy == "skip":
        anomaly_state |= {"skipped": jnp.int32(0), "in_a_row": jnp.int32(0)}
    return anomaly_state


def judge(
    rule: Divergence, anomaly_state: AnomalyState, loss: jax.Array, grad_norm: jax.Array, finite: jax.Array
) -> jax.Array:
    """Whether a step is good, bool [].

    Args:
        rule: the configuration.
        anomaly_state: what is known of the steps before.
        loss: mean loss of the batch, float32 [].
        grad_norm: norm of its gradient, before clipping, float32 [].
        finite: whether all that the step has computed is, bool [].
    """
    if rule.deviations is None:
        return finite
    good = anomaly_state["good"]
    spike = _stands_out(anomaly_state["loss"], good, loss, rule.deviations)
    return finite & ~(spike | _stands_out(anomaly_state["grad_norm"], good, grad_norm, rule.deviations))


def _stands_out(window: jax.Array, count: jax.Array, value: jax.Array, deviations: float) -> jax.Array:
    """Whether a value is too far above the first `count` of a window; never before half of the window is filled."""
    filled = jnp.minimum(count, len(window))
    used = (jnp.arange(len(window)) < filled).astype(jnp.float32)
    mean = jnp.sum(window * used) / jnp.maximum(filled, 1)
    deviation = jnp.sqrt(jnp.sum(used * (window - mean) ** 2) / jnp.maximum(filled, 1))
    limit = mean + deviations * deviation + _ROUNDING * jnp.abs(mean)
    return (2 * filled >= len(window)) & (value > limit)


def remember(anomaly_state: AnomalyState, good: jax.Array, loss: jax.Array, grad_norm: jax.Array) -> AnomalyState:
    """The anomaly state after a step."""
    after = dict(anomaly_state)
    if "good" in anomaly_state:
        slot = anomaly_state["good"] % len(anomaly_state["loss"])
        for name, value in (("loss", loss), ("grad_norm", grad_norm)):
            after[name] = anomaly_state[name].at[slot].set(jnp.where(good, value, anomaly_state[name][slot]))
        after["good"] = anomaly_state["good"] + good
    if "skipped" in anomaly_state:
        after["skipped"] = anomaly_state["skipped"] + ~good
        after["in_a_row"] = jnp.where(good, 0, anomaly_state["in_a_row"] + 1)
    return after


def lost(rule: Divergence, anomaly_state: AnomalyState, good: jax.Array) -> jax.Array:
    """Whether the host must act, bool []: at a bad step, or where one more was skipped than may be in a row."""
    return anomaly_state["in_a_row"] > rule.limit if rule.policy == "skip" else ~good


def choose(good: jax.Array, new: Tree, old: Tree) -> Tree:
    """The new tree after a good step, the old one to the last bit after a bad one."""
    return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)


def all_finite(tree: Tree) -> jax.Array:
    """Whether every floating-point number of a tree is finite, bool []."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves])) if leaves else jnp.bool_(True)


def describe(rule: Divergence, step: int) -> str:
    """What happened at the step that the state has noted."""
    what = "not finite"
    if rule.deviations is not None:
        what += f", or more than {rule.deviations:g} standard deviations above the latest ones,"
    if rule.policy == "skip":
        return (
            f"the loss, its gradient or the weights are {what} for {rule.limit + 1} steps in a row, up to step {step}"
        )
    return f"the loss, its gradient or the weights are {what} at step {step}"
