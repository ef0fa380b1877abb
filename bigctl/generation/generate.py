"""Text from a language model: prompts in, what it writes out, in pieces as they come or as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bigctl.data.text import tokenization
from bigctl.errors import DataError, RunError
from bigctl.generation import chat
from bigctl.generation.decoding import Batch
from bigctl.generation.options import GenerationOptions
from bigctl.generation.slot_programs import Network
from bigctl.generation.slots import MOST_SLOTS, LogProbs
from bigctl.generation.text_stream import TextStream

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ROWS = MOST_SLOTS
"""Texts that grow at once at most."""
Prompt = str | Sequence[Mapping[str, str]]
"""A text or, of a chat, a conversation as `chat.render` takes it."""


@dataclass(frozen=True)
class Piece:
    """Some more of one text.

    Attributes:
        prompt, sample: which text.
        text: what follows the pieces before.
        tokens: how many tokens it took so far.
        finish: None but for the last piece; "end" (the model's own end), "stop" (a stop string) or "length".
        logprobs: its tokens with their log-probabilities, where these were asked for.
    """

    prompt: int
    sample: int
    text: str
    tokens: int
    finish: str | None
    logprobs: tuple[tuple[int, LogProbs], ...] = ()


@dataclass(frozen=True)
class Generation:
    """A whole text, without its prompt; attributes as those of `Piece`."""

    prompt: int
    sample: int
    text: str
    tokens: int
    finish: str


@dataclass(frozen=True)
class LanguageModel:
    """A decoder with its tokenizer.

    Attributes:
        model: the network.
        tokenizer: that it was trained with.
        end: tokens that end a text.
        start: tokens before every prompt.
        template: of chats, for `chat.render`; None where the model has none.
        template_tokens: special tokens by the names that the template has for them.
        name: for messages.
        step: of the checkpoint, for a run's.
    """

    model: Network
    tokenizer: Tokenizer
    end: tuple[int, ...] = ()
    start: tuple[int, ...] = ()
    template: str | None = None
    template_tokens: dict[str, str] = field(default_factory=dict)
    name: str = "the model"
    step: int | None = None

    def generate(self, prompts: Sequence[Prompt], settings: GenerationOptions) -> list[Generation]:
        """All samples of the first prompt, then those of the second. Raises as `stream` does."""
        texts: dict[tuple[int, int], str] = {}
        done = {}
        for piece in self.stream(prompts, settings):
            row = (piece.prompt, piece.sample)
            texts[row] = texts.get(row, "") + piece.text
            if piece.finish:
                done[row] = Generation(*row, texts[row], piece.tokens, piece.finish)
        return [done[row] for row in sorted(done)]

    def stream(self, prompts: Sequence[Prompt], settings: GenerationOptions) -> Iterator[Piece]:
        """Pieces of all texts as they are written; a piece ends at the end of a character.

        Raises:
            DataError: for a prompt that is empty, has characters that the tokenizer does not know, or is longer than
                the context; nothing has been written then.
            RunError: for a chat with a model that has no chat template.
        """
        tokens = []
        for number, prompt in enumerate(prompts, 1):
            try:
                tokens.append(self.encode(prompt, settings))
            except DataError as error:
                error.where = f"{error.where}, prompt {number}" if len(prompts) > 1 else error.where
                raise
        rows = [(prompt, sample) for prompt in range(len(prompts)) for sample in range(settings.num_samples)]
        for first in range(0, len(rows), ROWS):
            yield from self._grow(rows[first : first + ROWS], tokens, settings)

    def _grow(
        self, rows: list[tuple[int, int]], prompts: list[list[int]], settings: GenerationOptions
    ) -> Iterator[Piece]:
        batch = Batch(
            self.model,
            [prompts[prompt] for prompt, _ in rows],
            settings,
            samples=[sample for _, sample in rows],
            end=self.end,
            vocab=self.vocab,
            never=self.never,
        )
        streams = [TextStream(self.tokenizer, prompts[prompt], settings.stop) for prompt, _ in rows]
        counts = [0] * len(rows)
        while batch.growing:
            for row, new in batch.advance().items():
                text = ""
                for token in new:
                    text += streams[row].push(token)
                    counts[row] += 1
                    if streams[row].stopped:
                        batch.stop(row, "stop")
                        break
                if batch.finish[row]:
                    text += streams[row].close()
                if text or batch.finish[row]:
                    yield Piece(*rows[row], text, counts[row], batch.finish[row])

    def encode(self, prompt: Prompt, settings: GenerationOptions) -> list[int]:
        """Tokens that the model reads for a prompt. Raises as `stream` does."""
        if not prompt:
            raise DataError("the prompt is empty", where=self.name, hint="give the model something to go on from")
        text = self._chat(prompt) if settings.chat or not isinstance(prompt, str) else prompt
        tokens = [*(() if settings.chat else self.start), *self._tokens(text)]
        context = self.model.context
        if len(tokens) <= context:
            return tokens
        if not settings.truncate:
            raise DataError(
                f"the prompt has {len(tokens):,} tokens, the model sees {context:,} at most",
                where=self.name,
                hint="shorten it, or use its end only: --truncate",
            )
        return tokens[-context:]

    def _chat(self, given: Prompt) -> str:
        if self.template is None:
            raise RunError("the model has no chat template", where=self.name, hint="generate without --chat")
        messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
        return chat.render(self.template, messages, **self.template_tokens)

    def _tokens(self, text: str) -> list[int]:
        try:
            text.encode()
            encoding = self.tokenizer.encode(text, add_special_tokens=False)
        except UnicodeEncodeError:
            raise DataError("the prompt is not UTF-8", where=self.name, hint="convert it, with iconv") from None
        except Exception as error:  # the library raises nothing more telling
            hint = "write it otherwise"
            if tokenization.is_numbers(self.tokenizer):
                hint = "the model was trained on tokens without a text: write them as numbers, such as '17 4 256'"
            raise DataError(f"the prompt cannot be encoded: {error}", where=self.name, hint=hint) from error
        strange = {
            text[a:b] for token, (a, b) in zip(encoding.ids, encoding.offsets, strict=True) if token == self._unknown
        }
        if strange or not encoding.ids:
            shown = ", ".join(f"{part!r} ({_code_points(part)})" for part in sorted(strange or {text})[:5])
            raise DataError(
                f"the tokenizer does not know {shown}",
                where=self.name,
                hint="write the prompt without, or train on text with it",
            )
        return encoding.ids

    @cached_property
    def vocab(self) -> int:
        """Tokens that may be written, from the first on."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def never(self) -> tuple[int, ...]:
        """Tokens that may not."""
        return () if self._unknown is None else (self._unknown,)

    @cached_property
    def _unknown(self) -> int | None:
        """The token that stands for what the tokenizer does not know, where it is that alone: GPT-2 has one for it and
        for the end of a text."""
        name = getattr(self.tokenizer.model, "unk_token", None)
        number = None if name is None else self.tokenizer.token_to_id(name)
        return None if number in (*self.end, *self.start) else number


def _code_points(text: str) -> str:
    return " ".join(f"U+{ord(character):04X}" for character in text[:3])


def sample_texts(
    model: Network, tokenizer: Tokenizer, prompts: Sequence[str], *, end: Sequence[int] = (), **options: Any
) -> list[str]:
    """What a model writes after each prompt: of `num_samples` texts, those of the first prompt first.

    Args:
        model: the network.
        tokenizer: that it is trained with.
        prompts: texts to go on from.
        end: tokens that end a text.
        options: of `GenerationOptions`.

    Raises:
        ConfigError, DataError: see `GenerationOptions` and `LanguageModel.stream`.
    """
    found = LanguageModel(model, tokenizer, tuple(end)).generate(prompts, GenerationOptions(**options))
    return [generation.text for generation in found]
