"""Sentences of which each word has a tag: the tags' numbers, and sentences from JSON lines."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bigctl.data.files.paths import some
from bigctl.data.sources import text_parts
from bigctl.data.sources.bad_rows import LEFT_OUT, BadRows
from bigctl.data.sources.decoded import Columns, Decoded, Origins
from bigctl.data.sources.read_table import json_records, json_type
from bigctl.data.sources.text_rows import short
from bigctl.data.target import TOKEN_CLASS, Target
from bigctl.data.text import words as wording
from bigctl.errors import DataError

_NUMBER = re.compile(r"-?\d+")


@dataclass
class Sentences:
    """Those of one file.

    Attributes:
        source: the file, for messages.
        words: of each sentence.
        tags: of each sentence, one a word; empty where they were not asked for.
        lines: where each sentence begins, or, with `per_word`, where each of its words is, from 1.
        left_out: see `BadRows.facts`.
    """

    source: str
    words: list[list[str]] = field(default_factory=list)
    tags: list[list[str]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    per_word: bool = False
    left_out: list[dict[str, Any]] = field(default_factory=list)

    def at(self, sentence: int, word: int) -> str:
        """The file and line of a word."""
        return f"{self.source}:{self.lines[sentence] + (word if self.per_word else 0)}"


class Sentence(NamedTuple):
    """One sentence as it is read.

    Attributes:
        words, tags: see `Sentences`.
        line: where it begins, from 1.
        wrong: what is wrong with it, if it cannot be used.
    """

    words: list[str]
    tags: list[str]
    line: int
    wrong: DataError | None = None


_REMEMBERED = 2**20
"""Different words that are kept once however often they occur."""


class Repeated:
    """Gives a word that was seen before as the same object: a text repeats few words, and each takes 50 bytes."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def __call__(self, word: str) -> str:
        return self._known.setdefault(word, word) if len(self._known) < _REMEMBERED else self._known.get(word, word)


def decode(by_split: Mapping[str, Sentences], info: Mapping[str, Any]) -> Decoded:
    """Tagged sentences as a data set.

    Args:
        by_split: the sentences of each file, "train" among them, which alone decides the tags; empty ones afterwards.
        info: facts of the source.

    Returns:
        Decoded of kind "text" with a target for each word: `text` object [N] of str, words joined by a space, and
        `tags` object [N] of int32 [words]. Tags are sorted, O before the others, numbers by size.

    Raises:
        DataError: a tag is not in the training file, or that has one tag only.
    """
    train = by_split["train"]
    names = names_of({tag for row in train.tags for tag in row}, sum(map(len, train.tags)), train.source)
    place = {name: number for number, name in enumerate(names)}
    splits: dict[str, Columns] = {}
    sentences = {split: len(found.words) for split, found in by_split.items()}
    words_of = {split: sum(map(len, found.words)) for split, found in by_split.items()}
    for split, found in by_split.items():
        text, tags = np.empty(len(found.words), object), np.empty(len(found.words), object)
        for number, (words, row) in enumerate(zip(found.words, found.tags, strict=True)):
            text[number] = wording.joined(words)
            try:
                tags[number] = np.array([place[tag] for tag in row], np.int32)
            except KeyError:
                raise unknown_tag(words, row, place, partial(found.at, number)) from None
            found.words[number] = found.tags[number] = []  # of many there is no room for both forms
        splits[split] = {"text": text, "tags": tags, "label": np.zeros(len(text), np.int32)}
    sources = {split: found.source for split, found in by_split.items()}
    facts = {**info, "files": sources, "sentences": sentences, "words": words_of}
    if left_out := [fact for found in by_split.values() for fact in found.left_out]:
        facts[LEFT_OUT] = left_out
    origins = Origins.of_lines({split: (found.source, found.lines) for split, found in by_split.items()})
    return Decoded("text", splits, None, facts, Target(TOKEN_CLASS, names), origins=origins)


