"""The documents of text files, part by part: as `text_files` reads them as a whole, in memory that does not grow."""

from __future__ import annotations

import codecs
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bigctl.data.files.paths import require_file
from bigctl.data.progress import Progress
from bigctl.data.sources import content, read_table
from bigctl.data.sources.bad_rows import BadRows, require_few
from bigctl.errors import DataError
from bigctl.formatting import size

_BLOCK = 2**22
"""Bytes that are read at once."""

_MARK = 2**24
"""Characters between two places at which reading can begin."""


class Part(NamedTuple):
    """Some of a document.

    Attributes:
        text: not empty.
        ends: whether it is the last part of its document.
        place: the byte at which it begins, where reading can begin there; else None.
        done: bytes of the file that were read by then.
    """

    text: str
    ends: bool
    place: int | None
    done: int


class Mark(NamedTuple):
    """A place at which reading can begin: characters of the documents before it, number of the file, byte in it."""

    characters: int
    file: int
    place: int


@dataclass
class Texts:
    """The documents of some files, one after the other, after a first look at all of them.

    Attributes:
        files: in order.
        where: what the user calls them.
        key: of JSON objects, that holds the text.
        encoding: of the files; None for UTF-8.
        characters: of all documents.
        starts: which character each document begins at.
        empty: documents without text, which are left out.
        bad_limit: share of the lines of JSON that may be left out because they cannot be read; None for none at all.
    """

    files: Sequence[Path]
    where: str
    key: str | None
    encoding: str | None
    characters: int = 0
    starts: array[int] = field(default_factory=lambda: array("q"))
    empty: int = 0
    bad_limit: float | None = None
    _bad: BadRows = field(default_factory=lambda: BadRows(unit="line"))
    _lines: int = 0
    _marks: list[Mark] = field(default_factory=list)

    def look(self) -> None:
        """Count and check everything. Raises DataError for what is no text."""
        try:
            self._look()
        except OSError as error:
            raise DataError(f"the file cannot be read: {error.strerror}", where=str(error.filename)) from error

    def _look(self) -> None:
        begins, before, total = True, 0, sum(file.stat().st_size for file in self.files)
        with Progress("data: reading", total) as progress:
            for number, file in enumerate(self.files):
                for part in self._parts(file, 0):
                    if part.place is not None and (
                        not self._marks or self.characters - self._marks[-1].characters >= _MARK
                    ):
                        self._marks.append(Mark(self.characters, number, part.place))
                    if begins:
                        self.starts.append(self.characters)
                    self.characters, begins = self.characters + len(part.text), part.ends
                    progress.update(before + part.done)
                before += file.stat().st_size
        if self._bad.count:
            self._check_bad()
        if not self.characters:
            raise DataError("there is no text", where=self.where, hint="is it the right file?")

    def between(self, start: int, stop: int) -> Iterator[tuple[str, bool]]:
        """The characters [start, stop) in parts, each with whether a document begins with it."""
        mark = self._marks[max(0, bisect_left(self._marks, (start + 1,)) - 1)] if self._marks else Mark(0, 0, 0)
        at = mark.characters if mark.characters <= start else 0
        mark = mark if at == mark.characters else Mark(0, 0, 0)
        for number in range(mark.file, len(self.files)):
            for part in self._parts(self.files[number], mark.place if number == mark.file else 0, again=True):
                text = part.text[max(0, start - at) : stop - at]
                if text:
                    yield text, self.begins(max(at, start))
                at += len(part.text)
                if at >= stop:
                    return

    def begins(self, character: int) -> bool:
        """Whether a document begins there."""
        place = bisect_left(self.starts, character)
        return place < len(self.starts) and self.starts[place] == character

    def _parts(self, file: Path, place: int, *, again: bool = False) -> Iterator[Part]:
        if not _is_json(file):
            if len(self.files) > 1 and file.stat().st_size == 0:
                self.empty += not again
            else:
                yield from _plain(file, self.encoding, place)
            return
        refuse = None if self.bad_limit is None else (_nothing if again else self._leave_out)
        for part in _objects(file, str(self.key), self.encoding, place, refuse):
            if part.text:
                yield part
            elif not again:
                self.empty += 1

    def _leave_out(self, error: DataError) -> None:
        self._bad.add([error])

    def _check_bad(self) -> None:
        """Raises DataError where too many lines cannot be read, or all."""
        self._lines = len(self.starts) + self.empty  # those that are left out count as empty ones
        self.empty -= self._bad.count
        if not self.starts:
            raise self._bad.named[0]
        require_few(self.left_out_facts(), self.bad_limit or 0.0)

    def left_out(self) -> list[str]:
        """The note on lines that were left out because they cannot be read."""
        return self._bad.note()

    def left_out_facts(self) -> list[dict[str, Any]]:
        """See `BadRows.facts`."""
        return self._bad.facts(self._lines)


def _nothing(error: DataError) -> None:
    """For a second reading: it was told in the first."""


def _is_json(file: Path) -> bool:
    return read_table.SUFFIXES.get(content.suffix_of(file)) == "jsonl"


class Decoded(NamedTuple):
    """Some text, the byte after it, where reading can begin there, and the bytes that were read by then."""

    text: str
    after: int | None
    done: int


