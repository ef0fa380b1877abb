"""JSON lines, and the values of one JSON list, of a text that comes in parts: no more than one line, or value, and the
part that it came with is in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from bigctl.errors import DataError

LONGEST = 2**25
"""Characters of one line, or value."""

_BLANKS = re.compile(r"[ \t\n\r]*")
_ENDS = {*" \t\n\r,]"}
"""What may follow a value."""
_NEAR = 16
"""Characters from the end of what was read within which a value may only seem to be wrong, as it goes on."""


def lines(parts: Iterable[str], name: str) -> Iterator[str]:
    """Lines, which \\n alone ends. Raises DataError for one that is too long."""
    rest: list[str] = []
    for part in parts:
        *whole, last = part.split("\n")
        if whole:
            yield "".join([*rest, whole[0]])
            yield from whole[1:]
            rest = []
        rest.append(last)
        if sum(map(len, rest)) > LONGEST:
            raise DataError(f"a line has more than {LONGEST:,} characters", where=name, hint="is it the right file?")
    yield "".join(rest)


def values(parts: Iterable[str], name: str, *, behind: int = 0, number: int = 0) -> Iterator[tuple[int, Any, int]]:
    """The values of a list, each with its number from 1 and the character after it.

    Args:
        parts: the text of the list, from its beginning.
        name: of the file, for messages.
        behind, number: the last value that is known, which is where reading goes on.

    Raises:
        DataError: the text is no list, or it is cut short.
    """
    text = _Text(iter(parts), name)
    if behind:
        text.skip(behind)
    else:
        if text.next() != "[":
            text.wrong("Expecting value")
        text.at += 1
        if text.next() == "]":
            text.end()
            return
    while True:
        if behind or number:
            if (mark := text.next()) == "]":
                text.end()
                return
            if mark != ",":
                text.wrong("Expecting ',' delimiter")
            text.at += 1
            text.next()
        number += 1
        value = text.value()
        yield number, value, text.before + text.at


class _Text:
    """A text of which the beginning is let go.

    Attributes:
        before: characters that were let go.
        at: the next character of what is left.
    """

    def __init__(self, parts: Iterator[str], name: str):
        self._parts, self._name = parts, name
        self._text, self.at, self.before, self._lines = "", 0, 0, 0
        self._decoder = json.JSONDecoder()

    def _more(self, least: int = 1) -> bool:
        """Read so many characters more, if there are any."""
        found: list[str] = []
        while least > 0 and (part := next(self._parts, None)) is not None:
            found.append(part)
            least -= len(part)
        if not found:
            return False
        self._lines += self._text.count("\n", 0, self.at)
        self.before += self.at
        self._text, self.at = self._text[self.at :] + "".join(found), 0
        return True

    def skip(self, characters: int) -> None:
        """Go to a place further on."""
        while self.before + len(self._text) < characters:
            self.at = len(self._text)
            if not self._more():
                break
        self.at = characters - self.before

    def next(self) -> str:
        """The next character that is no blank, which is not passed; empty behind the last one."""
        while True:
            match = _BLANKS.match(self._text, self.at)
            self.at = match.end() if match else self.at
            if self.at < len(self._text):
                return self._text[self.at]
            if not self._more():
                return ""

    def value(self) -> Any:
        """The value that begins here."""
        while True:
            left = len(self._text) - self.at
            try:
                found, end = self._decoder.raw_decode(self._text, self.at)
            except json.JSONDecodeError as error:
                cut = error.pos > len(self._text) - _NEAR or error.msg.startswith("Unterminated string")
                if not cut or left > LONGEST or not self._more(left):
                    self.wrong(error.msg, error.pos if not cut else None)
            except RecursionError as error:
                raise self._error(str(error)) from None
            else:
                # A number that is cut behind a point or an e seems to end before it.
                if self._text[end : end + 1] in _ENDS or len(self._text) - end > _NEAR or not self._more():
                    self.at = end
                    return found

    def end(self) -> None:
        """Nothing but blanks may be left behind the list."""
        self.at += 1
        if self.next():
            self.wrong("Extra data")

    def wrong(self, what: str, place: int | None = None) -> NoReturn:
        """Raises DataError for what stands here, or at a place of what is left."""
        line = self._lines + self._text.count("\n", 0, self.at if place is None else place) + 1
        raise self._error(f"{what} at line {line}")

    def _error(self, what: str) -> DataError:
        hint = "a list of objects, or an object a line"
        return DataError(f"invalid JSON: {what}", where=self._name, hint=hint)
