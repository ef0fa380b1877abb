"""A feed-forward part of several experts, of which each token has a few (Shazeer et al. 2017, Fedus et al. 2022).

Dimension names: batch, length, width, each (choices of a token), experts, rows (of tokens ordered by expert).

Dropless, every choice is computed: tokens are ordered by expert, and each row is multiplied with the weights of its own
(Gale et al. 2023). With a capacity each expert takes so many tokens of a text at most, and shapes do not depend on what
the router says. On a mesh each device orders its own texts. Where `expert` shares the experts out, dropless gathers the
texts along that axis and adds results up back to where they belong; a capacity sends rows there and back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from bigctl.models import context, grouped
from bigctl.models.architecture import DecoderArchitecture
from bigctl.models.layers import Dense
from bigctl.parallel import mesh as meshes
from bigctl.parallel.axes import BATCH_AXES

Weights = Mapping[str, Mapping[str, Array]]
"""By part, "up", "gate" and "down": "kernel" [experts, inputs, outputs], and "bias" [experts, outputs]."""

CONTEXT, EXPERT, TENSOR = context.CONTEXT, "expert", "tensor"


class Routing(NamedTuple):
    """What is told of a router, float32 []; tokens count by their weights.

    Attributes:
        load_balance: number of experts x sum over experts of (share of the tokens that chose it x its mean
            probability): the number of choices where all are alike (Fedus et al. 2022; as Mixtral counts choices).
        z: mean squared logarithm of the normaliser (Zoph et al. 2022).
        lowest, highest: share of all choices that the least and the most chosen expert has.
        dropped: share of all choices for which there was no room.
    """

    load_balance: Array
    z: Array
    lowest: Array
    highest: Array
    dropped: Array


class Stack(nnx.Module):
    """The linear layers of all experts, side by side."""

    def __init__(self, experts: int, inputs: int, outputs: int, *, bias: bool, std: float, rngs: nnx.Rngs):
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (experts, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros((experts, outputs))) if bias else None

    def weights(self) -> dict[str, Array]:
        return {"kernel": self.kernel[...]} | ({} if self.bias is None else {"bias": self.bias[...]})


class Experts(nnx.Module):
    """Experts and their router, which is computed in float32.

    Args:
        config: the architecture.
        activation: of what `gate` gives, or, where there is none, of what `up` does.
        std: of new weights.
        down_std: of those that are added to the stream.
    """

    def __init__(
        self,
        config: DecoderArchitecture,
        activation: Callable[[Array], Array],
        *,
        std: float,
        down_std: float,
        rngs: nnx.Rngs,
    ):
        experts, width, wide, bias = config.experts, config.width, config.intermediate, config.bias
        self.experts, self.each, self.capacity_factor = experts, config.experts_per_token, config.capacity_factor
        self.activation = activation
        self.router = Dense(width, experts, bias=False, std=std, rngs=rngs)
        self.up = Stack(experts, width, wide, bias=bias, std=std, rngs=rngs)
        self.gate = Stack(experts, width, wide, bias=bias, std=std, rngs=rngs) if config.gated else None
        self.down = Stack(experts, wide, width, bias=bias, std=down_std, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        *,
        training: bool = False,
        weights: Float[Array, "batch length"] | None = None,
    ) -> tuple[Float[Array, "batch length width"], Routing]:
        """What the experts add for each token, and what the router did.

        Args:
            x: tokens.
            training: whether the capacity holds; in inference nothing is dropped.
            weights: what each token counts in `Routing`.
        """
        logits, gates, chosen = self.route(x)
        capacity = self.capacity(x.shape[1]) if training else None
        y, kept = self._mixed(x, gates, chosen, capacity)
        return y, routing(logits, chosen, kept, weights)

    def route(self, x: Float[Array, "*dims width"]) -> tuple[Array, Array, Array]:
        """Logits [*dims, experts]; of each token's choices, the likeliest first, weights and experts [*dims, each].

        Weights of several choices add up to 1, as in Mixtral (Jiang et al. 2024); that of a single one is its
        probability, without which the router would learn nothing (Fedus et al. 2022).
        """
        kernel = self.router.kernel[...].astype(jnp.float32)
        logits = jnp.matmul(x.astype(jnp.float32), kernel, precision=jax.lax.Precision.HIGHEST)
        gates, chosen = jax.lax.top_k(jax.nn.softmax(logits), self.each)
        if self.each > 1:
            gates = gates / jnp.sum(gates, axis=-1, keepdims=True)
        return logits, gates, chosen

    def capacity(self, length: int) -> int | None:
        """Tokens of a text that an expert takes at most; None for all of them."""
        if self.capacity_factor is None:
            return None
        return min(length, max(1, math.ceil(self.capacity_factor * length * self.each / self.experts)))

    def _mixed(self, x: Array, gates: Array, chosen: Array, capacity: int | None) -> tuple[Array, Array]:
        """[batch, length, width], and which choices were computed [batch, length, each]."""
        stacks = {"up": self.up, "gate": self.gate, "down": self.down}
        weights = {name: stack.weights() for name, stack in stacks.items() if stack is not None}
        kernel = grouped.kernel_for(meshes.platform_in_use())
        meshes.record_kernel(
            "experts", kernel if capacity is None else f"{kernel}, at most {capacity} tokens of a text"
        )
        mixed = partial(dropless, activation=self.activation, kernel=kernel)
        if capacity is not None:
            mixed = partial(limited, capacity=capacity, activation=self.activation, kernel=kernel)
        mesh = meshes.mesh_in_use()
        if mesh is None or len(x) % meshes.batch_shards(mesh) or not self._divides(mesh):
            return mixed(x, gates, chosen, weights)
        cut = CONTEXT if capacity is None and context.cut(x.shape[1]) is not None else None  # else it is of whole texts
        texts = PartitionSpec(BATCH_AXES, cut)
        specs = {name: {leaf: _spec(name, leaf, mesh) for leaf in part} for name, part in weights.items()}
        inside = jax.shard_map(
            partial(mixed, mesh=mesh),
            mesh=mesh,
            in_specs=(texts, texts, texts, specs),
            out_specs=(texts, texts),
            check_vma=False,
        )
        result: tuple[Array, Array] = inside(x, gates, chosen, weights)
        return result

    def _divides(self, mesh: AbstractMesh) -> bool:
        """Whether the mesh shares this part out evenly; that of a student need not do so for its teacher."""
        wide = self.up.kernel[...].shape[-1]
        return self.experts % _size(mesh, EXPERT) == 0 and wide % _size(mesh, TENSOR) == 0


def _spec(part: str, leaf: str, mesh: AbstractMesh) -> PartitionSpec:
    """What a device has of the experts' weights while it computes: whole matrices, but for `tensor`."""
    if leaf == "bias":
        return PartitionSpec(EXPERT, None if part == "down" else TENSOR)
    return PartitionSpec(EXPERT, TENSOR, None) if part == "down" else PartitionSpec(EXPERT, None, TENSOR)


