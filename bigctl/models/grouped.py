"""Rows of tokens ordered by the expert that each is for, and products of each row with the weights of its own.

Dimension names: tokens, each (choices of a token), rows (places in the ordered buffer), tiles (rows of one expert that
are multiplied at once), width.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Kernel = Literal["tiles", "ragged_dot"]

_LARGEST_TILE, _SMALL_TILE = 128, 8


class Layout(NamedTuple):
    """Which row of a buffer each choice of a token has; what has none is as far beyond the end as indices go.

    Attributes:
        rows: of each choice.
        choices: of each row, tile by tile, numbered through all tokens.
        owners: the expert of each tile, their number where a tile is empty.
        counts: rows of each expert.
    """

    rows: Int[Array, "tokens each"]
    choices: Int[Array, "tiles tile"]
    owners: Int[Array, " tiles"]
    counts: Int[Array, " experts"]

    def owned_by(self, experts: int) -> Bool[Array, "rows experts"]:
        """Which expert's weights each row is multiplied with."""
        owners = jnp.repeat(self.owners, self.choices.shape[1])
        return owners[:, None] == jnp.arange(experts)


def kernel_for(platform: str | None) -> Kernel:
    """What multiplies rows with the weights of their experts: `ragged_dot` on TPUs, where XLA has a kernel for it.

    Elsewhere XLA expands that to products with all experts, so a loop over tiles is used.

    Args:
        platform: of the devices that the program is for, from `mesh.platform_in_use`.
    """
    return "ragged_dot" if platform == "tpu" else "tiles"


