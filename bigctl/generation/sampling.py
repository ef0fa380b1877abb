"""From logits to the next token: pure functions of logits [batch, vocab], in the order in which they are applied.

The rules, their order and their edge cases are those of the logits processors of Hugging Face transformers: repetition
penalty, temperature, top-k, top-p, min-p. Where several tokens tie for the last place, all of them stay.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bigctl import randomness
from bigctl.generation.options import GenerationOptions

Logits = Float[Array, "batch vocab"]
RuleValues = dict[str, Array]
"""The values of the rules in use, by name: an argument of the compiled program, so that others need no new one."""


def rule_values(settings: GenerationOptions) -> RuleValues:
    return {name: jnp.float32(getattr(settings, name)) for name in settings.rules}


def choose(logits: Logits, seen: Bool[Array, "batch vocab"], keys: Array, values: RuleValues) -> Int[Array, " batch"]:
    """The next token of each row.

    Args:
        logits: of the next token, float32.
        seen: which tokens the text has had; read under a repetition penalty only.
        keys: random keys [batch], one a row and a place; read unless the temperature is 0.
        values: from `rule_values`.
    """
    logits = filtered(logits, seen, values)
    if "temperature" in values:  # the Gumbel-max trick: the argmax is a sample from the softmax
        logits += jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def filtered(logits: Logits, seen: Bool[Array, "batch vocab"], values: RuleValues) -> Logits:
    """Logits after the rules of which `values` has the value; -inf for tokens that are out."""
    if "repetition_penalty" in values:
        logits = repetition_penalty(logits, seen, values["repetition_penalty"])
    if "temperature" in values:
        logits = logits / values["temperature"]
    for name, rule in (("top_k", top_k), ("top_p", top_p), ("min_p", min_p)):
        if name in values:
            logits = rule(logits, values[name])
    return logits


def repetition_penalty(logits: Logits, seen: Bool[Array, "batch vocab"], penalty: Array | float) -> Logits:
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def top_k(logits: Logits, k: Array | float) -> Logits:
    return _keep_the_largest(logits, jnp.ones_like(logits), k)


def top_p(logits: Logits, p: Array | float) -> Logits:
    return _keep_the_largest(logits, jax.nn.softmax(logits), p)


def min_p(logits: Logits, p: Array | float) -> Logits:
    return jnp.where(logits < logits.max(-1, keepdims=True) + jnp.log(p), -jnp.inf, logits)


def row_keys(seed: int, samples: Int[Array, " batch"]) -> Array:
    """Keys [batch] of rows, which with `at` give a sample the same randomness in any company."""
    key = randomness.key(seed, randomness.SAMPLING)
    return jax.vmap(lambda sample: jax.random.fold_in(key, sample))(samples)


def at(keys: Array, place: Int[Array, ""]) -> Array:
    """Keys [batch] of the place-th new token."""
    return jax.vmap(lambda key: jax.random.fold_in(key, place))(keys)


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
