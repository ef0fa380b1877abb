"""Sentences of the King James Bible with its names and numbers marked, by rules that look at how words are written.

A word that has a capital in the middle of a sentence is a name, of a place if prepositions of place often go before it.
The tags (IOB2: DEITY, NAME, NUMBER, PLACE) are thus the work of no annotator. A model that folds case has to find out
from the context, and from names that it knows, what the rules read off the letters.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from bigctl.data.sources.tagged import Sentences
from bigctl.data.text import words as wording

_SENTENCE = re.compile(r"(?<=[.?!])\s+")
_DEITY = frozenset({"LORD", "God", "Lord", "Jesus", "Christ", "Ghost", "Almighty", "JEHOVAH", "Messiah"})
_NUMBERS = frozenset(
    """one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand thousands threescore
    fourscore score first second third fourth fifth sixth seventh eighth ninth tenth""".split()  # noqa: SIM905
)
_BEFORE_PLACES = frozenset({"in", "at", "toward", "into", "mount", "through"})
_OF_PLACES = frozenset({"land", "city", "cities", "king", "kings", "inhabitants", "wilderness", "gate", "gates", "out"})
_PLACE_SHARE = 0.2  # of a name's occurrences, which go behind such words


def tag_sentences(document: str, every: int = 1) -> Sentences:
    """The sentences of every so many lines of the text, with their tags."""
    lines = document.replace("[", "").replace("]", "").split("\n")
    by_line = [[_words(text) for text in _SENTENCE.split(line) if text.strip()] for line in lines]
    names = _names(row for rows in by_line for row in rows)
    words = [row for rows in by_line[::every] for row in rows]
    tags = [list(_iob(_kinds(row, names))) for row in words]
    return Sentences("bible_kjv", words, tags, list(range(1, len(words) + 1)))


def _words(text: str) -> list[str]:
    return [text[start:stop] for start, stop in wording.split(text)]


def _names(rows: Iterable[Sequence[str]]) -> dict[str, str]:
    """What is a name wherever it stands, and of what."""
    plain: set[str] = set()
    capital, places = Counter[str](), Counter[str]()
    for row in rows:
        for place, word in enumerate(row):
            before = row[place - 1] if place else ""
            if word[0].islower():
                plain.add(word)
            elif place and word[0].isupper() and len(word) > 1 and before[0] not in ":;,'":
                capital[word] += 1
                of = before == "of" and place > 1 and row[place - 2] in _OF_PLACES
                places[word] += before in _BEFORE_PLACES or of
    return {
        word: "PLACE" if places[word] >= _PLACE_SHARE * count else "NAME"
        for word, count in capital.items()
        if word.lower() not in plain
    } | dict.fromkeys(_DEITY, "DEITY")


def _kinds(row: Sequence[str], names: dict[str, str]) -> list[str]:
    kinds = [names.get(word, "NUMBER" if word.lower() in _NUMBERS else "") for word in row]
    for place in range(1, len(row) - 1):  # three hundred and ten
        if row[place] == "and" and kinds[place - 1] == kinds[place + 1] == "NUMBER":
            kinds[place] = "NUMBER"
    return kinds


def _iob(kinds: Iterable[str]) -> Iterator[str]:
    last = ""
    for kind in kinds:
        yield f"{'I' if kind == last else 'B'}-{kind}" if kind else "O"
        last = kind
