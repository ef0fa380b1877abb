"""Texts that grow side by side in the slots of one cache of keys and values; each may begin and end at any time.

Two kinds of programs: `_read` reads a piece of one text's context, `_write` lets some of the texts grow by up to 64
tokens without coming back to Python. What a text becomes does not depend on its company, to the last bit:

- A context is read in pieces of its own text alone, cut where its length says: shapes follow from the text.
- A token attends text by text, over a window that its own place gives (`attention_row_by_row`); so are products with
  weights made (`models.layers.by_row`), each with those of one row. A program has 2, 4, 8 or 16 rows.
  `Slots.try_together` finds out whether this holds for a model on a machine, and has texts computed one by one
  otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from bigctl.generation import sampling
from bigctl.generation import slot_programs as programs
from bigctl.generation.options import GenerationOptions
from bigctl.generation.slot_programs import MOST_STEPS, Cache, Likely, Network
from bigctl.models.attention import Rows, window_of

T = TypeVar("T")
MOST_SLOTS = 16
"""Texts at a time."""
PIECE, SHORT = 64, 16
"""Tokens of a context that are read at once; a rest of a few is read as the smaller piece."""
_WIDTHS = (2, 4, 8, MOST_SLOTS)
_ROOM = 128  # places of a cache at least, unless the context is shorter
_TRIED = 4  # tokens
_QUICK, _SLOW = 0.05, 0.2  # seconds of a dispatch: below, the next one may be longer; above, it is shorter


def _beside(params: nnx.State, given: T) -> T:
    """Arrays on the devices of the weights, as programs give them back: other places would be other programs."""
    place = getattr(jax.tree.leaves(params)[0], "sharding", None)  # none of arrays on the host
    return (
        jax.device_put(given, NamedSharding(place.mesh, PartitionSpec())) if isinstance(place, NamedSharding) else given
    )


class LogProbs(NamedTuple):
    """The model's own log-softmax of one token, before any rule of sampling.

    Attributes:
        token: of the token that was written.
        likeliest: of the `LIKELIEST` likeliest tokens: numbers and values, the first ones first.
    """

    token: float
    likeliest: list[tuple[int, float]]


class New(NamedTuple):
    """What a text has grown by: tokens, what ended it ("end", "length") if anything, and log-probabilities if asked."""

    tokens: list[int]
    finish: str | None
    logprobs: list[LogProbs]


@dataclass
class Slot:
    """One text.

    Attributes:
        context: what the model sees: tokens from where its context begins, the last of which it has not read.
        valid: places of the cache, from the first on, that hold this context.
        kept: tokens in the cache that were read in whole pieces: what another text may begin with.
    """

    context: list[int] = field(default_factory=list)
    valid: int = 0
    kept: list[int] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=lambda: dict(sampling.NEUTRAL))
    seed: int = 0
    sample: int = 0
    written: int = 0
    most: int = 0
    logprobs: bool = False

    @property
    def unread(self) -> int:
        """Tokens to read before it can grow."""
        return max(0, len(self.context) - 1 - self.valid)


def width_of(count: int) -> int:
    """How many slots there are where so many are asked for."""
    return next(width for width in _WIDTHS if width >= count)


def memory_of(model: Network, count: int) -> int:
    """Bytes that the cache of so many slots takes, for texts of the whole context."""
    shapes = jax.eval_shape(lambda: model.cache(width_of(count), -(-model.context // PIECE) * PIECE))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


class Slots:
    """A cache of some slots, and the texts in them.

    Args:
        model: a decoder.
        count: slots, up to `MOST_SLOTS`; there are 2, 4, 8 or 16.
        length: tokens that a text may have with all that it grows by, if this is less than the context.
        end: tokens that end a text; they are not given out.
        vocab: tokens that may be written, from the first on, where they are not all that the model has.
        never: tokens among them that may not.
        few: whether there is a smaller program for few texts, too.

    Attributes:
        together: whether several texts are computed as the rows of one program.
    """

    def __init__(
        self,
        model: Network,
        count: int,
        length: int | None = None,
        *,
        end: Sequence[int] = (),
        vocab: int | None = None,
        never: Sequence[int] = (),
        few: bool = False,
    ):
        self.slots = [Slot() for _ in range(width_of(count))]
        self.together = True
        self._widths = (_WIDTHS[0], len(self.slots)) if few else (len(self.slots),)
        self.context = model.context
        self._model: tuple[nnx.GraphDef[Network], nnx.State] = nnx.split(model)
        self._vocab = min(model.vocab_size, vocab or 2**31)
        whole = -(-model.context // PIECE) * PIECE
        self._room = whole if length is None else min(whole, max(_ROOM, 1 << max(0, length - 1).bit_length()))
        self.cache: Cache = _beside(self._model[1], model.cache(len(self.slots), self._room))
        self._seen = _beside(self._model[1], jnp.zeros((len(self.slots), self._vocab), bool))
        self._end, self._never = jnp.array(tuple(end), jnp.int32), jnp.array(tuple(never), jnp.int32)
        self._ends = frozenset(end)
        self._steps = 1

    # ------------------------------------------------------------------------------------------------- begin, read, end

    def begin(
        self, number: int, tokens: Sequence[int], settings: GenerationOptions, sample: int, *, logprobs: bool = False
    ) -> int:
        """Put a text into a slot, to be read and to grow; gives how many of its tokens are in the cache already."""
        slot = self.slots[number]
        slot.numbers, slot.seed, slot.sample = sampling.rule_numbers(settings), settings.seed, sample
        slot.written, slot.most, slot.logprobs = 0, settings.max_new_tokens, logprobs
        if slot.numbers["repetition_penalty"] != 1:
            seen = np.zeros(self._vocab, bool)
            seen[[token for token in tokens if token < self._vocab]] = True
            self._seen = programs.set_row(self._seen, jnp.int32(number), jnp.asarray(seen))
        return self._place(number, list(tokens))

    def _place(self, number: int, context: list[int]) -> int:
        """A new context, of which the slot that has most of it in whole pieces gives the beginning."""
        slot = self.slots[number]
        shared = [self._shared(other, context) for other in self.slots]
        best = max(range(len(shared)), key=lambda other: (shared[other], other == number))
        if best != number and shared[best]:
            self.cache = programs.copy(self.cache, jnp.int32(best), jnp.int32(number))
        slot.context, slot.valid = context, shared[best]
        slot.kept = context[: shared[best]]
        return slot.valid

    def worth(self, number: int, tokens: Sequence[int]) -> tuple[int, int]:
        """How well a text goes into a slot: by what it would find there, then by how little it would overwrite."""
        slot = self.slots[number]
        return self._shared(slot, list(tokens)), -len(slot.kept)

    @staticmethod
    def _shared(slot: Slot, context: list[int]) -> int:
        most = min(len(slot.kept), len(context) - 1) // PIECE
        for count in range(most):
            part = slice(PIECE * count, PIECE * (count + 1))
            if slot.kept[part] != context[part]:
                return PIECE * count
        return PIECE * max(0, most)

    def read(self, number: int) -> None:
        """Read the next piece of a text's context."""
        slot = self.slots[number]
        size = SHORT if slot.unread <= SHORT else PIECE
        tokens = slot.context[slot.valid : slot.valid + min(size, slot.unread)]
        padded = np.zeros((1, size), np.int32)
        padded[0, : len(tokens)] = tokens
        window = window_of(slot.valid + size, self._room)
        place = jnp.array([slot.valid], jnp.int32)
        self.cache = programs.read(*self._model, self.cache, jnp.asarray(padded), jnp.int32(number), place, window)
        slot.valid += len(tokens)
        if len(tokens) == PIECE:
            slot.kept = slot.context[: slot.valid]

    def free(self, number: int) -> None:
        """The text of a slot has ended; what others may begin with stays."""
        slot = self.slots[number]
        slot.context, slot.valid = [], len(slot.kept)

    def prepare(self) -> None:
        """Compile all programs; where the company of a text changes a bit of what the model says of it, texts are not
        computed together."""
        windows = sorted({window_of(place, self._room) for place in range(PIECE, self._room + 1, PIECE)})
        for window in windows:
            for size in (SHORT, PIECE):
                tokens, zero = jnp.zeros((1, size), jnp.int32), jnp.int32(0)
                self.cache = programs.read(*self._model, self.cache, tokens, zero, zero[None], window)
        self.cache = programs.copy(self.cache, jnp.int32(0), jnp.int32(1))
        self._seen = programs.set_row(self._seen, jnp.int32(0), jnp.zeros(self._vocab, bool))
        settings = GenerationOptions(temperature=1.0, max_new_tokens=_TRIED)
        numbers = range(len(self.slots))
        for number in numbers:
            count = min(7 * number + 5, self.context - _TRIED)
            made_up = np.random.default_rng(number).integers(0, self._vocab, max(1, count))
            self.begin(number, made_up.tolist(), settings, number)
            while self.slots[number].unread:
                self.read(number)
        self.try_together(numbers, _TRIED)
        self.slots = [Slot() for _ in numbers]

    def try_together(self, numbers: Sequence[int], steps: int) -> None:
        """Find out whether these texts, all read, grow by the same tokens with the same log-probabilities in company as
        each does alone; if not, no texts are computed together. They are left as they were."""
        before, seen, pace = list(self.slots), jnp.copy(self._seen), self._steps

        def tried(several: Sequence[int]) -> list[New]:
            self.slots = [replace(slot, context=list(slot.context), logprobs=True) for slot in before]
            found = self._grown(list(several), steps)
            return [found[number] for number in several]

        alone = [each for number in numbers for each in tried([number])]
        self.together = tried(numbers) == alone
        self.slots, self._seen, self._steps = before, seen, pace

    # ------------------------------------------------------------------------------------------------------------- grow

    def write(self, numbers: Sequence[int], most: int | None = None) -> dict[int, New]:
        """Let these texts, all read, grow by a few tokens, `most` of them each where that is given.

        The context is finite: of a text that has filled it, the last half is read anew, as if the text began there.
        """
        for number in numbers:
            if len(self.slots[number].context) > self.context:
                self._place(number, self.slots[number].context[-max(1, self.context // 2) :])
                while self.slots[number].unread:
                    self.read(number)
        steps = self._steps if most is None else min(most, self._steps)
        if self.together:
            return self._grown(list(numbers), steps)
        found: dict[int, New] = {}
        for number in numbers:
            found |= self._grown([number], steps)
        return found

    def _grown(self, numbers: list[int], steps: int) -> dict[int, New]:
        width = next(width for width in self._widths if width >= len(numbers))
        # Other rows fill the program; one writes where the next token of its own text will be written over it.
        others = [number for number in range(len(self.slots)) if number not in numbers]
        rows = [self.slots[number] for number in numbers + others[: width - len(numbers)]]
        places = np.array([row.valid for row in rows], np.int32)
        left = np.zeros(width, np.int32)
        left[: len(numbers)] = [min(row.most - row.written, self.context - row.valid) for row in rows[: len(numbers)]]
        start = time.perf_counter()
        values = {name: jnp.array([row.numbers[name] for row in rows], jnp.float32) for name in sampling.NEUTRAL}
        chosen, counts, self.cache, self._seen, likely = programs.write(
            self._model[0], self._vocab, self._model[1], self.cache, self._seen,
            Rows(jnp.array((numbers + others)[:width], jnp.int32), jnp.int32(len(numbers))),
            jnp.array([row.context[-1] if row.context else 0 for row in rows], jnp.int32),
            jnp.asarray(places), jnp.asarray(left),
            jnp.array([row.seed for row in rows], jnp.uint32), jnp.array([row.sample for row in rows], jnp.int32),
            jnp.array([row.written for row in rows], jnp.int32), values,
            self._end, self._never, jnp.int32(steps),
            jnp.asarray(any(row.logprobs for row in rows[: len(numbers)])),
        )  # fmt: skip
        tokens, count = np.asarray(chosen), np.asarray(counts)
        self._set_steps(time.perf_counter() - start)
        return {
            number: self._taken(number, tokens[: count[row], row].tolist(), row, likely)
            for row, number in enumerate(numbers)
        }

    def _taken(self, number: int, new: list[int], row: int, likely: Likely) -> New:
        slot = self.slots[number]
        slot.written += len(new)
        finish = "length" if slot.written >= slot.most else None
        if new and new[-1] in self._ends:
            new, finish = new[:-1], "end"
        slot.context += new
        slot.valid = len(slot.context) - 1
        logprobs = []
        if slot.logprobs:
            of, which, values = (np.asarray(part[:, row]) for part in likely)
            for step in range(len(new)):
                pairs = zip(which[step].tolist(), values[step].tolist(), strict=True)
                logprobs.append(LogProbs(float(of[step]), list(pairs)))
        return New(new, finish, logprobs)

    def _set_steps(self, seconds: float) -> None:
        """Dispatches long enough to cost little each, and short enough for someone who reads along."""
        if seconds < _QUICK:
            self._steps = min(2 * self._steps, MOST_STEPS)
        elif seconds > _SLOW:
            self._steps = max(1, self._steps // 2)