def names_of(distinct: Collection[str], words: int, source: str) -> tuple[str, ...]:
    """The tags of the training file in order: O before the others, numbers by size. Raises DataError where they are of
    no use, `words` being how many have one."""
    numbers = all(map(_NUMBER.fullmatch, distinct))
    names = sorted(distinct, key=int) if numbers else sorted(distinct, key=lambda tag: (tag != "O", tag))
    if len(names) < 2:
        hint = "is data.tags the right column?"
        raise DataError(f"every word has the tag {short(names[0])!r}", where=source, hint=hint)
    if len(names) > 100 and 2 * len(names) > words:
        raise too_many(len(names), words, source)
    return tuple(names)


def too_many(different: int, words: int, source: str) -> DataError:
    """What is wrong with tags that hardly repeat."""
    what = f"{different:,} different tags in {words:,} words"
    return DataError(what, where=source, hint="is data.tags the right column?")


def unknown_tag(
    words: Sequence[str], tags: Sequence[str], known: Collection[str], at: Callable[[int], str]
) -> DataError:
    """What is wrong with a sentence that has a tag which none of the training file has; `at` names a word's place."""
    word = next(word for word, tag in enumerate(tags) if tag not in known)
    return DataError(
        f"the tag {short(tags[word])!r} of {short(words[word])!r} is not among those of the training file, "
        + some([short(name) for name in known]),
        where=at(word),
        hint="correct the tag, or add sentences with it to the training file",
    )


def collected(
    sentences: Iterable[Sentence], source: str, bad: dict[int, DataError] | None, *, per_word: bool
) -> Sentences:
    """All of them in memory.

    Args:
        sentences: of a file.
        source: its name.
        bad: where it is given, those that cannot be used are here by their place.
        per_word: see `Sentences.lines`.

    Raises:
        DataError: there is no sentence, or one cannot be used.
    """
    found, known = Sentences(source, per_word=per_word), Repeated()
    for number, sentence in enumerate(checked(sentences, source, per_word=per_word)):
        if sentence.wrong is not None:
            if bad is None:
                raise sentence.wrong
            bad[number] = sentence.wrong
        found.words.append([*map(known, sentence.words)])
        found.tags.append([*map(known, sentence.tags)])
        found.lines.append(sentence.line)
    if not found.words:
        raise no_sentence(source)
    return found


def checked(sentences: Iterable[Sentence], source: str, *, per_word: bool) -> Iterator[Sentence]:
    """The same sentences, those noted that have a word that is empty or cannot be written as UTF-8."""
    for sentence in sentences:
        if sentence.wrong is None:
            wrong = _problem(sentence.words, place_of(source, sentence.line, per_word=per_word))
            sentence = sentence if wrong is None else sentence._replace(wrong=wrong)
        yield sentence


def place_of(source: str, line: int, *, per_word: bool) -> Callable[[int], str]:
    """The file and line of a word, by its number, of the sentence that begins on a line."""
    return lambda word: f"{source}:{line + (word if per_word else 0)}"


def no_sentence(source: str) -> DataError:
    return DataError("there is no sentence", where=source, hint="is it the right file?")


def left_out(found: Sentences, bad: Mapping[int, DataError], most: float = 1.0) -> list[str]:
    """Takes bad sentences out, and gives the note on them. Raises DataError where no others are left, or where their
    share is above `most`."""
    if not bad:
        return []
    rows, found_bad = len(found.words), BadRows.of(bad, "sentence")
    kept = [number for number in range(rows) if number not in bad]
    if not kept:
        raise bad[min(bad)]
    notes = found_bad.left_out(rows, True, most)
    found.left_out = found_bad.facts(rows)
    found.words, found.lines = [found.words[number] for number in kept], [found.lines[number] for number in kept]
    found.tags = [found.tags[number] for number in kept]
    return notes


