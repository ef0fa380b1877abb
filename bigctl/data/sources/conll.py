"""CoNLL files: a word a line, its tags in columns beside it, a blank line between two sentences.

Columns are separated by tabs, where the first line of words has one, or else by blanks. Lines of `-DOCSTART-` are left
out, and comments: lines that begin with `#` and have no tab, or, where blanks separate, stand before a sentence and
have another number of columns than its words. Columns have names where the file says them in CoNLL-U Plus's way
(`# global.columns = ID FORM NER`), in a .conllu file, or by `data.columns`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bigctl.config import schema
from bigctl.data.dataset import Features
from bigctl.data.files.paths import optional, some, split_digests, split_files
from bigctl.data.sources import json_parts, row_blocks, tagged, tagged_blocks, text_parts
from bigctl.data.sources.decoded import Decoded
from bigctl.data.sources.row_blocks import Place, Reading
from bigctl.data.sources.tagged import Sentence, Sentences
from bigctl.data.sources.text_rows import short
from bigctl.data.sources.unlabelled import Unlabelled
from bigctl.errors import DataError
from bigctl.files import expanded

CONLLU = ("ID", "FORM", "LEMMA", "UPOS", "XPOS", "FEATS", "HEAD", "DEPREL", "DEPS", "MISC")
_BLANKS = " \t\r"  # others, such as no-break spaces, may be part of a word
_SEPARATOR = re.compile(f"[{_BLANKS}]+")
_DOCUMENT = "-DOCSTART-"
_NAMES = re.compile(r"#\s*global\.columns\s*=\s*(.+)")
_PLAIN_ID = re.compile(r"\d+")  # not 3-4, words that are written as one, nor 8.1, one that is not written


def identity(config: schema.Conll) -> Any:
    """What the decoded arrays depend on: the content of the files, and the keys that say what is in them."""
    files = split_digests(config.path, config.validation_path, config.test_path)
    found = files and {"files": files, "tokens": config.tokens, "tags": config.tags, "columns": config.columns}
    later = {"encoding": None, "on_bad": "refuse"}
    return found and found | {
        key: getattr(config, key) for key, usual in later.items() if getattr(config, key) != usual
    }


def by_blocks(config: schema.Conll, regression: bool) -> Callable[[Path], Decoded] | None:
    """What decodes large files through others in a folder; None where `decode` will do."""
    files = _files(config)
    if not row_blocks.are_large(files.values(), tagged_blocks.LARGE):
        return None

    def read(reading: Reading, place: Place) -> Iterator[Sentence]:
        with contextlib.closing(reading.parts()) as beginning:
            head = lines_of(beginning, reading.name)
            form = Form.of(head, reading.name, config.tokens, config.tags, config.columns)
        parts = text_parts.behind(reading.parts(), place.characters)
        behind = place.lines
        lines = place.counted(json_parts.lines(parts, reading.name), end=1)
        return form.sentences((line.removesuffix("\r") for line in lines), behind)

    source = tagged_blocks.Source(
        files, read, config.encoding, per_word=True, skip_bad=config.on_bad == "skip", bad_limit=config.bad_limit
    )
    return lambda work: source.decode(work, {"source": config.kind, "target": config.tags})


def _files(config: schema.Conll) -> Mapping[str, Path]:
    return split_files(expanded(config.path), optional(config.validation_path), optional(config.test_path))


def decode(config: schema.Conll, regression: bool) -> Decoded:
    """The sentences of files. Raises DataError."""
    files = _files(config)
    read = partial(read_conll, tokens=config.tokens, tags=config.tags, columns=config.columns)
    found: dict[str, Sentences] = {}
    notes: list[str] = []
    for split, file in files.items():
        bad: dict[int, DataError] = {}
        found[split] = read(file, config.encoding, bad=bad if config.on_bad == "skip" else None)
        notes += tagged.left_out(found[split], bad, config.bad_limit)
    return tagged.decode(found, {"source": config.kind, "target": config.tags, "notes": notes})


def read_for_prediction(path: Path, config: schema.Conll, features: Features) -> Unlabelled:
    """The sentences of a file, words as they are divided there. Raises DataError."""
    numbered = config.tokens.lstrip("-").isdecimal()  # then the file may have other columns than that of the training
    columns = None if numbered else config.columns
    bad: dict[int, DataError] = {}
    found = read_conll(path, config.encoding, tokens=config.tokens, tags=None, columns=columns, bad=bad)
    return Unlabelled(found.words, errors=bad)


def read_conll(
    source: Path | bytes,
    encoding: str | None = None,
    *,
    tokens: str = "0",
    tags: str | None = "-1",
    columns: Sequence[str] | None = None,
    bad: dict[int, DataError] | None = None,
    name: str | None = None,
) -> Sentences:
    """The sentences of a CoNLL file.

    Args:
        source: the file, or its content.
        encoding: of the text; None for UTF-8.
        tokens, tags: the columns with the words and with their tags: a number, 0 being the first and -1 the last, or a
            name. Without `tags` none are read.
        columns: names of all columns.
        bad: where it is given, sentences with a line that cannot be read lack its word, and here is what is wrong.
        name: of the file that content is of; columns of a .conllu file have names.

    Raises:
        DataError: the file is missing, empty or not in this encoding, or a line lacks columns that others have.
    """
    head, name = text_parts.texts_of(source, encoding, name)
    form = Form.of(lines_of(head, name), name, tokens, tags, columns)
    lines = lines_of(text_parts.texts_of(source, encoding, name)[0], name)
    return tagged.collected(form.sentences(lines), name, bad, per_word=True)


def lines_of(parts: Iterable[str], name: str) -> Iterator[str]:
    """The lines of a text without their ends. Raises DataError for one that is too long."""
    return (line.removesuffix("\r") for line in json_parts.lines(parts, name))


@dataclass(frozen=True)
class Form:
    """How a file is written.

    Attributes:
        name: of it, for messages.
        mark: what separates columns; None for blanks.
        width: how many they are.
        words, tags: which of them have the words and, if they are asked for, the tags.
        identity: which of them numbers the words, where lines count by that.
    """

    name: str
    mark: str | None
    width: int
    words: int
    tags: int | None
    identity: int | None

    @classmethod
    def of(cls, lines: Iterator[str], name: str, tokens: str, tags: str | None, columns: Sequence[str] | None) -> Form:
        """That of a file, of which the first lines are read; see `read_conll`. Raises DataError."""
        head = _beginning(lines)
        mark, width = _form(head, name)
        names = _names(columns, head, width, name)
        words = _column(tokens, names, width, "data.tokens", name)
        second = None if tags is None else _column(tags, names, width, "data.tags", name)
        if words == second:
            what = "there is one column only" if width == 1 else "data.tokens and data.tags are the same column"
            raise DataError(what, where=name, hint="a line holds a word and its tag, with a blank or a tab between")
        return cls(name, mark, width, words, second, names.index("ID") if "ID" in names else None)

    def sentences(self, lines: Iterable[str], behind: int = 0) -> Iterator[Sentence]:
        """The sentences of lines, which come after so many others; each is given once its last line is read."""
        words, tags, first, wrong = list[str](), list[str](), 0, None
        for number, line in enumerate(lines, behind + 1):
            if not line.strip(_BLANKS) or line.startswith(_DOCUMENT):
                if first:
                    yield Sentence(words, tags, first, wrong)
                words, tags, first, wrong = [], [], 0, None
                continue
            fields = _fields(line, self.mark)
            if line.startswith("#") and _is_comment(fields, self.mark, self.width, first > 0):
                continue
            error = None
            if len(fields) != self.width:
                hint = f"the first line of words has {self.width}, separated by {'tabs' if self.mark else 'blanks'}"
                error = DataError(f"{len(fields)} columns", where=f"{self.name}:{number}", hint=hint)
            elif self.identity is not None and not _PLAIN_ID.fullmatch(fields[self.identity]):
                continue
            elif self.tags is not None and not fields[self.tags].strip():
                where = f"{self.name}:{number}"
                error = DataError("the tag is empty", where=where, hint="O is for a word in no entity")
            first = first or number
            if error is not None:
                wrong = wrong or error
                continue
            words.append(fields[self.words].strip())
            if self.tags is not None:
                tags.append(fields[self.tags].strip())
        if first:
            yield Sentence(words, tags, first, wrong)


def _beginning(lines: Iterator[str]) -> list[str]:
    """The first lines, up to the first one of words."""
    head: list[str] = []
    for line in lines:
        head.append(line)
        if _is_of_words(line):
            break
    return head


def _is_of_words(line: str) -> bool:
    return bool(line.strip(_BLANKS)) and not line.startswith(("#", _DOCUMENT))


def _names(columns: Sequence[str] | None, lines: Sequence[str], width: int, name: str) -> list[str]:
    """The names of all columns, as far as they are said."""
    names = list(columns or _header(lines) or (CONLLU if name.endswith(".conllu") else ()))
    if names and len(names) != width:
        where = "data.columns" if columns else name
        raise DataError(f"{len(names)} names of columns, and {width} columns", where=where, hint="name every column")
    return names


def _form(lines: Sequence[str], name: str) -> tuple[str | None, int]:
    """What separates columns, None for blanks, and how many there are."""
    for line in lines:
        if _is_of_words(line):
            mark = "\t" if "\t" in line else None
            return mark, len(_fields(line, mark))
    for line in lines:
        if line.startswith("#\t"):
            return "\t", len(_fields(line, "\t"))
    raise DataError("there is no sentence", where=name, hint="a CoNLL file has a word and its tag a line")


def _fields(line: str, mark: str | None) -> list[str]:
    if mark:
        return line.split(mark)
    fields = line.split(" ")
    if "" in fields or "\t" in line or "\r" in line:  # seldom
        return _SEPARATOR.split(line.strip(_BLANKS))
    return fields


def _is_comment(fields: Sequence[str], mark: str | None, width: int, open_sentence: bool) -> bool:
    return len(fields) == 1 if mark else not open_sentence and len(fields) != width


def _header(lines: Sequence[str]) -> list[str]:
    """The names of columns that the file begins with, in CoNLL-U Plus's way."""
    match = _NAMES.fullmatch(lines[0].strip())
    return match[1].split() if match else []


def _column(wanted: str, names: Sequence[str], width: int, key: str, name: str) -> int:
    """The place of a column that is named or counted."""
    if wanted in names:
        return list(names).index(wanted)
    try:
        number = int(wanted)
    except ValueError:
        hint = (
            f"the columns are {some(names)}" if names else f"number it, 0 to {width - 1}, or name all in data.columns"
        )
        raise DataError(f"{key} names no column: {short(wanted)!r}", where=name, hint=hint) from None
    if not -width <= number < width:
        hint = f"0 is the first, {width - 1} or -1 the last"
        raise DataError(f"{key}={wanted}, and there are {width} columns", where=name, hint=hint)
    return number % width
