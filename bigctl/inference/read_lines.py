"""Texts from a stream, one a line, as they come: no more of it is held than what has arrived and not been answered."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Iterator
from typing import Protocol

from bigctl.data.sources import content
from bigctl.errors import DataError
from bigctl.inference.text_batches import Text

_CHUNK = 2**16
_LONGEST = 2**24  # bytes of a line: more than that is no text


class Stream(Protocol):
    def read1(self, size: int, /) -> bytes:
        """What has arrived, up to `size` bytes, waiting only where nothing has; empty at the end."""


def text_blocks(
    stream: Stream, *, pairs: bool, name: str = "stdin", encoding: str | None = None
) -> Iterator[list[Text]]:
    """The texts of a stream, as `checked_blocks` gives them, up to the first line that is wrong.

    Raises:
        DataError: for an empty stream, and a line that is empty or no text, naming it; those before have been given.
    """
    for block in checked_blocks(stream, pairs=pairs, name=name, encoding=encoding):
        good = list(itertools.takewhile(lambda each: not isinstance(each, DataError), block))
        if len(good) < len(block):
            if good:
                yield [each for each in good if not isinstance(each, DataError)]
            wrong = block[len(good)]
            assert isinstance(wrong, DataError)
            raise wrong
        yield [each for each in good if not isinstance(each, DataError)]


def checked_blocks(
    stream: Stream, *, pairs: bool, name: str = "stdin", encoding: str | None = None
) -> Iterator[list[Text | DataError]]:
    """The texts of a stream, or what is wrong with a line; each block is what one reading brought.

    Args:
        stream: one text a line; surrounding blanks are dropped.
        pairs: whether a line holds two texts with a tab between.
        name: what to call the stream in messages.
        encoding: of the texts; None for UTF-8.

    Raises:
        DataError: for an empty stream, or a line without end.
    """
    if encoding is not None:
        content.require_encoding(encoding)
        if "\n".encode(encoding) != b"\n":  # as of UTF-16: what separates lines is told of characters alone
            stream, encoding = _AsUtf8(stream, encoding, name), None
    line, rest, before = 1, bytearray(), 0
    while chunk := stream.read1(_CHUNK):
        end = chunk.rfind(b"\n") + 1
        if not end:
            rest += chunk
            if len(rest) > _LONGEST:
                raise DataError(
                    f"the line is longer than {_LONGEST // 2**20} MiB", where=f"{name}:{line}", hint="one text a line"
                )
            continue
        lines = bytes(rest) + chunk[: end - 1]
        yield _texts(lines, line, pairs, name, encoding, before)
        line, before = line + 1 + chunk.count(b"\n", 0, end - 1), before + len(lines) + 1
        rest = bytearray(chunk[end:])
    if rest:
        yield _texts(bytes(rest), line, pairs, name, encoding, before)
    elif line == 1:
        raise DataError("there is no text", where=name, hint="write one text a line")


class _AsUtf8:
    """A stream of another encoding as one of UTF-8. Raises DataError where it cannot be decoded."""

    def __init__(self, stream: Stream, encoding: str, name: str):
        self._stream, self._encoding, self._name, self._before = stream, encoding, name, 0
        self._decoder = codecs.getincrementaldecoder(encoding)()

    def read1(self, size: int, /) -> bytes:
        while True:
            chunk = self._stream.read1(size)
            try:
                text = self._decoder.decode(chunk, final=not chunk)
            except UnicodeError as error:
                offset = f", near offset {self._before}"
                what = f"is not {self._encoding}{offset}: {getattr(error, 'reason', error)}"
                raise DataError(what, where=self._name, hint="convert it, for example with iconv") from None
            self._before += len(chunk)
            if text or not chunk:
                return text.encode()


def _texts(data: bytes, line: int, pairs: bool, name: str, encoding: str | None, before: int) -> list[Text | DataError]:
    """The texts of some lines, which begin `before` bytes after the beginning of the stream."""
    found: list[Text | DataError] = []
    for number, each in enumerate(data.split(b"\n"), line):
        try:
            found.append(_text(each, pairs, f"{name}:{number}", encoding, before))
        except DataError as error:
            found.append(error)
        before += len(each) + 1
    return found


def _text(data: bytes, pairs: bool, where: str, encoding: str | None, before: int) -> Text:
    try:
        text = data.decode(encoding or "utf-8")
    except UnicodeError as error:
        start = error.start if isinstance(error, UnicodeDecodeError) else 0
        what = f"byte 0x{data[start]:02x} is not {encoding or 'UTF-8'}, at offset {before + start}"
        raise DataError(what, where=where, hint="convert it, for example with iconv") from None
    text = text if before else text.removeprefix("\ufeff")
    if "\0" in text:
        raise DataError("there is a NUL byte", where=where, hint="is this text?")
    parts = [part.strip() for part in (text.split("\t") if pairs else [text])]
    if pairs and text.strip() and len(parts) != 2:
        what = f"{len(parts)} texts where the model takes two"
        raise DataError(what, where=where, hint="write them with one tab between")
    if not all(parts):
        raise DataError("the text is empty", where=where, hint="write one text a line")
    return (parts[0], parts[1]) if pairs else parts[0]