def routing(
    logits: Float[Array, "batch length experts"],
    chosen: Int[Array, "batch length each"],
    kept: Bool[Array, "batch length each"],
    weights: Float[Array, "batch length"] | None,
) -> Routing:
    """See `Routing`."""
    weights = jnp.ones(chosen.shape[:2], jnp.float32) if weights is None else weights.astype(jnp.float32)
    total = jnp.maximum(jnp.sum(weights), 1e-9)
    experts, each = logits.shape[-1], chosen.shape[-1]

    def mean(values: Array) -> Array:
        return jnp.einsum("bl,bl...->...", weights, values, precision=jax.lax.Precision.HIGHEST) / total

    shares = mean(jnp.sum(jax.nn.one_hot(chosen, experts), axis=-2))
    return Routing(
        load_balance=experts * jnp.sum(shares * mean(jax.nn.softmax(logits))),
        z=mean(jnp.square(jax.nn.logsumexp(logits, axis=-1))),
        lowest=jnp.min(shares) / each,
        highest=jnp.max(shares) / each,
        dropped=mean(jnp.mean(1.0 - kept, axis=-1)),
    )


# ------------------------------------------------------------------------------------------------ what a device does


def dropless(
    x: Float[Array, "batch length width"],
    gates: Float[Array, "batch length each"],
    chosen: Int[Array, "batch length each"],
    weights: Weights,
    *,
    activation: Callable[[Array], Array],
    kernel: grouped.Kernel,
    mesh: AbstractMesh | None = None,
) -> tuple[Float[Array, "batch length width"], Bool[Array, "batch length each"]]:
    """All choices of these texts; of a device's texts on a mesh, which is then given.

    Args:
        x: tokens.
        gates: weights of each token's choices.
        chosen: the experts.
        weights: of all experts; on a mesh of those that a device has.
        activation, kernel: see `Experts` and `grouped.product`.
        mesh: what the program runs on.
    """
    shards = _size(mesh, EXPERT)
    kept = jnp.ones(chosen.shape, bool)
    if shards > 1:
        x, gates, chosen = (jax.lax.all_gather(part, EXPERT, tiled=True) for part in (x, gates, chosen))
    experts, each = len(weights["up"]["kernel"]), chosen.shape[-1]
    if shards > 1:
        own = chosen - jax.lax.axis_index(EXPERT) * experts
        chosen = jnp.where((own >= 0) & (own < experts), own, experts)
    tile = grouped.tile_size(chosen.size // shards, experts) if kernel == "tiles" else 1
    layout = grouped.ordered(chosen.reshape(-1, each), experts, tile)
    rows = grouped.dispatch(x.reshape(-1, x.shape[-1]), layout)
    rows = _feed_forward(rows, weights, layout, activation, kernel, mesh)
    y = _weighed(grouped.collect(rows, layout), gates.reshape(-1, each)).reshape(x.shape)
    if _size(mesh, TENSOR) > 1:
        y = jax.lax.psum(y, TENSOR)
    return (jax.lax.psum_scatter(y, EXPERT, tiled=True) if shards > 1 else y), kept


def limited(
    x: Float[Array, "batch length width"],
    gates: Float[Array, "batch length each"],
    chosen: Int[Array, "batch length each"],
    weights: Weights,
    *,
    capacity: int,
    activation: Callable[[Array], Array],
    kernel: grouped.Kernel,
    mesh: AbstractMesh | None = None,
) -> tuple[Float[Array, "batch length width"], Bool[Array, "batch length each"]]:
    """At most `capacity` tokens of a text for each expert; other arguments as for `dropless`."""
    shards, width = _size(mesh, EXPERT), x.shape[-1]
    own = len(weights["up"]["kernel"])
    experts = own * shards
    layouts = jax.vmap(lambda chosen: grouped.limited(chosen, experts, capacity))(chosen)
    rows = jax.vmap(grouped.dispatch)(x, layouts).reshape(len(x), experts, capacity, width)
    if shards > 1:
        rows = jax.lax.all_to_all(rows, EXPERT, split_axis=1, concat_axis=0, tiled=True)
    texts = len(rows)
    together = grouped.whole_tiles(own, texts * capacity)
    rows = rows.swapaxes(0, 1).reshape(-1, width)
    rows = _feed_forward(rows, weights, together, activation, kernel, mesh)
    if _size(mesh, TENSOR) > 1:
        rows = jax.lax.psum(rows, TENSOR)
    rows = rows.reshape(own, texts, capacity, width).swapaxes(0, 1)
    if shards > 1:
        rows = jax.lax.all_to_all(rows, EXPERT, split_axis=0, concat_axis=1, tiled=True)
    each = jax.vmap(grouped.collect)(rows.reshape(len(x), -1, width), layouts)
    return _weighed(each, gates), layouts.rows < experts * capacity


def _feed_forward(
    rows: Float[Array, "rows width"],
    weights: Weights,
    layout: grouped.Layout,
    activation: Callable[[Array], Array],
    kernel: grouped.Kernel,
    mesh: AbstractMesh | None,
) -> Float[Array, "rows width"]:
    def linear(part: str, rows: Array) -> Array:
        found = grouped.product(rows, weights[part]["kernel"], layout, kernel)
        bias = weights[part].get("bias")
        if bias is None:
            return found
        added = layout.owned_by(len(bias)).astype(bias.dtype) @ bias
        if part == "down" and _size(mesh, TENSOR) > 1:  # once, not by every device that has a part of the sum
            added = jnp.where(jax.lax.axis_index(TENSOR) == 0, added, 0)
        return found + added

    wide = linear("up", rows)
    wide = activation(linear("gate", rows)) * wide if "gate" in weights else activation(wide)
    return linear("down", wide)


def _weighed(each: Float[Array, "*dims each width"], gates: Float[Array, "*dims each"]) -> Float[Array, "*dims width"]:
    return jnp.sum(each.astype(jnp.float32) * gates[..., None], axis=-2).astype(each.dtype)


def _size(mesh: AbstractMesh | None, axis: str) -> int:
    return 1 if mesh is None else int(mesh.shape[axis])
