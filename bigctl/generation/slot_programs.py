"""The compiled programs of `slots`: a piece of a context is read, and some texts grow by up to 64 tokens."""

from __future__ import annotations

from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt

from bigctl.generation import sampling
from bigctl.generation.sampling import RuleValues
from bigctl.models.attention import Rows
from bigctl.models.layers import by_row

Cache = list[dict[str, Array]]
"""Keys and values of each layer [slots, groups, room, depth]."""
Likely = tuple[Array, Array, Array]
"""Log-probabilities of the tokens written, and numbers and values of the likeliest ones [most, batch, likeliest]."""
State = tuple[Array, Cache, Array, Array, Array, Array, Array, Likely]
"""What the loop of `write` carries: steps taken, cache, tokens seen, last tokens, how many each row has, how many it
may have, the tokens written, log-probabilities."""
MOST_STEPS = 64
"""Tokens a dispatch at most."""
LIKELIEST = 20
"""Tokens whose log-probabilities are given at most."""


class Network(Protocol):
    """What writes text: a decoder as `models.decoder` has it, an `nnx.Module`."""

    context: int
    vocab_size: int

    def cache(self, batch: int, length: int) -> Cache: ...

    def extend(self, tokens: Array, cache: Cache, start: Array, rows: Rows | None = ...) -> tuple[Array, Cache]: ...

    def logits(self, hidden: Array) -> Array: ...

    def logits_row_by_row(self, hidden: Array, used: Array) -> Array: ...


@partial(jax.jit, static_argnums=(0, 6), donate_argnums=(2,))
def read(
    graphdef: nnx.GraphDef[Network],
    params: nnx.State,
    cache: Cache,
    tokens: Int[Array, "1 piece"],
    slot: Int[Array, ""],
    start: Int[Array, " 1"],
    window: int,
) -> Cache:
    """A piece of a text into its slot; what pads it is overwritten before anything looks at it."""
    model = nnx.merge(graphdef, params)

    def part(each: Array) -> Array:
        return jax.lax.dynamic_slice(each, (slot, 0, 0, 0), (1, each.shape[1], window, each.shape[3]))

    def back(each: Array, new: Array) -> Array:
        new = jax.lax.dynamic_slice_in_dim(new, start[0], tokens.shape[1], axis=2)
        return jax.lax.dynamic_update_slice(each, new, (slot, 0, start[0], 0))

    new = model.extend(tokens, jax.tree.map(part, cache), start)[1]
    return jax.tree.map(back, cache, new)


@partial(jax.jit, donate_argnums=(0,))
def copy(cache: Cache, source: Int[Array, ""], target: Int[Array, ""]) -> Cache:
    return jax.tree.map(
        lambda each: jax.lax.dynamic_update_slice_in_dim(
            each, jax.lax.dynamic_slice_in_dim(each, source, 1), target, 0
        ),
        cache,
    )


@partial(jax.jit, donate_argnums=(0,))
def set_row(seen: Array, row: Int[Array, ""], value: Array) -> Array:
    return seen.at[row].set(value)


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(3, 4))
def write(
    graphdef: nnx.GraphDef[Network],
    vocab: int,
    params: nnx.State,
    cache: Cache,
    seen: Bool[Array, "slots vocab"],
    at: Rows,
    last: Int[Array, " batch"],
    places: Int[Array, " batch"],
    left: Int[Array, " batch"],
    seeds: UInt[Array, " batch"],
    samples: Int[Array, " batch"],
    written: Int[Array, " batch"],
    values: RuleValues,
    end: Int[Array, " ends"],
    never: Int[Array, " never"],
    steps: Int[Array, ""],
    likely: Bool[Array, ""],
) -> tuple[Int[Array, "most batch"], Int[Array, " batch"], Cache, Array, Likely]:
    """Up to `steps` tokens of each row, and no more than `left`, until all rows are done.

    Returns:
        the tokens; how many each row has, one of `end` among them; cache; `seen`; and, if `likely`, log-probabilities:
        of the tokens, and of the likeliest ones their numbers and values.
    """
    model = nnx.merge(graphdef, params)
    keys = sampling.row_keys(seeds, samples)
    top = min(LIKELIEST, vocab)
    batch = len(last)

    def going_on(state: State) -> Array:
        step, counts = state[0], state[4]
        return (step < steps) & (counts < left).any()

    def choose(raw: Array, seen: Array, keys: Array, values: RuleValues) -> Array:
        logits = raw.at[:, never].set(-jnp.inf) if len(never) else raw
        return sampling.choose(logits, seen, keys, values)

    def step_on(state: State) -> State:
        step, cache, seen, last, counts, left, chosen, found = state
        active = counts < left
        hidden, cache = model.extend(last[:, None], cache, places + counts, at)
        raw = model.logits_row_by_row(hidden[:, 0], at.used)[:, :vocab].astype(jnp.float32)
        now = sampling.at(keys, written + counts)
        token = by_row(choose, at.used, raw, seen[at.slots], now, values)
        found = jax.lax.cond(likely, lambda: _with_likely(found, step, raw, token, at.used), lambda: found)
        seen = seen.at[at.slots, token].max(active)
        chosen = chosen.at[step].set(token)
        ended = active & (token[:, None] == end).any(-1)
        counts += active
        last, left = jnp.where(active, token, last), jnp.where(ended, counts, left)
        return step + 1, cache, seen, last, counts, left, chosen, found

    shape = (MOST_STEPS, batch)
    found = (jnp.zeros(shape), jnp.zeros((*shape, top), jnp.int32), jnp.zeros((*shape, top)))
    state = (jnp.int32(0), cache, seen, last, jnp.zeros_like(left), left, jnp.zeros(shape, jnp.int32), found)
    _, cache, seen, _, counts, _, chosen, found = jax.lax.while_loop(going_on, step_on, state)
    return chosen, counts, cache, seen, found


def _with_likely(
    found: Likely, step: Array, logits: Float[Array, "batch vocab"], token: Int[Array, " batch"], used: Int[Array, ""]
) -> Likely:
    def of_row(logits: Array, token: Array) -> tuple[Array, Array, Array]:
        logprobs = jax.nn.log_softmax(logits)
        values, which = jax.lax.top_k(logprobs, found[1].shape[-1])
        return jnp.take_along_axis(logprobs, token[:, None], axis=-1)[:, 0], which, values

    new = by_row(of_row, used, logits, token)  # the sum of a softmax is in another order where rows are summed together
    return jax.tree.map(lambda all, one: all.at[step].set(one), found, new)
