"""Where a text can be cut so that the tokens of the parts are those of the whole.

A tokenizer that divides a text into words before anything else has such places, as between a word and the blank after
it; which ones is found out by trying. One that sees a text as a whole, or puts something before it, has none.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WORDS = r"(?<=\S)(?=[^\S\x1c-\x1f])"
"""Between anything and the white space after it. Python alone calls four control characters white space."""

BLANKS = r"(?<=\S)(?= )|(?<=[^\W_])(?=[\t\r\n])"
"""Before a blank, and between a letter or digit and other white space: where a mark takes line ends along."""

MARKS = "(?<=[^\\W\\d_])(?=[,.;:?!\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f])"
"""Between a letter and a mark after it: for languages that are written without blanks."""

ANYWHERE = r"(?<=[\s\S])(?=[\s\S])"
"""Between any two characters."""

PIECE = 2**14
"""Characters that are given to a tokenizer at once."""

_SIDES = ("a", "\u00e9", "\u4e2d", "7", "!", '"', "'", "_", "\u3002", "\u0301")
_BETWEEN = (" ", "  ", "\n", "\n\n", " \n", "\t", "\r\n", "\u00a0 ")


@dataclass(frozen=True)
class Cutter:
    """Places at which a tokenizer lets texts be cut.

    Attributes:
        rule: one of WORDS, BLANKS and ANYWHERE; None where a text has to stay whole.
        places: all of them, as a pattern that matches the empty string there.
        special: what of a text is one token as it is written, and is never cut.
    """

    rule: str | None
    places: re.Pattern[str] | None = None
    special: tuple[str, ...] = ()

    def find(self, text: str, start: int) -> int | None:
        """The first such place from `start` on; within, not at its end."""
        while self.places is not None and (found := self.places.search(text, start)) is not None:
            start = self._behind_special(text, found.start())
            if start == found.start():
                return start
        return None

    def _behind_special(self, text: str, place: int) -> int:
        """The place, or the end of a special token that it would cut."""
        for token in self.special:
            begin = text.find(token, max(0, place - len(token) + 1), place + len(token) - 1)
            if begin >= 0:
                return begin + len(token)
        return place

    def pieces(self, text: str, size: int = PIECE) -> Iterator[str]:
        """A text in parts of at least so many characters, but for the last one; longer where it cannot be cut."""
        start = 0
        while (end := self.find(text, start + size)) is not None:
            yield text[start:end]
            start = end
        yield text[start:]


def cutter(tokenizer: Tokenizer) -> Cutter:
    """Where the texts of a tokenizer can be cut, tried with all kinds of characters on either side."""
    described = json.loads(tokenizer.to_str())
    if described["pre_tokenizer"] is None or not _added_apart(described):
        return Cutter(None)
    special = tuple(token["content"] for token in described["added_tokens"])
    if is_characters(described) or bytes_of(described) is not None:
        return Cutter(ANYWHERE, re.compile(ANYWHERE), special)
    for rule in (WORDS, BLANKS):
        if _holds(tokenizer, rule, _probes()):
            marks = _holds(tokenizer, MARKS, _marked())
            return Cutter(rule, re.compile(f"{rule}|{MARKS}" if marks else rule), special)
    return Cutter(None)


def is_characters(described: dict[str, Any]) -> bool:
    """Whether each character of a text is looked up as it is."""
    cut = described["pre_tokenizer"] or {}
    return (
        described["model"]["type"] == "WordLevel"
        and not (described["normalizer"] or {}).get("normalizers", described["normalizer"])
        and cut.get("type") == "Split"
        and cut.get("pattern") == {"Regex": r"[\s\S]"}
        and (cut["behavior"], cut["invert"]) == ("Isolated", False)
    )


def bytes_of(described: dict[str, Any]) -> list[int] | None:
    """The token of each byte, of a tokenizer that knows nothing but bytes."""
    model, cut = described["model"], described["pre_tokenizer"] or {}
    plain = model["type"] == "BPE" and not model["merges"] and not model.get("continuing_subword_prefix")
    plain = plain and not model.get("end_of_word_suffix") and not model.get("ignore_merges")
    folds = (described["normalizer"] or {}).get("normalizers", described["normalizer"])
    if not plain or folds or cut.get("type") != "ByteLevel" or cut["add_prefix_space"]:
        return None
    found = [model["vocab"].get(written) for written in byte_characters()]
    return None if None in found else found


def byte_characters() -> list[str]:
    """How byte-level tokenizers write each byte: printable ones as themselves, the others from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _added_apart(described: dict[str, Any]) -> bool:
    """Whether no token that is looked for in the text itself reaches over white space, or takes it along."""
    for token in described["added_tokens"]:
        content = token["content"]
        if re.search(r"\s", content) or (token["normalized"] and described["normalizer"]):
            return False
        if token["rstrip"]:
            return False
    return True


def _probes() -> list[str]:
    middle = [f"{left}{between}{right}" for left, between, right in itertools.product(_SIDES, _BETWEEN, _SIDES)]
    return [f"x{each}y" for each in middle]


def _marked() -> list[str]:
    marks = MARKS[MARKS.index("(?=[") + 4 : -2]
    sides = itertools.product(_SIDES[:5], marks, (*_SIDES, " ", "\n"))
    return [f"x{left}{mark}{right}y" for left, mark, right in sides]


def _holds(tokenizer: Tokenizer, rule: str, probes: list[str]) -> bool:
    """Whether the tokens of each probe are those of its two parts, wherever the rule cuts it."""
    wholes: list[str] = []
    lefts: list[str] = []
    rights: list[str] = []
    for probe in probes:
        for match in re.finditer(rule, probe):
            wholes.append(probe)
            lefts.append(probe[: match.start()])
            rights.append(probe[match.start() :])
    encoded = tokenizer.encode_batch_fast([*wholes, *lefts, *rights], add_special_tokens=False)
    n = len(wholes)
    return all(encoded[i].ids == encoded[n + i].ids + encoded[2 * n + i].ids for i in range(n))
