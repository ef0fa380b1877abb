"""Tokens to text as they come: whole characters only, and never a part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BROKEN = "\N{REPLACEMENT CHARACTER}"  # what a decoder shows for bytes that are no whole character
_BEFORE = 8  # tokens of the prompt that the first new ones are decoded with: a space may depend on what is before it


class TextStream:
    """The text that follows a prompt, piece by piece.

    Tokens may be parts of characters (byte-level BPE, bytes): text is held back while it ends in a part of one. So is
    the beginning of a stop string until it is clear that it is none. An incomplete character at the end is left out.

    Args:
        tokenizer: of the model.
        prompt: tokens before the text.
        stop: strings that end the text; they are not part of it.

    Attributes:
        text: all that `push` and `close` have given.
        stopped: whether a stop string has come.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str] = ()):
        self._tokenizer, self._stop = tokenizer, stop
        self._tokens: list[int] = []  # the last few of which the text has been given, and those since
        self._old = self._before = 0  # how many the former are, and the length of their text
        self._given = 0  # how much of the latter's text has been given all the same
        self._begin_after(list(prompt[-_BEFORE:]))
        self._held = ""
        self.text, self.stopped = "", False

    def push(self, token: int) -> str:
        """The text that is certain now; empty once a stop string has come."""
        return self._give(self._characters(token))

    def close(self) -> str:
        """What was held back only because a stop string might have begun there."""
        held, self._held = self._held, ""
        self.text += held
        return held

    def _characters(self, token: int) -> str:
        """The characters that a token completes: what it adds to the text of the few tokens before it."""
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens)[self._before :]
        whole = text.rstrip(_BROKEN)
        new = whole[self._given :]
        self._given = max(self._given, len(whole))
        if text and text == whole:
            self._begin_after(self._tokens[self._old :])
        return new

    def _begin_after(self, tokens: list[int]) -> None:
        """Decode the next tokens behind these ones, whose text has been given."""
        self._tokens, self._old = tokens, len(tokens)
        self._before, self._given = len(self._tokenizer.decode(tokens)), 0

    def _give(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        ends = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if ends:
            self.stopped, given, self._held = True, text[: min(ends)], ""
        else:
            certain = len(text) - max((_beginning(text, stop) for stop in self._stop), default=0)
            given, self._held = text[:certain], text[certain:]
        self.text += given
        return given


def _beginning(text: str, stop: str) -> int:
    """How many of the last characters of a text a stop string begins with, all of it excepted."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
