"""Steps that go wrong: which they are, on the devices; and the way back to a checkpoint, on the host.

A step is bad if its loss, gradient or update is not finite, or, where `train.divergence.deviations` is set, if its loss
or gradient norm stands out of those of the good steps before. `skip` is the rule of OLMo's and levanter's skip-step
optimizers (128 steps, 6 standard deviations), but counted in the state and with an end; unlike theirs, the window holds
good steps only, so a spike does not make room for the next. `rewind` is how PaLM (https://arxiv.org/abs/2204.02311,
section 5.1) was brought past its spikes by hand: an earlier checkpoint, other batches.
"""

from __future__ import annotations

import logging
from typing import Any

import jax
import jax.numpy as jnp

from bigctl.config.schema import Divergence
from bigctl.errors import Diverged, RunError
from bigctl.training.checkpoints.store import Checkpoints, Saved
from bigctl.training.state import Progress

Guard = dict[str, jax.Array]

log = logging.getLogger("bigctl.train")

HINT = "lower optimizer.lr, add schedule.warmup or optimizer.clip; checkpoints from before are kept"
_ROUNDING = 1e-6  # of the mean: equal losses have no deviation, and their mean is not quite their value


# ----------------------------------------------------------------------------------------------------- on the devices


def new_guard(rule: Divergence) -> Guard:
    """What the judgement of later steps depends on, all of it 0 at first; empty where nothing is to be remembered.

    `loss` and `grad_norm`, float32 [window], are those of the latest good steps, `good` how many there were;
    `skipped` counts all skipped steps, `in_a_row` those since the last good one; int32 [].
    """
    guard: Guard = {}
    if rule.deviations is not None:
        guard |= {name: jnp.zeros((rule.window,), jnp.float32) for name in ("loss", "grad_norm")}
        guard |= {"good": jnp.int32(0)}
    if rule.policy == "skip":
        guard |= {"skipped": jnp.int32(0), "in_a_row": jnp.int32(0)}
    return guard


def judge(rule: Divergence, guard: Guard, loss: jax.Array, grad_norm: jax.Array, finite: jax.Array) -> jax.Array:
    """Whether a step is good, bool [].

    Args:
        rule: the configuration.
        guard: what is known of the steps before.
        loss: mean loss of the batch, float32 [].
        grad_norm: norm of its gradient, before clipping, float32 [].
        finite: whether all that the step has computed is, bool [].
    """
    if rule.deviations is None:
        return finite
    good = guard["good"]
    spike = _stands_out(guard["loss"], good, loss, rule.deviations)
    return finite & ~(spike | _stands_out(guard["grad_norm"], good, grad_norm, rule.deviations))


def _stands_out(window: jax.Array, count: jax.Array, value: jax.Array, deviations: float) -> jax.Array:
    """Whether a value is too far above the first `count` of a window; never before half of the window is filled."""
    filled = jnp.minimum(count, len(window))
    used = (jnp.arange(len(window)) < filled).astype(jnp.float32)
    mean = jnp.sum(window * used) / jnp.maximum(filled, 1)
    deviation = jnp.sqrt(jnp.sum(used * (window - mean) ** 2) / jnp.maximum(filled, 1))
    limit = mean + deviations * deviation + _ROUNDING * jnp.abs(mean)
    return (2 * filled >= len(window)) & (value > limit)


def remember(guard: Guard, good: jax.Array, loss: jax.Array, grad_norm: jax.Array) -> Guard:
    """The guard after a step."""
    after = dict(guard)
    if "good" in guard:
        slot = guard["good"] % len(guard["loss"])
        for name, value in (("loss", loss), ("grad_norm", grad_norm)):
            after[name] = guard[name].at[slot].set(jnp.where(good, value, guard[name][slot]))
        after["good"] = guard["good"] + good
    if "skipped" in guard:
        after["skipped"] = guard["skipped"] + ~good
        after["in_a_row"] = jnp.where(good, 0, guard["in_a_row"] + 1)
    return after


def lost(rule: Divergence, guard: Guard, good: jax.Array) -> jax.Array:
    """Whether the host must act, bool []: at a bad step, or where one more was skipped than may be in a row."""
    return guard["in_a_row"] > rule.limit if rule.policy == "skip" else ~good


def choose(good: jax.Array, new: Any, old: Any) -> Any:
    """The new tree after a good step, the old one to the last bit after a bad one."""
    return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)


def all_finite(tree: Any) -> jax.Array:
    """Whether every floating-point number of a tree is finite, bool []."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves])) if leaves else jnp.bool_(True)


# -------------------------------------------------------------------------------------------------------- on the host


def describe(rule: Divergence, step: int) -> str:
    """What happened at the step that the state has noted."""
    what = "not finite"
    if rule.deviations is not None:
        what += f", or more than {rule.deviations:g} standard deviations above the latest ones,"
    if rule.policy == "skip":
        return f"the loss or its update is {what} for {rule.limit + 1} steps in a row, up to step {step}"
    return f"the loss or its update is {what} at step {step}"


def set_anchor(progress: Progress, *, best: bool) -> None:
    """The checkpoint that is being saved, or was resumed from, is the one to rewind to from now on.

    Only checkpoints at the multiples of `checkpoint.every` are: one that is saved because someone asked to stop must
    not change what becomes of the run.
    """
    progress.anchors = [progress.step]
    if best and progress.best_step is not None:
        progress.anchors.append(progress.best_step)
    progress.rewound = 0


def rewind(rule: Divergence, checkpoints: Checkpoints, abstract: Any, progress: Progress, bad: int) -> tuple[Any, Any]:
    """The state of the checkpoint to rewind to, and its progress, but with the position of `progress`.

    Nothing is written: until the next save the disk says that the rewind is yet to come, so a run that is killed here
    takes the same steps again and gets to the same rewind.

    Args:
        rule: the configuration.
        checkpoints: of the run.
        abstract: shapes and placements of the state.
        progress: as it is at the event where the bad step was noticed, past its batch.
        bad: that step.

    Raises:
        Diverged: if that has been tried often enough, or no checkpoint can be read.
    """
    anchor = progress.anchors[0]
    if progress.rewound >= rule.limit:
        raise Diverged(f"{describe(rule, bad)}, after {progress.rewound} rewinds to step {anchor}", hint=HINT)
    checkpoints.wait()
    saved = _newest(checkpoints, anchor)
    if saved is None:
        raise Diverged(f"{describe(rule, bad)}, and there is no checkpoint to rewind to", hint=HINT)
    state = checkpoints.restore(saved, abstract)
    checkpoints.clean(after=saved.step)  # they are of a past that will not have been
    back = saved.progress
    back.position, back.rewinds, back.rewound = progress.position, progress.rewinds + 1, progress.rewound + 1
    back.anchors = progress.anchors if saved.step == anchor else [saved.step]
    return state, back


def _newest(checkpoints: Checkpoints, anchor: int) -> Saved | None:
    for step in reversed([step for step in checkpoints.group.first(checkpoints.steps) if step <= anchor]):
        try:
            return checkpoints.find(step)
        except RunError as error:
            log.warning("checkpoint passed over: %s", error)
    return None
