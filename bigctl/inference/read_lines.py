"""Texts from a stream, one a line, as they come: no more of it is held than what has arrived and not been answered."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Protocol

from bigctl.errors import DataError
from bigctl.inference.text_batches import Text

_CHUNK = 2**16
_LONGEST = 2**24  # bytes of a line: more than that is no text


class Stream(Protocol):
    def read1(self, size: int, /) -> bytes:
        """What has arrived, up to `size` bytes, waiting only where nothing has; empty at the end."""


def text_blocks(stream: Stream, *, pairs: bool, name: str = "stdin") -> Iterator[list[Text]]:
    """The texts of a stream, as `checked_blocks` gives them, up to the first line that is wrong.

    Raises:
        DataError: for an empty stream, and a line that is empty or no text, naming it; those before have been given.
    """
    for block in checked_blocks(stream, pairs=pairs, name=name):
        good = list(itertools.takewhile(lambda each: not isinstance(each, DataError), block))
        if len(good) < len(block):
            if good:
                yield [each for each in good if not isinstance(each, DataError)]
            wrong = block[len(good)]
            assert isinstance(wrong, DataError)
            raise wrong
        yield [each for each in good if not isinstance(each, DataError)]


def checked_blocks(stream: Stream, *, pairs: bool, name: str = "stdin") -> Iterator[list[Text | DataError]]:
    """The texts of a stream, or what is wrong with a line; each block is what one reading brought.

    Args:
        stream: UTF-8, one text a line; surrounding blanks are dropped.
        pairs: whether a line holds two texts with a tab between.
        name: what to call the stream in messages.

    Raises:
        DataError: for an empty stream, or a line without end.
    """
    line, rest = 1, bytearray()
    while chunk := stream.read1(_CHUNK):
        end = chunk.rfind(b"\n") + 1
        if not end:
            rest += chunk
            if len(rest) > _LONGEST:
                raise DataError(
                    f"the line is longer than {_LONGEST // 2**20} MiB", where=f"{name}:{line}", hint="one text a line"
                )
            continue
        yield _texts(bytes(rest) + chunk[: end - 1], line, pairs, name)
        line += 1 + chunk.count(b"\n", 0, end - 1)
        rest = bytearray(chunk[end:])
    if rest:
        yield _texts(bytes(rest), line, pairs, name)
    elif line == 1:
        raise DataError("there is no text", where=name, hint="write one text a line")


def _texts(data: bytes, line: int, pairs: bool, name: str) -> list[Text | DataError]:
    found: list[Text | DataError] = []
    for number, content in enumerate(data.split(b"\n"), line):
        try:
            found.append(_text(content, pairs, f"{name}:{number}", "utf-8-sig" if number == 1 else "utf-8"))
        except DataError as error:
            found.append(error)
    return found


def _text(content: bytes, pairs: bool, where: str, encoding: str) -> Text:
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        what = f"byte 0x{error.object[error.start]:02x} is not UTF-8"
        raise DataError(what, where=where, hint="convert it to UTF-8, for example with iconv") from None
    if "\0" in text:
        raise DataError("there is a NUL byte", where=where, hint="is this text?")
    parts = [part.strip() for part in (text.split("\t") if pairs else [text])]
    if pairs and text.strip() and len(parts) != 2:
        what = f"{len(parts)} texts where the model takes two"
        raise DataError(what, where=where, hint="write them with one tab between")
    if not all(parts):
        raise DataError("the text is empty", where=where, hint="write one text a line")
    return (parts[0], parts[1]) if pairs else parts[0]
