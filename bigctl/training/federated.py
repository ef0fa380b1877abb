"""A round of federated averaging (McMahan et al. 2017): clients train on their own examples, and an average is taken.

Clients are computed one group after the other, the clients of a group side by side by vmap. What is kept is the sum of
their updates: no client's own leaves its group. Where to begin reading is `average`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from bigctl.config import schema
from bigctl.data.layouts import rounds
from bigctl.optim import masks
from bigctl.training import metrics, private, updates
from bigctl.training.metrics import Sums
from bigctl.training.state import Tree
from bigctl.training.task import Batch

Gradient = Callable[[Tree, Batch, Array, Array], tuple[Tree, Sums]]
"""(params, batch, key of dropout, key of augmentation) -> the gradient of the summed loss, and metric sums."""

Keys = tuple[Array, ...]
"""Of dropout, of augmentation, and of the order of examples."""


@dataclass(frozen=True)
class Local:
    """What a client does.

    Attributes:
        train: the keys.
        gradient: of the loss.
        rule: the clients' optimizer, new in each round.
        trained: which leaves of the parameters are.
    """

    train: schema.Train
    gradient: Gradient
    rule: optax.GradientTransformation
    trained: Tree


def average(local: Local, params: Tree, batch: Batch, keys: Keys, noise: Array) -> tuple[Tree, Sums]:
    """The average of the clients' updates with its sign turned round, as a gradient is, and metric sums.

    Among the sums are `clients`, how many sent something back, `client_update`, the norm of what a client has learned,
    and `upload_bytes` of a round. With `train.privacy` each client's update is clipped, the sum is hidden by noise, and
    divided by how many clients are expected (McMahan et al. 2018); `clipped` is the share of those that were.

    Args:
        local: what a client does.
        params: the server's.
        batch: see `data.layouts.rounds.Rounds`.
        keys: which each client folds its place into.
        noise: key of the noise.
    """
    config, private_keys, draw = local.train.federated, local.train.privacy, rounds.draw_of(local.train)
    which = jax.tree.leaves(local.trained)
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    layers = private.layers_of([path for path, used in zip(paths, which, strict=True) if used], private_keys)
    columns = {name: x for name, x in batch.items() if name != "number"}
    groups, room = draw.places // config.at_once, len(batch["mask"]) // draw.places
    split = jax.tree.map(lambda x: x.reshape(groups, config.at_once, room, *x.shape[1:]), columns)
    numbers = jnp.arange(draw.places).reshape(groups, config.at_once)

    def one(client: Batch, number: Array) -> tuple[updates.Leaves, Array, Sums]:
        own = _folded(keys, number)
        update, sums = client_update(local, params, client, own)
        update = [x for x, used in zip(jax.tree.leaves(update), which, strict=True) if used]
        count = client["mask"].sum()
        there = (count > 0).astype(jnp.float32)
        sums["client_update"] = jnp.stack([optax.global_norm(update), 1.0]) * there
        sums["clients"], sums["upload_bytes"] = there, there * updates.sent_bytes(update, config)
        weight = count if config.weights == "examples" else there
        return updates.compressed(update, config, own[2]), weight, sums

    def group(carry: Tree, part: Tree) -> tuple[Tree, None]:
        if config.at_once == 1:  # not by vmap: a loop of one stays a loop that ends when its client is done
            found = jax.tree.map(lambda x: x[None], one(*jax.tree.map(lambda x: x[0], part)))
        else:
            found = jax.vmap(one)(*part)
        sent, weights, sums = found
        if private_keys.on:
            total, clipped = private.clipped_sum(sent, weights, layers, private_keys.clip)
            sums["clipped"] = jnp.stack([clipped, weights], 1)
        else:
            total = [jnp.tensordot(weights, x, 1) for x in sent]
        return metrics.add(carry, (total, weights.sum(), jax.tree.map(lambda x: x.sum(0), sums))), None

    first = jax.tree.map(lambda x: x[0, 0], (split, numbers))
    total, weight, sums = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(one, *first))
    if private_keys.on:
        sums["clipped"] = jnp.zeros(2)
    (total, weight, sums), _ = jax.lax.scan(group, (total, weight, sums), (split, numbers))
    for name in ("clients", "upload_bytes"):
        sums[name] = jnp.stack([sums[name], 1.0])
    if private_keys.on:
        total = private.with_noise(total, noise, (private_keys.noise or 0.0) * private_keys.clip)
        weight = jnp.float32(draw.reporting)
    mean = iter([-x / jnp.maximum(weight, 1e-9) for x in total])
    grads = [next(mean) if used else jnp.zeros_like(x) for x, used in zip(jax.tree.leaves(params), which, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(params), grads), sums


def client_update(local: Local, params: Tree, client: Batch, keys: Keys) -> tuple[Tree, Sums]:
    """How far a client's weights move, and metric sums over its steps; neither where it has no examples.

    Args:
        local: what it does.
        params: that it begins with.
        client: columns [room, ...], its examples first.
        keys: which each step, or each epoch, folds its number into.
    """
    config, mask = local.train.federated, client["mask"]
    dropout, augmentation, shuffle = keys
    room, count = len(mask), mask.sum().astype(jnp.int32)
    size = min(config.batch_size or room, room)
    steps = -(-count // size)
    padded = -(-room // size) * size

    def epoch(number: Array, carry: Tree) -> Tree:
        order = _order(mask, jax.random.fold_in(shuffle, number)) if size < room else jnp.arange(room)
        order = jnp.pad(order, (0, padded - room))

        def step(place: Array, carry: Tree) -> Tree:
            now, state, sums = carry
            chosen = jax.lax.dynamic_slice_in_dim(order, place * size, size)
            part = {name: x[chosen] for name, x in client.items()}
            part["mask"] *= (place * size + jnp.arange(size) < count).astype(jnp.float32)
            part["number"] = jnp.arange(size, dtype=jnp.int32)
            which = number * steps + place
            grads, more = local.gradient(now, part, *_folded((dropout, augmentation), which))
            grads = jax.tree.map(lambda g: g / jnp.maximum(more["loss"][1], 1e-9), grads)
            if config.mu:
                pull = jax.tree.map(lambda w, w0, t: config.mu * (w - w0) if t else 0.0, now, params, local.trained)
                grads = metrics.add(grads, pull)
            updates, state = local.rule.update(grads, state, now)
            after = optax.apply_updates(now, updates)
            after = masks.zeros_kept(params, after) if local.train.keep_zeros else after
            return after, state, metrics.add(sums, more)

        return jax.lax.fori_loop(0, steps, step, carry)

    few = {name: x[:size] for name, x in client.items()} | {"number": jnp.arange(size, dtype=jnp.int32)}
    shapes = jax.eval_shape(local.gradient, params, few, dropout, augmentation)[1]
    start = params, local.rule.init(params), jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    after, _, sums = jax.lax.fori_loop(0, config.epochs, epoch, start)
    return jax.tree.map(jnp.subtract, after, params), sums


def _folded(keys: tuple[Array, ...], number: Array) -> tuple[Array, ...]:
    return tuple(jax.random.fold_in(key, number) for key in keys)


def _order(mask: Float[Array, " room"], key: Array) -> Array:
    """A client's examples in random order, int32 [room], then padding."""
    bits = jax.random.bits(key, mask.shape, jnp.uint32) >> 1
    return jnp.argsort(jnp.where(mask > 0, bits, jnp.uint32(2**32 - 1)))