def tile_size(choices: int, experts: int) -> int:
    """Rows of a tile: a power of two that leaves few empty where choices are spread evenly.

    A program that is exported for any number of tokens has small ones.
    """
    if not isinstance(choices, int):
        return _SMALL_TILE
    return min(_LARGEST_TILE, 2 ** int(np.log2(max(1, choices // (2 * experts)))))


def ordered(chosen: Int[Array, "tokens each"], experts: int, tile: int) -> Layout:
    """A layout that has all choices, those of one expert side by side from the beginning of a tile on.

    Args:
        chosen: experts; a number from `experts` on leaves a choice out.
        experts: how many there are.
        tile: rows of a tile; 1 leaves no row empty between experts.
    """
    flat = chosen.reshape(-1)
    number = flat.shape[0]
    tiles = number if tile == 1 else (number + experts * (tile - 1)) // tile
    order = jnp.argsort(flat, stable=True)
    counts = jnp.sum(flat[:, None] == jnp.arange(experts), axis=0, dtype=jnp.int32)
    whole = -(-counts // tile) * tile
    ends = jnp.cumsum(whole)
    shift = (ends - whole) - (jnp.cumsum(counts) - counts)
    owner = flat[order]
    found = jnp.arange(number) + shift[jnp.minimum(owner, experts - 1)]
    found = jnp.where(owner < experts, found, tiles * tile)
    rows = jnp.zeros(number, jnp.int32).at[order].set(found.astype(jnp.int32))
    owners = jnp.searchsorted(ends, jnp.arange(tiles) * tile, side="right").astype(jnp.int32)
    return Layout(rows.reshape(chosen.shape), _choices(rows, tiles, tile), owners, counts)


def limited(chosen: Int[Array, "tokens each"], experts: int, capacity: int) -> Layout:
    """A layout in which each expert has `capacity` rows: first choices come before second ones, earlier tokens before
    later ones, and what comes too late has no row (Lepikhin et al. 2021, Fedus et al. 2022); arguments as for
    `ordered`."""
    mine = chosen.T.reshape(-1, 1) == jnp.arange(experts)
    place = (
        jnp.sum(jnp.where(mine, jnp.cumsum(mine, axis=0, dtype=jnp.int32) - 1, 0), axis=-1).reshape(chosen.T.shape).T
    )
    kept = (place < capacity) & (chosen < experts)
    rows = jnp.where(kept, chosen * capacity + place, experts * capacity).astype(jnp.int32)
    counts = jnp.minimum(jnp.sum(mine, axis=0, dtype=jnp.int32), capacity)
    return Layout(rows, _choices(rows.reshape(-1), experts, capacity), jnp.arange(experts, dtype=jnp.int32), counts)


def whole_tiles(experts: int, rows: int) -> Layout:
    """A layout of one tile for each expert, with so many rows, for `product` alone."""
    nothing = jnp.zeros((0, 1), jnp.int32)
    numbers = jnp.arange(experts, dtype=jnp.int32)
    return Layout(nothing, jnp.zeros((experts, rows), jnp.int32), numbers, jnp.full(experts, rows, jnp.int32))


def _choices(rows: Int[Array, " choices"], tiles: int, tile: int) -> Int[Array, "tiles tile"]:
    choices = jnp.arange(rows.shape[0], dtype=jnp.int32)
    nothing = jnp.zeros(tiles * tile, jnp.int32) + rows.shape[0]
    return nothing.at[rows].set(choices, mode="drop").reshape(tiles, tile)


# ---------------------------------------------------------------------------------------------------- there and back


@jax.custom_vjp
def dispatch(x: Float[Array, "tokens width"], layout: Layout) -> Float[Array, "rows width"]:
    """Tokens in their rows, zeros in empty ones. The gradient is a gather too: to add row by row is slow on CPU."""
    return _rows_of(x, layout.choices.reshape(-1) // layout.rows.shape[1])


def _dispatch_forward(x: Array, layout: Layout) -> tuple[Array, Layout]:
    return dispatch(x, layout), layout


def _dispatch_backward(layout: Layout, dy: Array) -> tuple[Array, None]:
    return jnp.sum(_rows_of(dy, layout.rows), axis=1), None


dispatch.defvjp(_dispatch_forward, _dispatch_backward)


@jax.custom_vjp
def collect(x: Float[Array, "rows width"], layout: Layout) -> Float[Array, "tokens each width"]:
    """What became of each choice, zeros where it has no row."""
    return _rows_of(x, layout.rows)


def _collect_forward(x: Array, layout: Layout) -> tuple[Array, Layout]:
    return collect(x, layout), layout


def _collect_backward(layout: Layout, dy: Array) -> tuple[Array, None]:
    return _rows_of(dy.reshape(-1, dy.shape[-1]), layout.choices.reshape(-1)), None


collect.defvjp(_collect_forward, _collect_backward)


def _rows_of(x: Array, places: Array) -> Array:
    return x.at[places].get(mode="fill", fill_value=0)


# ---------------------------------------------------------------------------------------------------------- products


def product(
    x: Float[Array, "rows inputs"], kernels: Float[Array, "experts inputs outputs"], layout: Layout, kernel: Kernel
) -> Float[Array, "rows outputs"]:
    """Each row times the weights of its expert; zeros in rows of empty tiles."""
    if kernel == "ragged_dot":
        return jax.lax.ragged_dot(x, kernels, layout.counts)
    tiles = x.reshape(*layout.choices.shape, x.shape[-1])
    return tiled(tiles, kernels, layout.owners).reshape(x.shape[0], kernels.shape[-1])


@jax.custom_vjp
def tiled(
    x: Float[Array, "tiles rows inputs"], kernels: Float[Array, "experts inputs outputs"], owners: Int[Array, " tiles"]
) -> Float[Array, "tiles rows outputs"]:
    """Each tile times the weights of its owner, one after the other; what is nobody's is zero and not computed."""
    shape = (x.shape[1], kernels.shape[-1])

    def one(part: tuple[Array, Array]) -> Array:
        rows, owner = part
        return jax.lax.cond(
            owner < len(kernels), lambda: rows @ _of(kernels, owner), lambda: jnp.zeros(shape, rows.dtype)
        )

    return jax.lax.map(one, (x, owners))


def _of(kernels: Array, owner: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(kernels, owner, keepdims=False)


def _tiled_forward(x: Array, kernels: Array, owners: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return tiled(x, kernels, owners), (x, kernels, owners)


def _tiled_backward(saved: tuple[Array, Array, Array], dy: Array) -> tuple[Array, Array, None]:
    """The gradient of the weights is added up in float32, in place, while tiles go by."""
    x, kernels, owners = saved

    def one(sums: Array, part: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        rows, slopes, owner = part

        def computed() -> tuple[Array, Array]:
            added = jax.lax.dot_general(rows, slopes, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
            return added, slopes @ _of(kernels, owner).T

        added, d_rows = jax.lax.cond(
            owner < len(kernels), computed, lambda: (jnp.zeros(kernels.shape[1:], jnp.float32), jnp.zeros_like(rows))
        )
        return jax.lax.dynamic_update_index_in_dim(sums, _of(sums, owner) + added, owner, 0), d_rows

    sums, dx = jax.lax.scan(one, jnp.zeros(kernels.shape, jnp.float32), (x, dy, owners))
    return dx, sums.astype(kernels.dtype), None


tiled.defvjp(_tiled_forward, _tiled_backward)
