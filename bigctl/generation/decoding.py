"""From prompts as tokens to new tokens: rows of text that are begun together, in the slots of one cache."""

from __future__ import annotations

from collections.abc import Sequence

from bigctl.generation.options import GenerationOptions
from bigctl.generation.slot_programs import Network
from bigctl.generation.slots import Slots

_TRIED = 2  # tokens of two rows, alone and together, before any are written


class Batch:
    """Rows of text that grow together; each ends by itself.

    Args:
        model: a decoder.
        prompts: tokens of each row, at least one and no more than the context; `slots.MOST_SLOTS` rows at most.
        settings: how tokens are chosen, and how many.
        samples: numbers of the rows; the randomness of a row is a function of the seed, of its number, and of how many
            tokens it has written.
        end: tokens that end a row; they are not given out.
        vocab: tokens that may be written, from the first on, where they are not all that the model has.
        never: tokens among them that may not.

    Attributes:
        tokens: of each row, the prompt's and the new ones.
        finish: why a row has ended: "end" (such a token), "length", or what `stop` was told; None while it grows.
        written: tokens that were asked for of the rows so far, at most.
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
        self.most = settings.max_new_tokens
        longest = max(map(len, self.tokens)) + self.most
        self.slots = Slots(model, len(self.tokens), longest, end=end, vocab=vocab, never=never)
        for row, prompt in enumerate(self.tokens):
            self.slots.begin(row, prompt, settings, row if samples is None else samples[row])
            while self.slots.slots[row].unread:
                self.slots.read(row)
        if len(self.tokens) > 1:
            self.slots.try_together((0, 1), _TRIED)

    @property
    def growing(self) -> list[int]:
        """Numbers of the rows that have not ended."""
        return [row for row, why in enumerate(self.finish) if why is None]

    @property
    def written(self) -> int:
        return max(slot.written for slot in self.slots.slots)

    def stop(self, row: int, why: str) -> None:
        self.finish[row] = why

    def advance(self) -> dict[int, list[int]]:
        """Let the rows grow by a few tokens; gives the new ones by row."""
        found = self.slots.write(self.growing)
        for row, new in found.items():
            self.tokens[row] += new.tokens
            self.finish[row] = new.finish
        return {row: new.tokens for row, new in found.items()}