def _problem(row: Sequence[str], at: Callable[[int], str]) -> DataError | None:
    if not all(row) or any(word.isspace() for word in row):
        word = next(n for n, word in enumerate(row) if not word.strip())
        return DataError(f"word {word + 1} of the sentence is empty", where=at(word))
    try:
        "".join(row).encode()
    except UnicodeEncodeError:  # JSON can escape half of a character: "\ud83d"
        what = "a word has half of a character (a lone surrogate)"
        return DataError(what, where=at(0), hint="was it cut inside an emoji?")
    return None


# ----------------------------------------------------------------------------------------------------------- JSON lines


def read_json_lines(
    source: Path | bytes,
    encoding: str | None = None,
    *,
    tokens: str,
    tags: str | None,
    names: Sequence[str] | None = None,
    bad: dict[int, DataError] | None = None,
) -> Sentences:
    """Sentences of a file with one JSON object a line, such as {"tokens": ["in", "Rome"], "tags": ["O", "B-LOC"]}.

    Args:
        source: the file, or its content.
        encoding: of the text; None for UTF-8.
        tokens, tags: the fields with the words and with their tags; without `tags` none are read.
        names: of tags that are written as numbers, in their order.
        bad: where it is given, sentences that cannot be read are empty ones, and here is what is wrong with each.

    Raises:
        DataError: the file is missing or malformed, a field is missing or no list, or words and tags differ in number.
    """
    parts, name = text_parts.texts_of(source, encoding)
    sentences = json_sentences(json_records(parts, name), name, tokens=tokens, tags=tags, names=names)
    return collected(sentences, name, bad, per_word=False)


def json_sentences(
    records: Iterable[tuple[int, dict[str, Any] | DataError]],
    name: str,
    *,
    tokens: str,
    tags: str | None,
    names: Sequence[str] | None = None,
) -> Iterator[Sentence]:
    """Sentences of JSON objects, which come with their lines; see `read_json_lines`."""
    for number, record in records:
        where = f"{name}:{number}"
        row, own = list[str](), list[str]()
        try:
            if isinstance(record, DataError):
                raise record
            row = list(_strings(record, tokens, "data.tokens", where))
            if not row:
                raise DataError(f"the sentence has no words: {tokens!r} is empty", where=where, hint="remove the line")
            if tags is not None:
                own = _tags(record, tags, names, len(row), where)
        except DataError as error:
            yield Sentence(row, [], number, error)
        else:
            yield Sentence(row, own, number)


def _tags(record: dict[str, Any], field: str, names: Sequence[str] | None, words: int, where: str) -> list[str]:
    row = list(_strings(record, field, "data.tags", where, numbers=True))
    if len(row) != words:
        raise DataError(f"{words:,} words and {len(row):,} tags", where=where, hint="each word needs one tag")
    if names is None:
        return row
    for tag in row:
        if not tag.isdecimal() or len(tag) > 9 or int(tag) >= len(names):
            hint = f"data.tag_names names the numbers 0 to {len(names) - 1}"
            raise DataError(f"the tag {short(tag)!r} is none of them", where=where, hint=hint)
    return [names[int(tag)] for tag in row]


def _strings(record: dict[str, Any], field: str, key: str, where: str, *, numbers: bool = False) -> Iterator[str]:
    if field not in record:
        hint = f"set {key}=FIELD; the fields are {some([short(name) for name in record])}"
        raise DataError(f"there is no field {field!r}", where=where, hint=hint)
    values = record[field]
    if not isinstance(values, list):
        example = json.dumps({field: ["B-LOC", "O"] if key == "data.tags" else ["Rome", "burns"]})
        raise DataError(f"the field {field!r} is {json_type(values)}, not a list", where=where, hint=f"write {example}")
    for value in values:
        if numbers and isinstance(value, int) and not isinstance(value, bool):
            yield str(value)
        elif not isinstance(value, str):
            what = f"the field {field!r} holds {json_type(value)}"
            raise DataError(what, where=where, hint=f"is {key} the right field? it holds texts")
        elif key == "data.tags" and not value.strip():
            raise DataError("a tag is empty", where=where, hint="each word needs one; O for a word in no entity")
        else:
            yield value.strip()
