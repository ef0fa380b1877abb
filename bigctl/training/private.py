"""The gradient of DP-SGD (Abadi et al. 2016): clipped for each example, summed, and hidden by noise."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from bigctl.config import schema
from bigctl.data.layouts import rounds
from bigctl.parallel import mesh as meshes
from bigctl.training import metrics
from bigctl.training.metrics import Sums
from bigctl.training.state import Tree, zeros_like
from bigctl.training.task import Batch

Loss = Callable[[Tree, Batch, Array], tuple[Array, Sums]]
_COUNT = 2**31 - 1
"""In place of a leaf's number, in the key of the noise."""
CLIP = "train.privacy.clip"
"""The name among the hparams, and in the optimizer's state, that the clip has where it adapts."""
Gradients = list[Float[Array, "..."]]


def gradients(
    loss: Loss, params: Tree, batch: Batch, trained: Tree, config: schema.Privacy, mesh: Mesh, key: Array, noise: Array
) -> tuple[Tree, Sums]:
    """The noisy sum of the clipped gradients, and metric sums, with the share of examples that were `clipped`.

    Only as many microbatches are computed as hold examples. The noise is drawn once for the whole batch, its bits the
    same on every mesh; leaves that are not trained have neither a gradient nor noise.

    Args:
        loss: (params, a batch of one example, key) -> the summed loss, and metric sums.
        params: all weights.
        batch: examples first, then padding; a multiple of `config.microbatch` rows.
        trained: which leaves of `params` are.
        config: `train.privacy`.
        mesh: the devices.
        key: of dropout; each example folds in its number.
        noise: key of the noise.
    """
    paths, leaves = zip(*jax.tree_util.tree_flatten_with_path(params)[0], strict=True)
    structure, which = jax.tree.structure(params), jax.tree.leaves(trained)
    chosen = [leaf for leaf, used in zip(leaves, which, strict=True) if used]
    layers = layers_of([path for path, used in zip(paths, which, strict=True) if used], config)

    def one(chosen: Gradients, example: Batch) -> tuple[Array, Sums]:
        rest = iter(chosen)
        whole = [next(rest) if used else leaf for leaf, used in zip(leaves, which, strict=True)]
        number = jnp.squeeze(example["number"], 0)
        return loss(jax.tree.unflatten(structure, whole), example, jax.random.fold_in(key, number))

    each = jax.vmap(jax.grad(one, has_aux=True), in_axes=(None, 0))
    micro = config.microbatch
    split = jax.tree.map(lambda x: x.reshape(len(x) // micro, micro, 1, *x.shape[1:]), batch)
    split = jax.lax.with_sharding_constraint(split, meshes.batch_sharding(mesh, leading=1))

    def part(number: Array, carry: tuple[Gradients, Sums]) -> tuple[Gradients, Sums]:
        columns = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, number, keepdims=False), split)
        grads, sums = each(chosen, columns)
        mask = columns["mask"][:, 0]
        clipped, share = clipped_sum(grads, mask, layers, config.clip)
        sums = {**jax.tree.map(lambda x: x.sum(0), sums), "clipped": metrics.pair(share, mask)}
        return metrics.add(carry[0], clipped), metrics.add(carry[1], sums)

    first = jax.tree.map(lambda x: x[0, 0], split)
    shapes = {**jax.eval_shape(one, chosen, first)[1], "clipped": jax.ShapeDtypeStruct((2,), jnp.float32)}
    start = zeros_like(chosen), jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    held = jnp.sum(batch["mask"] > 0).astype(jnp.int32)
    total, sums = jax.lax.fori_loop(0, (held + micro - 1) // micro, part, start)
    hidden = iter(with_noise(total, noise, (config.noise or 0.0) * config.clip))
    grads = [next(hidden) if used else jnp.zeros_like(leaf) for leaf, used in zip(leaves, which, strict=True)]
    return jax.tree.unflatten(structure, grads), sums


def clipped_sum(
    grads: Gradients, mask: Float[Array, " examples"], layers: Sequence[Sequence[int]], clip: float
) -> tuple[Gradients, Float[Array, " examples"]]:
    """The sum over examples of their gradients, each scaled down to norm `clip`; and which of them were, 1 or 0.

    An example whose gradient is not finite adds nothing, as one that only pads.

    Args:
        grads: leaves [examples, ...].
        mask: 0 where an example only pads.
        layers: indices of leaves that are clipped together, at clip / sqrt(layers).
        clip: the most that one example adds.
    """
    limit = clip / math.sqrt(len(layers))
    squares = [jnp.square(g.reshape(len(g), -1)).sum(1) for g in grads]
    lengths = [jnp.sqrt(sum(squares[place] for place in layer)) for layer in layers]
    finite = jnp.isfinite(sum(lengths))
    used = finite & (mask > 0)
    factors: dict[int, Array] = {}
    for layer, length in zip(layers, lengths, strict=True):
        factor = jnp.where(used, jnp.minimum(1.0, limit / jnp.maximum(length, 1e-30)), 0.0)
        factors |= dict.fromkeys(layer, factor)
    scaled = sum(jnp.where(length > limit, 1.0, 0.0) for length in lengths)

    def added(grads: Gradients) -> Gradients:
        return [jnp.tensordot(factors[place], g, 1) for place, g in enumerate(grads)]

    def cleaned(grads: Gradients) -> Gradients:
        return added([jnp.where(finite.reshape(-1, *(1,) * (g.ndim - 1)), g, 0) for g in grads])

    # 0 times infinity is no number; the copy that this takes is made only where there is one.
    total = jax.lax.cond(jnp.all(finite), added, cleaned, grads)
    return total, jnp.where(used, jnp.minimum(scaled, 1.0), 0.0)


def with_noise(total: Gradients, key: Array, deviation: float) -> Gradients:
    """Each leaf with normal noise of its own."""
    keys = [jax.random.fold_in(key, place) for place in range(len(total))]
    return [x + deviation * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(total, keys, strict=True)]


# ----------------------------------------------------------------------------------------------- a clip that adapts


def begun(config: schema.Privacy, held: Tree) -> Tree:
    """What the optimizer of a run that begins keeps; where the clip adapts, with that."""
    return {"rule": held, CLIP: jnp.float32(config.clip)} if config.adapts else held


def held(config: schema.Privacy, opt_state: Tree, hparams: dict[str, Array]) -> tuple[Tree, dict[str, Array]]:
    """What the optimizer keeps, and the hparams with the clip as it is by now."""
    if not config.adapts:
        return opt_state, hparams
    return opt_state["rule"], {**hparams, CLIP: opt_state[CLIP]}


def kept(train: schema.Train, held: Tree, sums: Sums, hparams: dict[str, Array], noise: Array) -> Tree:
    """`held` the other way round, with the clip of the next step; this one's is noted in `sums`."""
    sums["clip"] = jnp.stack([hparams[CLIP], 1.0])
    clip = adapted(train.privacy, hparams[CLIP], sums["clipped"], rounds.expected(train), noise)
    return {"rule": held, CLIP: clip}


def at_present(train: schema.Train, hparams: dict[str, Array]) -> schema.Train:
    """`train` with the clip of a step, and with the part of the noise that sums are given."""
    if not train.privacy.adapts:
        return train
    now: dict[str, Any] = {"clip": hparams[CLIP]} if CLIP in hparams else {}
    noise = train.privacy.noise_of_sums(rounds.expected(train))
    return dataclasses.replace(train, privacy=dataclasses.replace(train.privacy, noise=noise, **now))


def adapted(config: schema.Privacy, clip: Array, clipped: Float[Array, 2], expected: float, noise: Array) -> Array:
    """The clip of the next step, float32 []: larger where fewer than `quantile` were below it (Andrew et al. 2021).

    Args:
        config: `train.privacy`.
        clip: of this step.
        clipped: how many were above it, of how many.
        expected: how many are expected in a step.
        noise: key of the step's noise.
    """
    # Each counts for half, up or down, so that one more or less moves the count by no more than that.
    below = clipped[1] / 2 - clipped[0]
    deviation = schema.noise_of_count(expected)
    below += deviation * jax.random.normal(jax.random.fold_in(noise, _COUNT), dtype=jnp.float32)
    return clip * jnp.exp(-config.quantile_rate * (below / expected + 0.5 - (config.quantile or 0.0)))


def layers_of(paths: Sequence[Any], config: schema.Privacy) -> list[list[int]]:
    """Which leaves are clipped together: all, or those of each layer."""
    if not config.per_layer:
        return [list(range(len(paths)))]
    found: dict[Any, list[int]] = {}
    for place, path in enumerate(paths):
        found.setdefault(tuple(map(str, path[:-1])), []).append(place)
    return list(found.values())
