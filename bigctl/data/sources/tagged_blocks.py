"""Tagged sentences of large files: as `tagged.decode` makes them of smaller ones, through columns in files.

Words are kept as the text that they are joined to, and tags as a character each, the number of the tag in the order in
which they first occurred.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigctl.data.sources import tagged
from bigctl.data.sources.bad_rows import LEFT_OUT, BadRows
from bigctl.data.sources.column_files import StoredTexts, TextColumns
from bigctl.data.sources.decoded import ROW, Columns, Decoded, Origins
from bigctl.data.sources.row_blocks import Place, Reading
from bigctl.data.sources.tagged import Sentence
from bigctl.data.target import TOKEN_CLASS, Target
from bigctl.data.text import words as wording

LARGE = 2**25
"""Bytes from which on a file is read by blocks."""

_SENTENCES, _CHARACTERS = 2**14, 2**23
"""Sentences that are in memory at once, and characters of them at about which they are fewer."""

_MOST = 0x110000
"""Different tags: as many as there are characters."""


@dataclass(frozen=True)
class Source:
    """Files of sentences.

    Attributes:
        files: by split, "train" first, which alone decides the tags.
        read: the sentences behind a place, which goes on with them.
        encoding: of the files; None for UTF-8.
        per_word: whether each word has a line.
        skip_bad: leave out what cannot be used, with a note.
        bad_limit: share of a file that is left out at most.
    """

    files: Mapping[str, Path]
    read: Callable[[Reading, Place], Iterator[Sentence]]
    encoding: str | None
    per_word: bool
    skip_bad: bool
    bad_limit: float

    def decode(self, work: Path, info: Mapping[str, Any]) -> Decoded:
        """All of them, written into a folder; what an earlier start has written is found again.

        Raises:
            DataError: as `tagged.decode`.
            OSError: there is no room.
        """
        known: dict[str, int] = {}
        found: dict[str, _File] = {}
        names: tuple[str, ...] = ()
        for split, path in self.files.items():
            reading = Reading(path, str(path), self.encoding, work / split)
            reading.look()
            found[split] = file = _File(self, reading, known, names)
            file.load()
            if not names:
                names = tagged.names_of(known, file.words, file.name)
        splits: dict[str, Columns] = {}
        first, notes, left_out = 0, list[str](), list[dict[str, Any]]()
        for split, file in found.items():
            splits[split] = {ROW: np.arange(first, first := first + file.count)}
            splits[split]["label"] = np.zeros(file.count, np.int32)
            rows = file.count + file.bad.count
            notes += file.bad.left_out(rows, self.skip_bad, self.bad_limit)
            left_out += file.bad.facts(rows)
        facts = {
            **info,
            "notes": notes,
            "files": {split: file.name for split, file in found.items()},
            "sentences": {split: file.count for split, file in found.items()},
            "words": {split: file.words for split, file in found.items()},
        } | ({LEFT_OUT: left_out} if left_out else {})
        place = {name: number for number, name in enumerate(names)}
        numbers = np.array([place[tag] for tag in known], np.int32)
        columns = [file.columns for file in found.values()]
        stored = StoredTexts({"text": columns, StoredTexts.TAGS: columns}, numbers=numbers)
        origins = Origins.of_lines({split: (file.name, file.columns.lines()) for split, file in found.items()})
        return Decoded("text", splits, None, facts, Target(TOKEN_CLASS, names), origins=origins, rows=stored)


class _File:
    """One file, behind what an earlier start has written of it.

    Attributes:
        columns: its sentences.
        bad: those that cannot be used.
        words: in all others.
    """

    def __init__(self, source: Source, reading: Reading, known: dict[str, int], allowed: tuple[str, ...]):
        self.columns: TextColumns = reading.columns("sentences")
        self.bad, self.words, self.name = BadRows(unit="sentence"), 0, reading.name
        self._source, self._reading, self._known, self._allowed = source, reading, known, allowed
        self._place, self._whole = Place(), False
        for state in self.columns.states:
            for tag in state["new"]:
                known.setdefault(tag, len(known))
        if self.columns.states:
            state = self.columns.states[-1]
            self._place, self.bad = Place(*state["place"]), BadRows.from_json(state["bad"])
            self.bad.unit = "sentence"
            self.words, self._whole = state["words"], state["whole"]
        self._written = len(known)
        self._empty()

    @property
    def count(self) -> int:
        return sum(self.columns.sizes)

    def load(self) -> None:
        """Read and write what is not there yet. Raises DataError."""
        if not self._whole:
            sentences = self._source.read(self._reading, self._place)
            for sentence in tagged.checked(sentences, self.name, per_word=self._source.per_word):
                self._add(sentence)
                if len(self._lines) >= _SENTENCES or self._characters >= _CHARACTERS:
                    self._flush()
            self._flush(whole=True)
            self.columns.save()
        if not self.count:
            raise self.bad.named[0] if self.bad.count else tagged.no_sentence(self.name)

    def _add(self, sentence: Sentence) -> None:
        if sentence.wrong is not None:
            if not self._source.skip_bad:
                raise sentence.wrong
            self.bad.add([sentence.wrong])
            return
        words, tags, known = sentence.words, sentence.tags, self._known
        if self._allowed and not known.keys() >= {*tags}:
            at = tagged.place_of(self.name, sentence.line, per_word=self._source.per_word)
            raise tagged.unknown_tag(words, tags, self._allowed, at)
        numbers = [known.setdefault(tag, len(known)) for tag in tags]
        if len(known) > _MOST:
            raise tagged.too_many(len(known), self.words, self.name)
        self._texts.append(wording.joined(words))
        self._tags.append("".join(map(chr, numbers)))
        self._lines.append(sentence.line)
        self.words += len(words)
        self._characters += len(self._texts[-1])

    def _flush(self, *, whole: bool = False) -> None:
        state = {
            "place": [self._place.characters, self._place.lines],
            "bad": self.bad.to_json(),
            "new": [*itertools.islice(self._known, self._written, None)],
            "words": self.words,
            "whole": whole,
        }
        columns = {"text": self._texts, StoredTexts.TAGS: self._tags}
        self.columns.append(columns, len(self._lines), self._lines, state)
        self._written = len(self._known)
        self._empty()

    def _empty(self) -> None:
        self._texts, self._tags, self._lines = list[str](), list[str](), list[int]()
        self._characters = 0