def decoded(file: Path, encoding: str | None, place: int) -> Iterator[Decoded]:
    """A file as text, some at a time, from a byte on. Raises DataError where it is none."""
    name, before = str(file), content.Before(place)
    with content.opened(file) as (stream, packed):
        most = content.most_unpacked(file.stat().st_size) if packed else None
        block = stream.read(_BLOCK)
        codec = content.codec_of(block[:4], encoding)
        whole, begins = codecs.lookup(codec).name.startswith("utf-8") and not packed, place == 0
        if place:
            codec = "utf-8"
            stream.seek(place)
            block = stream.read(_BLOCK)
        decoder, clean = codecs.getincrementaldecoder(codec)(), not content.has_nul(codec)
        while True:
            if clean and (nul := block.find(b"\0")) >= 0:
                raise content.nul_byte(block, f"{name}:{content.line_at(block, nul, before)}")
            pending = decoder.getstate()[0]
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeError as error:
                raise content.undecodable(error, encoding, name, pending + block, before.without(pending)) from None
            if begins and text:
                text, begins = text.removeprefix("\ufeff"), False
            before = before.and_then(block)
            waiting = len(decoder.getstate()[0]) if whole else 0
            if text:
                yield Decoded(text, before.count - waiting if whole else None, _position(stream, before, packed))
            if not block:
                return
            if most is not None and before.count > most:
                raise DataError(f"the file unpacks to more than {size(most)}", where=name, hint="split it into parts")
            block = stream.read(_BLOCK)


def texts_of(source: Path | bytes, encoding: str | None, name: str | None = None) -> tuple[Iterator[str], str]:
    """The text of a file some at a time, or of its content, which may have a name, and what to call it in messages.

    Raises:
        DataError: there is no such file; and, as it is read, it is empty or not in this encoding.
    """
    if isinstance(source, bytes):
        text, name = content.read_text(source, encoding, name)
        return iter([text]), name
    return _with_text(require_file(source), encoding), str(source)


def _with_text(file: Path, encoding: str | None) -> Iterator[str]:
    blank = True
    try:
        for part in decoded(file, encoding, 0):
            blank = blank and not part.text.strip()
            yield part.text
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}", where=str(file)) from None
    if blank:
        raise DataError("the file is empty", where=str(file), hint="is it the right file?")


def behind(parts: Iterable[str], characters: int) -> Iterator[str]:
    """A text without its first characters."""
    for part in parts:
        if characters < len(part):
            yield part[characters:]
        characters = max(0, characters - len(part))


def _position(stream: object, before: content.Before, packed: bool) -> int:
    """Bytes of the file on the disk that were read; of a packed one about so many."""
    beneath = getattr(stream, "fileobj", None)
    return int(beneath.tell()) if packed and beneath is not None else before.count


def _plain(file: Path, encoding: str | None, place: int) -> Iterator[Part]:
    """A file as one document, from a byte on."""
    last: Part | None = None
    at: int | None = place
    blank = place == 0
    for text, after, done in decoded(file, encoding, place):
        if last is not None:
            yield last
        blank = blank and not text.strip()
        last, at = Part(text, False, at, done), after
    if last is None or blank:
        raise DataError("the file is empty", where=str(file), hint="is it the right file?")
    yield last._replace(ends=True)


def _objects(
    file: Path, field: str, encoding: str | None, place: int, refuse: Callable[[DataError], None] | None = None
) -> Iterator[Part]:
    """The texts of JSON lines, those that are empty too, from the line on that begins at a byte. One that cannot be
    read is raised, or with `refuse` told, and empty."""
    name, rest, number, seen, done = str(file), "", 0, place > 0, 0
    at: int | None = place
    for text, after, done in decoded(file, encoding, place):
        if not seen and (rest + text).lstrip().startswith("["):
            yield from _listed(file, field, encoding, refuse)
            return
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            number += 1
            if line.strip():
                yield Part(_text_or(refuse, line, field, f"{name}:{number}", seen), True, at, done)
                seen = True
            at = None
        at = None if after is None else after - len(rest.encode())
    if rest.strip():
        yield Part(_text_or(refuse, rest, field, f"{name}:{number + 1}", seen), True, at, done)
    elif not seen:
        raise DataError("the file is empty", where=name, hint="is it the right file?")


def _listed(file: Path, field: str, encoding: str | None, refuse: Callable[[DataError], None] | None) -> Iterator[Part]:
    """The texts of one JSON list, in which reading begins at its first one alone."""
    name, done, seen = str(file), 0, False

    def parts() -> Iterator[str]:
        nonlocal done
        for part in decoded(file, encoding, 0):
            done = part.done
            yield part.text

    for number, found, _ in read_table.listed(parts(), name):
        yield Part(_text_or(refuse, found, field, f"{name}:{number}", seen), True, None, done)
        seen = True
    if not seen:
        raise DataError("there are no rows", where=name, hint="is it the right file?")


def _text_or(
    refuse: Callable[[DataError], None] | None,
    record: str | dict[str, Any] | DataError,
    field: str,
    where: str,
    seen: bool,
) -> str:
    try:
        return _text_of(record, field, where, seen)
    except DataError as error:
        if refuse is None:
            raise
        refuse(error)
        return ""


def _text_of(record: str | dict[str, Any] | DataError, field: str, where: str, seen: bool) -> str:
    """The text of one JSON line, or of one object of a list; `seen` says whether others before it had one. Raises
    DataError."""
    if isinstance(record, str):
        found = read_table.json_text(record, where, field)
    else:
        found = read_table.field_text(record, where, field)
    if isinstance(found, str):
        return content.whole_characters(found)
    if not seen:
        found.require(field, "text")
    raise _absent(field, where)


def _absent(field: str, where: str) -> DataError:
    hint = 'every line needs it; null or "" is a document that is left out'
    return DataError(f"there is no field {field!r}", where=where, hint=hint)
