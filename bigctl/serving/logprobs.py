"""Log-probabilities of tokens in the shapes of OpenAI's completions and chat completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bigctl.generation.slots import LogProbs

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Scored = Sequence[tuple[int, LogProbs]]
_BROKEN = "\N{REPLACEMENT CHARACTER}"


class Scores:
    """The tokens of one text, piece by piece.

    Args:
        tokenizer: of the model.
        top: how many of the likeliest tokens are given beside each.
        chat: whether in the shape of chats.
    """

    def __init__(self, tokenizer: Tokenizer, top: int, *, chat: bool):
        self._tokenizer, self._top, self._chat = tokenizer, top, chat
        self._offset = 0

    def shaped(self, scored: Scored) -> dict[str, Any]:
        """The next tokens; of completions the offsets count the characters of tokens, from the first new one on."""
        if self._chat:
            content = []
            for token, found in scored:
                best = [self._entry(*pair) for pair in found.likeliest[: self._top]]
                content.append({**self._entry(token, found.token), "top_logprobs": best})
            return {"content": content, "refusal": None}
        texts = [self._text(token) for token, _ in scored]
        offsets = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [found.token for _, found in scored],
            "top_logprobs": [self._best(found) for _, found in scored] if self._top else None,
            "text_offset": offsets,
        }

    def _best(self, found: LogProbs) -> dict[str, float]:
        best: dict[str, float] = {}
        for token, value in found.likeliest[: self._top]:
            best.setdefault(self._text(token), value)
        return best

    def _entry(self, token: int, value: float) -> dict[str, Any]:
        text = self._text(token)
        return {"token": text, "logprob": value, "bytes": None if _BROKEN in text else list(text.encode())}

    def _text(self, token: int) -> str:
        """What a token adds to a text: not what it is at the beginning of one, where decoders leave out a space."""
        once, twice = (self._tokenizer.decode([token] * count, skip_special_tokens=False) for count in (1, 2))
        return twice[len(once) :]


def joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Shapes of pieces as that of the whole."""
    first, *more = parts
    found = dict(first)
    for part in more:
        for name, value in part.items():
            found[name] = found[name] + value if isinstance(value, list) else value
    return found
