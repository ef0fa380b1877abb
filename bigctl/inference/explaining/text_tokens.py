"""Tokens of a text beside the characters that they stand for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bigctl.data.text import encoding, tokenization
from bigctl.data.text.ngrams import Ngrams

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Piece:
    """A part of a text that is explained.

    Attributes:
        token: as the tokenizer writes it.
        part: 0, or 1 for the second text of a pair; None for what the tokenizer adds.
        start, end: its characters in that text, the end exclusive.
    """

    token: str
    part: int | None = None
    start: int = 0
    end: int = 0


def pieces_of(tokenizer: Tokenizer, texts: Sequence[str], longest: int, truncate: str) -> tuple[list[int], list[Piece]]:
    """Token ids of a text or a pair as `encoding.encode` gives them, and the piece that each stands for."""
    marks = tokenization.special(tokenizer)
    cls, sep = marks["cls"], marks["sep"]
    kept = [_placed(tokenizer, text, part) for part, text in enumerate(texts)]
    room = longest - 1 - len(kept)
    if sum(map(len, kept)) > room:
        first, *others = kept
        sizes = encoding.shares(len(first), len(others[0]), room) if others else (room,)
        places = [encoding.shorten([*range(len(k))], size, truncate) for k, size in zip(kept, sizes, strict=True)]
        kept = [[part[place] for place in chosen] for part, chosen in zip(kept, places, strict=True)]
    found = [(cls, Piece(str(tokenizer.id_to_token(cls))))]
    for part in kept:
        found += [*part, (sep, Piece(str(tokenizer.id_to_token(sep))))]
    return [number for number, _ in found], [piece for _, piece in found]


def _placed(tokenizer: Tokenizer, text: str, part: int) -> list[tuple[int, Piece]]:
    shift = len(text) - len(text.lstrip())
    found = tokenizer.encode(text.strip(), add_special_tokens=False)
    return [
        (number, Piece(token, part, start + shift, end + shift))
        for number, token, (start, end) in zip(found.ids, found.tokens, found.offsets, strict=True)
    ]


# ------------------------------------------------------------------------------------------------------------- n-grams

_WORD = re.compile(r"[฀-๿ༀ-࿿က-႟ក-៿\u3040-ヿ㐀-䶿一-鿿豈-\ufaff]|\w+|[^\w\s]")


def words_of(texts: Sequence[str]) -> list[Piece]:
    """The words and marks of a text or a pair."""
    return [
        Piece(found[0], part, found.start(), found.end())
        for part, text in enumerate(texts)
        for found in _WORD.finditer(text)
    ]


def shared_by_words(
    tokenizer: Ngrams, texts: Sequence[str], words: Sequence[Piece], tokens: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, float]:
    """What n-grams add to an output -> what words do, each n-gram's share being equal among the words that it spans,
    and among the places where it occurs; and what is of no word.

    Args:
        tokenizer: of the run.
        texts: the text, or both of a pair.
        words: see `words_of`.
        tokens: numbers of the n-grams in the text's bag.
        values: what each adds.
    """
    total: dict[int, float] = {}
    for number, value in zip(tokens.tolist(), values.tolist(), strict=True):
        total[number] = total.get(number, 0.0) + value
    # An n-gram is where the shortest run of words has it that does; longer runs around it are no places of their own.
    most = max(tokenizer.words, 1) + 1
    spans = [
        (first, first + size)
        for size in range(1, most + 1)
        for first in range(len(words) - size + 1)
        if words[first].part == words[first + size - 1].part
    ]
    slices = [texts[words[a].part or 0][words[a].start : words[b - 1].end] for a, b in spans]
    bags = tokenizer.encode(slices, None, 10**6)
    held: dict[int, list[tuple[int, int]]] = {}
    for (a, b), start, end in zip(spans, bags.offsets[:-1], bags.offsets[1:], strict=True):
        for number in {*bags.tokens[start:end].tolist()} & total.keys():
            places = held.setdefault(number, [])
            if not any(a <= inner_a and inner_b <= b for inner_a, inner_b in places):
                places.append((a, b))
    found, rest = np.zeros(len(words)), 0.0
    for number, value in total.items():
        places = held.get(number, []) if number else []  # 0 is what all texts have
        for a, b in places:
            found[a:b] += value / len(places) / (b - a)
        rest += 0.0 if places else value
    return found, rest
