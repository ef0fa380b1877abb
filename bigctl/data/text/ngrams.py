"""Texts as bags of hashed n-grams: words, runs of words, and pieces of words (Joulin et al. 2017), for any language.

A word is a run of letters and digits; each character of a script that is written without blanks (Chinese, Japanese,
Thai and others) is one of its own, and so is a mark such as an exclamation mark. Pieces are runs of characters of what
stands between blanks and marks, with one blank on either side. All of them are computed at once for a block of texts,
from one array of its characters; nothing here loops over characters in Python.

An n-gram is known by 32 bits: two for its kind, so that sorted ones have words first, and 30 of its hash. Those that
are in most texts of the training split are kept: twice as many words and runs of words as pieces, where there are so
many. They are numbered by how many texts they are in, words and runs before pieces, so that what is as rare has numbers
in a row, and a model is told the weight of all of them (`groups`) in a short list.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import itertools
import json
import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt32, UInt64

from bigctl.config import schema
from bigctl.data.text.run_hashes import BASE, Hashes, mixed
from bigctl.errors import DataError

TYPE = "ngrams"
"""What `recipe.tokenizer.type` and a stored file call it."""

RULE = 2
"""How n-grams are chosen and texts are encoded; what is kept of another rule is not taken for that of this one."""

ANY = 0
"""The number that every text has, so that none is without; n-grams count from 1."""

MOST_WORDS = 3
"""The longest runs of words that there are."""

_BLOCK = 2**20  # characters that are looked at together
_PENDING = 2**23  # n-grams counted before they are added to those known
_MOST = 2**23  # n-grams that are counted at all: beyond, those of a single text are forgotten
_STEP = 1.05  # of two n-grams of one group, the one that is in more texts is in no more than so many times as many
_PIECES = 3  # the kind of pieces of words; runs of n words are of kind n - 1
_SEPARATOR, _LETTER, _ALONE, _MARK = range(4)
_UNSPACED = (  # scripts without blanks between words
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF),
)  # fmt: skip

Codes = UInt32[np.ndarray, " ngrams"]


@dataclass(frozen=True)
class Bags:
    """Texts as numbers of n-grams, one text after the other.

    Attributes:
        tokens: all of them, uint16 where that is enough, else int32 [T].
        offsets: where each text begins, int64 [N + 1].
        cut: which texts had more than allowed, bool [N].
        unknown: share of the words that have no number.
        words: how many there are.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    cut: np.ndarray
    unknown: float
    words: int = 0


Group = tuple[int, bool, float]


@dataclass(frozen=True)
class Ngrams:
    """Which n-grams texts are told by.

    Attributes:
        words: longest runs of words; 0 for none.
        characters: shortest and longest pieces of words, blanks included; empty for none.
        lowercase: whether case is folded.
        kept: those that have a number, in its order; the number of the first one is 1.
        groups: numbers that share a weight: the first one behind them, whether they are pieces, and their inverse
            document frequency, log((1 + texts) / (1 + texts that such an n-gram is in)) + 1. None where `kept` is in
            the order of bits and a text has each n-gram once, as older versions learned them; else it has one that
            occurs n times round(1 + log(n)) times.
    """

    words: int
    characters: tuple[int, ...]
    lowercase: bool
    kept: Codes
    groups: tuple[Group, ...] | None = None

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return len(self.kept) + 1

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int) -> Bags:
        """The numbers of the n-grams of each text, ascending, ANY first; of a pair those of both.

        Args:
            texts: any.
            pairs: second texts, or None.
            max_length: so many of a text at most: of words before runs of words before pieces, from its beginning.
        """
        kind = np.int32 if self.size > 2**16 else np.uint16
        tokens, lengths, cut = [np.empty(0, kind)], [np.empty(0, np.int64)], [np.empty(0, bool)]
        words = unknown = 0
        order = np.argsort(self.kept, kind="stable")
        ascending = self.kept[order]
        for block in _blocks(texts, pairs):
            found = _find(self, block, max_length - 1)
            place = np.minimum(np.searchsorted(ascending, found.codes), max(0, len(ascending) - 1))
            known = ascending[place] == found.codes if len(ascending) else np.zeros(len(place), bool)
            plain = found.codes >> 30 == 0
            words, unknown = words + int(plain.sum()), unknown + int((plain & ~known).sum())
            rows = np.concatenate([np.arange(len(block)), found.rows[known]])
            every = np.concatenate([np.full(len(block), ANY), order[place[known]] + 1])
            both = rows.astype(np.uint64) << np.uint64(32) | every.astype(np.uint64)
            each, times = np.unique(both, return_counts=True)
            if self.groups is not None:
                each = np.repeat(each, np.rint(1 + np.log(times)).astype(np.int64))
            tokens.append((each & np.uint64(2**32 - 1)).astype(kind))
            lengths.append(np.bincount((each >> np.uint64(32)).astype(np.int64), minlength=len(block)))
            cut.append(found.cut)
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths), dtype=np.int64)])
        return Bags(np.concatenate(tokens), offsets, np.concatenate(cut), unknown / max(1, words), words)

    def to_str(self, pretty: bool = False) -> str:
        """As it is stored."""
        kept = base64.b64encode(self.kept.astype("<u4").tobytes()).decode()
        values: dict[str, Any] = {
            "type": TYPE,
            "words": self.words,
            "characters": list(self.characters),
            "lowercase": self.lowercase,
        }
        if self.groups is not None:
            values["groups"] = [list(group) for group in self.groups]
        return json.dumps({**values, "kept": kept}, indent=1 if pretty else None)


