"""From prompts as tokens to new tokens: a cache of keys and values, and two compiled programs.

`_prefill` reads all tokens of the prompts but the last, `_decode` writes up to 64 tokens without coming back to Python.
They are compiled once for each bucket of shapes: rows, prompt length and cache length are rounded up to powers of two;
how many tokens to write and the numbers of the sampling rules are arguments.

The context is finite. When a row has filled it, the model reads the last half of it anew, as if the text began there,
and goes on: each token sees between half a context and a whole one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Int

from bigctl.generation import sampling
from bigctl.generation.options import GenerationOptions
from bigctl.generation.sampling import RuleValues

Cache = list[dict[str, Array]]
"""Keys and values of each layer."""
Writing = tuple[Array, Cache, Array, Array, Array, Array, Array]
"""What the loop of `_decode` carries: steps taken, cache, tokens seen, last tokens, their places, who is done, the
tokens written."""
MOST_STEPS = 64
"""Tokens a dispatch at most."""

_SHORTEST = 16  # bucket of lengths
_QUICK, _SLOW = 0.05, 0.2  # seconds of a dispatch: below, the next one may be longer; above, it is shorter


class Network(Protocol):
    """What writes text: a decoder as `models.decoder` has it, an `nnx.Module`."""

    context: int
    vocab_size: int

    def cache(self, batch: int, length: int, dtype: DTypeLike = ...) -> Cache: ...

    def extend(self, tokens: Array, cache: Cache, start: Array) -> tuple[Array, Cache]: ...

    def logits(self, hidden: Array) -> Array: ...


class Batch:
    """Rows of text that grow together; each ends by itself.

    Args:
        model: a decoder.
        prompts: tokens of each row, at least one and no more than the context.
        settings: how tokens are chosen, and how many.
        samples: numbers of the rows; the randomness of a row is a function of the seed, of its number, and of how many
            tokens it has written.
        end: tokens that end a row; they are not given out.
        vocab: tokens that may be written, from the first on, where they are not all that the model has.
        never: tokens among them that may not.

    Attributes:
        tokens: of each row, the prompt's and the new ones.
        finish: why a row has ended: "end" (such a token), "length", or what `stop` was told; None while it grows.
    """

    def __init__(
        self,
        model: Network,
        prompts: Sequence[Sequence[int]],
        settings: GenerationOptions,
        *,
        samples: Sequence[int] | None = None,
        end: Sequence[int] = (),
        vocab: int | None = None,
        never: Sequence[int] = (),
    ):
        self.tokens = [list(prompt) for prompt in prompts]
        self.finish: list[str | None] = [None] * len(self.tokens)
        self.written = 0
        self.most = settings.max_new_tokens
        self.context = model.context
        self._model: tuple[nnx.GraphDef[Network], nnx.State] = nnx.split(model)
        self._vocab = min(model.vocab_size, vocab or 2**31)
        self._dtype = jax.tree.leaves(self._model[1])[0].dtype
        self._rows = _bucket(len(self.tokens), 1)
        self._length = min(self.context, _bucket(max(map(len, self.tokens)) + self.most, _SHORTEST))
        self._begin = [0] * len(self.tokens)  # where in a row's tokens its context begins
        self._steps = 1
        self._cache: Cache | None = None
        self._end, self._never = tuple(end), tuple(never)
        self._values = sampling.rule_values(settings)
        self._keys = sampling.row_keys(
            settings.seed, self._column(samples if samples is not None else range(len(prompts)))
        )
        self._seen = self._tokens_seen() if "repetition_penalty" in self._values else jnp.zeros((self._rows, 0), bool)

    @property
    def growing(self) -> list[int]:
        """Numbers of the rows that have not ended."""
        return [row for row, why in enumerate(self.finish) if why is None]

    def stop(self, row: int, why: str) -> None:
        self.finish[row] = why

    def advance(self) -> dict[int, list[int]]:
        """Let the rows grow by a few tokens; gives the new ones by row."""
        growing = self.growing
        if self._cache is None or not self._room():
            self._read()
        steps = min(self._steps, self._room(), self.most - self.written)
        done = np.ones(self._rows, bool)
        done[growing] = False
        start = time.perf_counter()
        chosen, count, self._cache, self._seen = _decode(
            self._model[0], self._vocab, self._model[1], self._cache, self._seen,
            self._column([tokens[-1] for tokens in self.tokens]),
            self._column([min(self._place(row), self._length - 1) for row in range(len(self.tokens))]),
            jnp.asarray(done), self._keys, jnp.array(self._end, jnp.int32),
            jnp.array(self._never, jnp.int32), self._values,
            jnp.int32(self.written), jnp.int32(steps),
        )  # fmt: skip
        new = np.asarray(chosen)[: int(count)]
        self._set_steps(time.perf_counter() - start)
        self.written += len(new)
        return {row: self._take(row, new[:, row].tolist()) for row in growing}

    def _take(self, row: int, new: list[int]) -> list[int]:
        ends = [place for place, token in enumerate(new) if token in self._end]
        if ends:
            new, self.finish[row] = new[: ends[0]], "end"
        elif self.written >= self.most:
            self.finish[row] = "length"
        self.tokens[row] += new
        return new

    # ----------------------------------------------------------------------------------------------------- the context

    def _place(self, row: int) -> int:
        """Place in the context of a row's last token, which is the one that the model has not read."""
        return len(self.tokens[row]) - 1 - self._begin[row]

    def _room(self) -> int:
        """How many tokens can be written before a row has filled the cache."""
        return self._length - max(map(self._place, self.growing))

    def _read(self) -> None:
        """Fill the cache; of a row that has filled its context with the last half of it."""
        for row in self.growing:
            if self._place(row) >= self._length:
                self._begin[row] = len(self.tokens[row]) - max(1, self.context // 2)
        texts = [tokens[begin:-1] for tokens, begin in zip(self.tokens, self._begin, strict=True)]
        length = min(_bucket(max(map(len, texts)), _SHORTEST), self._length)
        padded = np.zeros((self._rows, length), np.int32)
        for row in self.growing:
            padded[row, : len(texts[row])] = texts[row]
        self._cache = None  # its memory is free for the new one
        self._cache = _prefill(*self._model, jnp.asarray(padded), self._length, self._dtype)

    def _set_steps(self, seconds: float) -> None:
        """Dispatches long enough to cost little each, and short enough for someone who reads along."""
        if seconds < _QUICK:
            self._steps = min(2 * self._steps, MOST_STEPS)
        elif seconds > _SLOW:
            self._steps = max(1, self._steps // 2)

    def _tokens_seen(self) -> Array:
        seen = np.zeros((self._rows, self._vocab), bool)
        for row, tokens in enumerate(self.tokens):
            seen[row, tokens] = True
        return jnp.asarray(seen)

    def _column(self, values: Sequence[int]) -> Array:
        """One int32 a row, zeros for those that only fill the bucket."""
        column = np.zeros(self._rows, np.int32)
        column[: len(self.tokens)] = values
        return jnp.asarray(column)


def _bucket(count: int, least: int) -> int:
    """The next power of two."""
    return max(least, 1 << (count - 1).bit_length()) if count else least


# -------------------------------------------------------------------------------------------------------- the programs


@partial(jax.jit, static_argnums=(0, 3, 4))
def _prefill(
    graphdef: nnx.GraphDef[Network], params: nnx.State, tokens: Int[Array, "batch n"], length: int, dtype: DTypeLike
) -> Cache:
    """A cache of a length that holds these tokens; what pads them is overwritten before anything looks at it."""
    model = nnx.merge(graphdef, params)
    cache = model.cache(len(tokens), length, dtype)
    return model.extend(tokens, cache, jnp.zeros(len(tokens), jnp.int32))[1]


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(3, 4))
def _decode(
    graphdef: nnx.GraphDef[Network],
    vocab: int,
    params: nnx.State,
    cache: Cache,
    seen: Bool[Array, "batch vocab"],
    last: Int[Array, " batch"],
    places: Int[Array, " batch"],
    done: Bool[Array, " batch"],
    keys: Array,
    end: Int[Array, " ends"],
    never: Int[Array, " never"],
    values: RuleValues,
    written: Int[Array, ""],
    steps: Int[Array, ""],
) -> tuple[Int[Array, "most batch"], Int[Array, ""], Cache, Array]:
    """Up to `steps` tokens of each row, until all rows are done.

    Returns:
        the tokens, of which those of a row after one of `end` mean nothing; how many steps were taken; cache; `seen`.
    """
    model = nnx.merge(graphdef, params)
    rows = jnp.arange(len(last))

    def going_on(state: Writing) -> Array:
        step, _, _, _, _, done, _ = state
        return (step < steps) & ~done.all()

    def write(state: Writing) -> Writing:
        step, cache, seen, last, places, done, chosen = state
        hidden, cache = model.extend(last[:, None], cache, places)
        logits = model.logits(hidden[:, 0])[:, :vocab].astype(jnp.float32)
        logits = logits.at[:, never].set(-jnp.inf) if len(never) else logits
        token = sampling.choose(logits, seen, sampling.at(keys, written + step), values)
        if seen.shape[1]:
            seen = seen.at[rows, token].set(True)
        chosen = chosen.at[step].set(token)
        done |= (token[:, None] == end).any(-1)
        return step + 1, cache, seen, token, jnp.where(done, places, places + 1), done, chosen

    chosen = jnp.zeros((MOST_STEPS, len(last)), jnp.int32)
    state = (jnp.int32(0), cache, seen, last, places, done, chosen)
    count, cache, seen, _, _, _, chosen = jax.lax.while_loop(going_on, write, state)
    return chosen, count, cache, seen
