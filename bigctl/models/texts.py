"""Texts in rows of tokens: what each token may see, where it is in its text, and what stands for the text.

A row holds one text, padded at the end, or several, one after the other: there are `rows x each` lengths then, those of
a row beside each other, and a text of length 0 is none. Tokens of two texts do not see each other (the packing without
cross-contamination of Krell et al. 2021, arXiv 2107.02027), so each text is what it would be in a row of its own. Sizes
are compared as `shape` has them: where a program is exported they are symbols, which `len` does not know.

Dimension names: rows, length (of a row), texts (rows x each), width.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Places(NamedTuple):
    """What the places of rows are.

    Attributes:
        visible: which places (the last dimension) a place sees; 1 for `some` where all of a row see the same.
        second: whether a token is one of the second text of a pair.
        positions: of the tokens in their texts; None where that is their place in the row.
    """

    visible: Bool[Array, "rows some length"]
    second: Bool[Array, "rows length"]
    positions: Int[Array, "rows length"] | None


def places(
    tokens: Int[Array, "rows length"], lengths: Int[Array, " texts"], segment_start: Int[Array, " texts"]
) -> Places:
    """Of the places of the tokens; `segment_start` is where in its text the second one of a pair begins."""
    rows, length = tokens.shape
    place = jnp.arange(length)
    if lengths.shape[0] == rows:
        return Places((place < lengths[:, None])[:, None], place >= segment_start[:, None], None)
    number, begins = _numbers(rows, length, lengths), _begins(rows, lengths)
    text = jnp.minimum(number, begins.shape[1] - 1)
    positions = jnp.where(number == text, place - jnp.take_along_axis(begins, text, 1), 0)
    second = positions >= jnp.take_along_axis(segment_start.reshape(begins.shape), text, 1)
    return Places(number[:, :, None] == number[:, None, :], second, positions)


def first(x: Float[Array, "rows length width"], lengths: Int[Array, " texts"]) -> Float[Array, "texts width"]:
    """What stands at the first token of each text; of a text of no tokens at some place or other."""
    if lengths.shape[0] == x.shape[0]:
        return x[:, 0]
    begins = jnp.minimum(_begins(len(x), lengths), x.shape[1] - 1)
    return jnp.take_along_axis(x, begins[..., None], 1).reshape(len(lengths), -1)


def mean(x: Float[Array, "rows length *dims"], lengths: Int[Array, " texts"]) -> Float[Array, " texts *dims"]:
    """The mean over the tokens of each text, float32; zeros where there are none."""
    rows, length, *dims = x.shape
    if lengths.shape[0] == rows:
        own = (jnp.arange(length) < lengths[:, None]).reshape(rows, length, *[1] * len(dims))
        sums = jnp.sum(jnp.where(own, x, 0), axis=1, dtype=jnp.float32)
    else:
        own = jax.nn.one_hot(_numbers(rows, length, lengths), len(lengths) // rows, dtype=x.dtype)
        product = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
        sums = product("rlt,rl...->rt...", own, x).reshape(len(lengths), *dims)
    return sums / jnp.maximum(lengths, 1).reshape(-1, *[1] * len(dims))


def _begins(rows: int, lengths: Int[Array, " texts"]) -> Int[Array, "rows each"]:
    """The place in its row at which each text begins."""
    by_row = lengths.reshape(rows, -1)
    return jnp.cumsum(by_row, 1) - by_row


def _numbers(rows: int, length: int, lengths: Int[Array, " texts"]) -> Int[Array, "rows length"]:
    """The text of its row that each place belongs to, from 0 on; their number where a place only pads."""
    ends = jnp.cumsum(lengths.reshape(rows, -1), 1)
    return jnp.sum(jnp.arange(length)[:, None] >= ends[:, None], -1, dtype=jnp.int32)
