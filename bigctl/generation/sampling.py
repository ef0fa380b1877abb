"""From logits to the next token: pure functions of logits [batch, vocab], in the order in which they are applied.

The rules, their order and their edge cases are those of the logits processors of Hugging Face transformers: repetition
penalty, temperature, top-k, top-p, min-p. Where several tokens tie for the last place, all of them stay.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bigctl import randomness
from bigctl.generation.options import GenerationOptions

Logits = Float[Array, "batch vocab"]
RuleValues = dict[str, Array]
"""The numbers of all rules by name, each one for all rows or one a row [batch]: arguments of the compiled program,
which goes past the rules that no row uses."""
NEUTRAL = {"repetition_penalty": 1.0, "temperature": 0.0, "top_k": 0.0, "top_p": 1.0, "min_p": 0.0}
"""Numbers that change nothing; without a temperature nothing is drawn."""


def rule_numbers(settings: GenerationOptions) -> dict[str, float]:
    return NEUTRAL | {name: float(getattr(settings, name)) for name in settings.rules}


def rule_values(settings: GenerationOptions) -> RuleValues:
    return {name: jnp.float32(number) for name, number in rule_numbers(settings).items()}


def choose(logits: Logits, seen: Bool[Array, "batch vocab"], keys: Array, values: RuleValues) -> Int[Array, " batch"]:
    """The next token of each row.

    Args:
        logits: of the next token, float32.
        seen: which tokens the text has had; read under a repetition penalty only.
        keys: random keys [batch], one a row and a place; read unless the temperature is 0.
        values: from `rule_values`.
    """
    logits = filtered(logits, seen, values)
    drawn = values["temperature"] > 0

    def draw(logits: Logits) -> Logits:  # the Gumbel-max trick: the argmax is a sample from the softmax
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
        return jnp.where(drawn[..., None], logits + noise, logits)

    return jnp.argmax(_where_any(drawn, draw, logits), axis=-1).astype(jnp.int32)


def filtered(logits: Logits, seen: Bool[Array, "batch vocab"], values: RuleValues) -> Logits:
    """Logits after the rules; -inf for tokens that are out."""
    column = {name: value[..., None] for name, value in values.items()}
    if seen.shape[1]:
        penalty = values["repetition_penalty"]
        logits = _where_any(penalty != 1, lambda x: repetition_penalty(x, seen, penalty[..., None]), logits)
    logits = logits / jnp.where(column["temperature"] > 0, column["temperature"], 1)
    k, p, least = (values[name] for name in ("top_k", "top_p", "min_p"))
    logits = _where_any(k > 0, lambda x: jnp.where(column["top_k"] > 0, top_k(x, k), x), logits)
    logits = _where_any(p < 1, lambda x: jnp.where(column["top_p"] < 1, top_p(x, p), x), logits)
    return _where_any(least > 0, lambda x: jnp.where(column["min_p"] > 0, min_p(x, column["min_p"]), x), logits)


def _where_any(used: Array, rule: Callable[[Logits], Logits], logits: Logits) -> Logits:
    """What a rule makes of logits, which is not computed where no row uses it."""
    return jax.lax.cond(used.any(), rule, lambda x: x, logits)


def repetition_penalty(logits: Logits, seen: Bool[Array, "batch vocab"], penalty: Array | float) -> Logits:
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def top_k(logits: Logits, k: Array | float) -> Logits:
    return _keep_the_largest(logits, jnp.ones_like(logits), k)


def top_p(logits: Logits, p: Array | float) -> Logits:
    return _keep_the_largest(logits, jax.nn.softmax(logits), p)


def min_p(logits: Logits, p: Array | float) -> Logits:
    return jnp.where(logits < logits.max(-1, keepdims=True) + jnp.log(p), -jnp.inf, logits)


def row_keys(seeds: int | Int[Array, " batch"], samples: Int[Array, " batch"]) -> Array:
    """Keys [batch] of rows, which with `at` give a sample the same randomness in any company."""

    def key(seed: Array, sample: Array) -> Array:
        return jax.random.fold_in(randomness.key(seed, randomness.SAMPLING), sample)

    return jax.vmap(key)(jnp.broadcast_to(jnp.uint32(seeds), samples.shape), samples)


def at(keys: Array, places: Int[Array, "*batch"]) -> Array:
    """Keys [batch] of new tokens, by their number among the new ones of their row."""
    return jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(places, keys.shape))


def _keep_the_largest(logits: Logits, weights: Logits, enough: Array | float) -> Logits:
    """The fewest of the largest logits whose weights sum to `enough`; all of them where the sum stays below it,
    and always the largest.

    The smallest one is found by halving the range of the 2^32 floats: 32 passes over the row take a hundredth of the
    time that XLA's CPU code takes to sort it, for a vocabulary of 49,152.
    """
    order = _ordered(logits)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds  # the weights from `low` on are enough, those from `high` on are not
        middle = (low & high) + ((low ^ high) >> 1)
        sums = jnp.sum(jnp.where(order >= middle[:, None], weights, 0), axis=-1)
        return jnp.where(sums >= enough, middle, low), jnp.where(sums >= enough, high, middle)

    ends = (jnp.full(len(logits), end, jnp.int32) for end in (-(2**31), 2**31 - 1))
    smallest, _ = jax.lax.fori_loop(0, 32, halve, tuple(ends))
    smallest = jnp.minimum(smallest, order.max(-1))  # where `enough` is so small that float32 makes it 0
    return jnp.where(order < smallest[:, None], -jnp.inf, logits)


def _ordered(values: Float[Array, "*dims"]) -> Int[Array, "*dims"]:
    """Integers in the order of the float32 values: IEEE 754 bits, those of negative numbers turned round."""
    bits = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
