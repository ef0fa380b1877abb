"""Texts as flat arrays of their tokens, and as flat arrays of their bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bigctl.data.text import ngrams, tokenization
from bigctl.data.text.stream_encoding import StreamEncoder, token_type

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BLOCK = 1000  # texts encoded at once: the library's own records of a text are many times its size


@dataclass(frozen=True)
class Encoded:
    """Texts as tokens, one after the other.

    Attributes:
        tokens: all of them, uint16 where that is enough, else int32 [T].
        offsets: where each text begins, int64 [N + 1].
        segment_start: place of the first token of the second text in its example, or the example's
            length without one, int32 [N].
        cut: which texts were longer than allowed, bool [N].
        unknown: share of unknown tokens.
        known_of: what that is a share of: all tokens, or the words of n-grams.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    segment_start: np.ndarray
    cut: np.ndarray
    unknown: float
    known_of: int = 0


def encode(
    tokenizer: Tokenizer | ngrams.Ngrams,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    max_length: int,
    truncate: str,
) -> Encoded:
    """Tokens of texts, or of pairs of them, special tokens included, none longer than `max_length`; or their n-grams,
    in which a pair is as one text."""
    if isinstance(tokenizer, ngrams.Ngrams):
        bags = tokenizer.encode(texts, pairs, max_length)
        starts = np.diff(bags.offsets).astype(np.int32)
        return Encoded(bags.tokens, bags.offsets, starts, bags.cut, bags.unknown, bags.words)
    marks = tokenization.special(tokenizer)
    cls, sep = [marks["cls"]], [marks["sep"]]
    kind = token_type(tokenizer)
    parts: list[np.ndarray] = []
    lengths, starts = np.zeros(len(texts), np.int64), np.zeros(len(texts), np.int32)
    cut, unknown = np.zeros(len(texts), bool), 0
    seconds = _ids(tokenizer, pairs) if pairs is not None else None
    for number, first in enumerate(_ids(tokenizer, texts)):
        other = next(seconds) if seconds is not None else None
        room = max_length - (2 if other is None else 3)
        total = len(first) + len(other or ())
        if total > room:
            cut[number] = True
            if other is None:
                first = shorten(first, room, truncate)
            else:
                share = shares(len(first), len(other), room)
                first, other = shorten(first, share[0], truncate), shorten(other, share[1], truncate)
        example = cls + first + sep
        starts[number] = len(example)
        if other is not None:
            example += other + sep
        lengths[number] = len(example)
        parts.append(np.array(example, kind))
    tokens = np.concatenate(parts) if parts else np.empty(0, kind)
    if "unk" in marks and len(tokens):
        unknown = int(np.count_nonzero(tokens == marks["unk"]))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Encoded(tokens, offsets, starts, cut, unknown / max(1, len(tokens)), len(tokens))


def encode_stream(tokenizer: Tokenizer, documents: Sequence[str], *, boundaries: bool) -> np.ndarray:
    """Documents as one run of tokens, uint16 where that is enough, else int32 [T].

    Args:
        tokenizer: any.
        documents: texts, in order.
        boundaries: put the end token between two of them.

    Raises:
        DataError: if an end token is wanted and there is none.
    """
    encoder = StreamEncoder(tokenizer)
    if boundaries and len(documents) > 1:
        encoder.require_end()
    return encoder.encode_pieces([(boundaries and number > 0, str(text)) for number, text in enumerate(documents)])


def _ids(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[list[int]]:
    for start in range(0, len(texts), _BLOCK):
        block = [str(text) for text in texts[start : start + _BLOCK]]
        for encoding in tokenizer.encode_batch_fast(block, add_special_tokens=False):
            yield encoding.ids


def shorten(ids: list[int], room: int, truncate: str) -> list[int]:
    """At most `room` tokens: the first, the last, or a quarter and three quarters of them (Sun et al. 2019)."""
    if len(ids) <= room:
        return ids
    if truncate == "tail":
        return ids[len(ids) - room :]
    if truncate == "head_tail":
        head = room // 4
        return ids[:head] + ids[len(ids) - (room - head) :]
    return ids[:room]


def shares(first: int, other: int, room: int) -> tuple[int, int]:
    """How much of each text of a pair is kept: the longer one is cut until they are equally long.

    Of an odd room the longer one, or the second, has the token more, as in the `tokenizers` library.
    """
    short = min(first, other, room // 2)
    return (room - short, short) if first > other else (short, room - short)


# ----------------------------------------------------------------------------------------------------- texts as arrays


@dataclass(frozen=True)
class Texts:
    """The texts themselves, as they were read, in arrays that can be mapped into memory.

    Attributes:
        content: UTF-8 of all texts, one after the other, uint8 [T].
        offsets: where each begins, int64 [N + 1].
    """

    content: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> str:
        start, end = int(self.offsets[number]), int(self.offsets[number + 1])
        return bytes(self.content[start:end]).decode("utf-8")

    def head(self, size: int) -> str:
        """The beginning of the first text, about so many bytes of it."""
        return bytes(self.content[: min(size, int(self.offsets[1]))]).decode("utf-8", "ignore")

    @classmethod
    def of(cls, texts: Sequence[str]) -> Texts:
        encoded = [str(text).encode("utf-8", "replace") for text in texts]
        offsets = np.concatenate([[0], np.cumsum([len(text) for text in encoded], dtype=np.int64)])
        return cls(np.frombuffer(b"".join(encoded), np.uint8), offsets.astype(np.int64))
