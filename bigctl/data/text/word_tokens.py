"""The tokens of each word of a sentence: the first of them stands for the word, the others for none.

Which word a token is of is told by where it is in the text that the words were joined to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bigctl.data.text import encoding, tokenization
from bigctl.data.text.encoding import Encoded
from bigctl.data.text.words import Spans, join

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

_BLOCK = 1000  # sentences encoded at once


@dataclass(frozen=True)
class EncodedWords:
    """Sentences as tokens.

    Attributes:
        encoded: the tokens, with marks of beginning and end.
        words: of every token, the number in its sentence of the word that it is the first token of, else -1, int32 [T].
        lost: how many words of each sentence have no token, because it was cut or the tokenizer drops them, int64 [N].
    """

    encoded: Encoded
    words: np.ndarray
    lost: np.ndarray

    def labels(self, tags: Sequence[np.ndarray]) -> np.ndarray:
        """The tag of every first token, -1 elsewhere, int32 [T]; `tags` are numbers [words] of each sentence."""
        counts = np.array([len(row) for row in tags], np.int64)
        begins = np.cumsum(counts) - counts
        flat = np.concatenate([*tags, np.zeros(1, np.int32)])
        sentence = np.repeat(np.arange(len(counts)), np.diff(self.encoded.offsets))
        return np.where(self.words < 0, -1, flat[begins[sentence] + np.maximum(self.words, 0)]).astype(np.int32)


def encode_words(tokenizer: Tokenizer, rows: Sequence[Sequence[str]], max_length: int, truncate: str) -> EncodedWords:
    """Tokens of sentences, each a row of words; marks of beginning and end included, none longer than `max_length`."""
    marks = tokenization.special(tokenizer)
    kind = encoding.token_type(tokenizer)
    tokens, words = [np.empty(0, kind)], [np.empty(0, np.int32)]
    lengths, lost = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    cut, room = np.zeros(len(rows), bool), max_length - 2
    for number, (found, spans) in enumerate(_encodings(tokenizer, rows)):
        ids, first = np.array(found.ids, kind), _first_of(found, spans)
        if len(ids) > room:
            cut[number] = True
            kept = np.array(encoding.shorten(list(range(len(ids))), room, truncate), np.int64)
            ids, first = ids[kept], first[kept]
        lost[number] = len(spans) - np.count_nonzero(first >= 0)
        tokens.append(np.concatenate([[marks["cls"]], ids, [marks["sep"]]]).astype(kind))
        words.append(np.concatenate([[-1], first, [-1]]).astype(np.int32))
        lengths[number] = len(ids) + 2
    flat = np.concatenate(tokens)
    unknown = int(np.count_nonzero(flat == marks["unk"])) if "unk" in marks else 0
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    encoded = Encoded(flat, offsets, lengths.astype(np.int32), cut, unknown / max(1, len(flat)), len(flat))
    return EncodedWords(encoded, np.concatenate(words), lost)


def _encodings(tokenizer: Tokenizer, rows: Sequence[Sequence[str]]) -> Iterator[tuple[Encoding, Spans]]:
    for start in range(0, len(rows), _BLOCK):
        joined = [join(row) for row in rows[start : start + _BLOCK]]
        found = tokenizer.encode_batch([text for text, _ in joined], add_special_tokens=False)
        yield from ((one, spans) for one, (_, spans) in zip(found, joined, strict=True))


def _first_of(found: Encoding, spans: Spans) -> np.ndarray:
    """Of every token the word that it is the first token of, else -1, int64 [tokens].

    A token is of the word that its last character is in: byte-level tokens begin with the space before.
    """
    last = np.array(found.offsets, np.int64).reshape(-1, 2)[:, 1] - 1
    word = np.searchsorted(spans[:, 0], last, side="right") - 1
    word = np.where((word >= 0) & (last < spans[word, 1]), word, -1)
    # A token outside of all words, such as a space, may stand between two tokens of one.
    before = np.concatenate([[-1], np.maximum.accumulate(word)])[: len(word)]
    return np.where(word > before, word, -1)
