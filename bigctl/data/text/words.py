"""Words of a sentence: a text divided into them, and words joined to a text.

Words are joined with a space, so that any tokenizer sees a text as it was made for. A text that is to be tagged is
divided into words first, and these take the same way.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

Spans = Int[np.ndarray, "words 2"]
"""Where each word begins and, exclusive, where it ends [characters]."""

_BLANK = re.compile(r"\s")
_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_MARKS = (
    r"!-/:-@\[-`{-~\u00a1-\u00a9\u00ab-\u00b1\u00b4\u00b6-\u00b8\u00bb\u00bf\u2010-\u2027\u2030-\u205e\u20a0-\u20cf"
    r"\u3001-\u303f\uff01-\uff0f\uff1a-\uff20"
)
_LETTERS = rf"[^\s{_MARKS}{_IDEOGRAPHS}]+"
_WORD = re.compile(
    rf"{_LETTERS}(?:(?:['’.\-@&/_]|(?<=\d)[,:](?=\d)){_LETTERS})*|[{_IDEOGRAPHS}]|[{_MARKS}]",
)


def split(text: str) -> Spans:
    """The words of a text that nobody has divided.

    They end at blanks; punctuation is a word of its own, a mark each, unless it is inside of one (`U.N.` is `U.N` and
    `.`; `10:30`, `O'Brien` and `2026-11-05` are one); so is each Chinese or Japanese character.
    """
    return np.array([match.span() for match in _WORD.finditer(text)], np.int64).reshape(-1, 2)


def join(words: Sequence[str]) -> tuple[str, Spans]:
    """Words as a text with a space between, and where each of them is; a blank in a word becomes a no-break space."""
    whole = [_BLANK.sub("\u00a0", word) for word in words]
    sizes = np.array([len(word) for word in whole], np.int64)
    ends = np.cumsum(sizes + 1) - 1
    return " ".join(whole), np.stack([ends - sizes, ends], axis=1)


def joined(words: Sequence[str]) -> str:
    """The text that `join` makes of words."""
    text = " ".join(words)
    plain = len(text.split()) == len(words) == text.count(" ") + 1  # no blank is in a word
    return text if plain else join(words)[0]


def of_joined(text: str) -> list[str]:
    """The words that `join` has joined."""
    return text.split(" ")