def load(file: Path) -> Ngrams:
    """What `Ngrams.to_str` wrote. Raises DataError if it is not."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        kept = np.frombuffer(base64.b64decode(values["kept"], validate=True), "<u4").astype(np.uint32)
        words, characters = int(values["words"]), tuple(map(int, values["characters"]))
        groups = _groups(values["groups"], len(kept) + 1) if "groups" in values else None
        ascending = kept if groups is None else np.sort(kept)
        if (np.diff(ascending.astype(np.int64)) <= 0).any() or not _possible(words, characters):
            raise ValueError("its n-grams are not in order")
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise DataError(f"holds no n-grams: {error}", where=str(file), hint="is the file whole?") from error
    return Ngrams(words, characters, bool(values["lowercase"]), kept, groups)


def _groups(values: Iterable[Group], size: int) -> tuple[Group, ...]:
    groups = tuple((int(end), bool(pieces), float(weight)) for end, pieces, weight in values)
    ends = [1, *(end for end, _, _ in groups)]
    if (np.diff(ends) <= 0).any() or ends[-1] != size or not all(0 < weight < 100 for _, _, weight in groups):
        raise ValueError("its groups are not in order")
    return groups


def _possible(words: int, characters: tuple[int, ...]) -> bool:
    return 0 <= words <= MOST_WORDS and (
        not characters or (len(characters) == 2 and 1 <= characters[0] <= characters[1])
    )


def learn(settings: schema.NgramTokenizer, texts: Iterable[str]) -> Ngrams:
    """The n-grams that are in most of some texts; of those in equally many the ones with the lower bits.

    Those in fewer than `settings.min_texts` texts are left out, unless all are. Where the first texts, a block of a
    million characters, have more than `settings.pieces_up_to` each, and words are wanted, there are no pieces.
    """
    empty = Ngrams(settings.words, tuple(settings.characters), settings.lowercase, np.empty(0, np.uint32))
    known, counts = np.empty(0, np.uint32), np.empty(0, np.int64)
    pending: list[Codes] = []
    total = 0
    for block in _blocks(texts, None):
        if not total and _too_long(settings, block):
            empty = dataclasses.replace(empty, characters=())
        total += len(block)
        found = _find(empty, block, settings.max_length - 1)
        each = np.unique(found.rows.astype(np.uint64) << np.uint64(32) | found.codes)
        pending.append((each & np.uint64(2**32 - 1)).astype(np.uint32))
        if sum(map(len, pending)) > _PENDING:
            known, counts = _added(known, counts, pending)
            pending = []
    known, counts = _added(known, counts, pending)
    if counts.max(initial=0) >= settings.min_texts:
        known, counts = known[counts >= settings.min_texts], counts[counts >= settings.min_texts]
    order = np.argsort(-counts, kind="stable")
    pieces = known[order] >> 30 == _PIECES
    words, parts = order[~pieces], order[pieces]
    room = settings.size - 1
    words = words[: max(room - len(parts), room - room // 3)]
    chosen = np.concatenate([words, parts[: room - len(words)]])
    groups = _grouped(counts[chosen], np.arange(len(chosen)) >= len(words), total)
    return Ngrams(empty.words, empty.characters, empty.lowercase, known[chosen], groups)


def _too_long(settings: schema.NgramTokenizer, texts: Sequence[str]) -> bool:
    longest = math.inf if settings.pieces_up_to is None else settings.pieces_up_to
    return settings.words > 0 and sum(map(len, texts)) > longest * len(texts)


def _grouped(counts: np.ndarray, pieces: np.ndarray, texts: int) -> tuple[Group, ...]:
    """Groups of numbers from 1 on that are in about equally many texts; `counts` descend, those of pieces anew."""
    level = np.floor(np.log(np.maximum(counts, 1)) / math.log(_STEP)).astype(np.int64)
    ends = np.flatnonzero(np.append((np.diff(level) != 0) | (np.diff(pieces) != 0), len(counts) > 0)) + 1
    groups = []
    for start, end in itertools.pairwise([0, *ends.tolist()]):
        weight = math.log((1 + texts) / (1 + counts[start:end].mean())) + 1
        groups.append((end + 1, bool(pieces[start]), round(weight, 4)))
    return tuple(groups)


def _added(known: Codes, counts: np.ndarray, pending: list[Codes]) -> tuple[Codes, np.ndarray]:
    """Counts with those of some more; where there are too many, without what was seen once (Manku & Motwani 2002)."""
    new, more = np.unique(np.concatenate([*pending, np.empty(0, np.uint32)]), return_counts=True)
    both, place = np.unique(np.concatenate([known, new]), return_inverse=True)
    total = np.bincount(place, np.concatenate([counts, more]), len(both)).astype(np.int64)
    often = total > 1 if len(both) > _MOST else np.ones(len(both), bool)
    return both[often], total[often]


def describe(ngrams: Ngrams, max_length: int, digest: str) -> dict[str, Any]:
    """As `tokenization.describe`."""
    found = {"type": TYPE, "sha256": digest, "vocab_size": ngrams.size, "max_length": max_length, "truncate": "head"}
    return found if ngrams.groups is None else {**found, "groups": [list(group) for group in ngrams.groups]}


def notes(made: Ngrams, settings: schema.NgramTokenizer) -> list[str]:
    """What is said of n-grams that were just learnt with some settings."""
    if not settings.characters or made.characters:
        return []
    limit = f"recipe.tokenizer.pieces_up_to={settings.pieces_up_to}"
    return [f"texts are longer than {limit} characters: their words and runs of words are looked at, and no pieces"]


def _blocks(texts: Iterable[str], pairs: Sequence[str] | None) -> Iterator[list[str]]:
    """Texts by the block, the second one of a pair behind the first."""
    block: list[str] = []
    size = 0
    for number, text in enumerate(texts):
        block.append(str(text) if pairs is None else f"{text}\n{pairs[number]}")
        size += len(block[-1])
        if size > _BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block


# ------------------------------------------------------------------------------------------- the n-grams of some texts


@dataclass(frozen=True)
class _Found:
    """N-grams of a block, each as often as it occurs: the text that it is of, and its bits; which texts were cut."""

    rows: Int[np.ndarray, " ngrams"]
    codes: Codes
    cut: Bool[np.ndarray, " texts"]


def _find(ngrams: Ngrams, texts: Sequence[str], room: int) -> _Found:
    """The first `room` n-grams of each text: words, then runs of two words, and so on, then pieces."""
    characters, begins = _characters(texts, ngrams.lowercase)
    kind = _kinds(characters)
    hashes = Hashes.of(characters)
    row = np.repeat(np.arange(len(texts)), np.diff(begins))
    budget = _Budget(np.full(len(texts), room))
    parts = [*_words(ngrams.words, kind, row, hashes, budget)]
    if ngrams.characters:
        inside = (kind == _LETTER) | (kind == _ALONE)
        framed = Hashes.of(np.where(inside, characters, 0x20))
        parts += _pieces(ngrams.characters, inside, row, framed, budget)
    rows = np.concatenate([np.empty(0, np.int64), *(rows for rows, _ in parts)])
    codes = np.concatenate([np.empty(0, np.uint32), *(codes for _, codes in parts)])
    return _Found(rows, codes, budget.cut)


class _Budget:
    """How many more n-grams each text may have."""

    def __init__(self, left: np.ndarray):
        self.left, self.cut = left, np.zeros(len(left), bool)

    def take(self, rows: np.ndarray, each: int = 1) -> Bool[np.ndarray, " ngrams"]:
        """Which of some n-grams, or groups of `each`, there is room for; `rows` ascend."""
        counts = np.bincount(rows, minlength=len(self.left))
        rank = np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]
        room = self.left // each
        self.cut |= counts > room
        self.left = self.left - each * np.minimum(counts, room)
        return rank < room[rows]


def _words(
    longest: int, kind: np.ndarray, row: np.ndarray, hashes: Hashes, budget: _Budget
) -> Iterator[tuple[np.ndarray, Codes]]:
    """Words, runs of two words, and so on: the text that each is of, and its bits."""
    letter = kind == _LETTER
    alone = kind >= _ALONE
    starts = np.flatnonzero(alone | (letter & ~np.roll(letter, 1)))
    ends = np.flatnonzero(alone | (letter & ~np.roll(letter, -1))) + 1
    single, rows = mixed(hashes.between(starts, ends)), row[starts]
    run = single
    for length in range(1, longest + 1):
        count = len(single) - length + 1
        if count <= 0:
            return
        if length > 1:
            run = mixed(run[:count] * np.uint64(BASE) + single[length - 1 :])
        whole = np.flatnonzero(rows[:count] == rows[length - 1 :])
        taken = whole[budget.take(rows[whole])]
        yield rows[taken], _bits(run[taken], length - 1)


def _pieces(
    lengths: tuple[int, ...], inside: np.ndarray, row: np.ndarray, hashes: Hashes, budget: _Budget
) -> Iterator[tuple[np.ndarray, Codes]]:
    """Runs of characters within words and the blank on either side."""
    shortest, longest = lengths
    outside = np.where(inside, len(inside), np.arange(len(inside)))
    end = np.minimum.accumulate(outside[::-1])[::-1]  # of the word that a character is in
    limit = np.where(inside, end, np.append(end[1:], 0)) + 1
    first = inside | np.append(inside[1:], False)
    starts = np.flatnonzero(first & (np.arange(len(inside)) + shortest <= limit))
    starts = starts[budget.take(row[starts], longest - shortest + 1)]
    for length in range(shortest, longest + 1):
        here = starts[starts + length <= limit[starts]]
        yield row[here], _bits(mixed(hashes.between(here, here + length) + np.uint64(length)), _PIECES)


def _bits(hashes: UInt64[np.ndarray, " n"], kind: int) -> Codes:
    return (hashes >> np.uint64(34)).astype(np.uint32) | np.uint32(kind << 30)


def _characters(texts: Sequence[str], lowercase: bool) -> tuple[np.ndarray, np.ndarray]:
    """Code points of all texts, each with a blank before it and the last with one behind; and where each text begins,
    [texts + 1]."""
    normal = (unicodedata.normalize("NFKC", text) for text in texts)
    shown = [f" {text.lower() if lowercase else text}" for text in normal]
    sizes = [len(text) for text in shown]
    sizes[-1] += 1
    joined = "".join([*shown, " "]).encode("utf-32-le", "replace")
    return np.frombuffer(joined, "<u4"), np.concatenate([[0], np.cumsum(sizes)])


def _kinds(characters: np.ndarray) -> np.ndarray:
    """What each character is: a separator, part of a word, a word of its own, or a mark."""
    seen = np.zeros(0x110000, bool)
    seen[characters] = True
    table = np.zeros(0x110000, np.uint8)
    found = np.flatnonzero(seen)
    table[found] = [_kind(code) for code in found.tolist()]
    return table[characters]


@functools.lru_cache(maxsize=2**16)
def _kind(code: int) -> int:
    character = chr(code)
    if any(low <= code <= high for low, high in _UNSPACED) and (character.isalnum() or _mark(character)):
        return _ALONE
    if character.isalnum() or character == "_" or _mark(character):
        return _LETTER
    return _SEPARATOR if unicodedata.category(character)[0] in "ZC" else _MARK


def _mark(character: str) -> bool:
    """Whether it belongs to the letter before it, as the vowels of Hindi do."""
    return unicodedata.category(character)[0] == "M"
