"""How far a preparation is, with its rate and the time left: drawn anew on a terminal, a plain line now and then
elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TypeVar

from bigctl.formatting import clock, cut
from bigctl.terminal import is_live, one_line, tell, unescaped

T = TypeVar("T")
_EVERY = {True: 0.25, False: 10.0}
"""Seconds between two lines, by whether they are drawn over each other."""

_AT_FIRST = 1.0
"""Seconds before the first one."""


class Progress:
    """Progress on standard error. What is over soon is not told of, and nothing fails where nobody reads.

    Args:
        what: what goes on, such as "data: reading".
        total: how much there is to be done.
        unit: of `total` and `done`, and by what number it is divided.
        done: how much was there at the start.
    """

    def __init__(self, what: str, total: int, unit: tuple[str, float] = ("MB", 1e6), done: int = 0):
        self._what, self._total, self._unit = what, max(total, 1), unit
        self._first = self._done = done
        self._began = self._told = time.monotonic()
        self._live, self._drawn = is_live(), 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._drawn:
            self._draw("")

    def update(self, done: int) -> None:
        """So much is done by now."""
        self._done, now = done, time.monotonic()
        if now - self._told < _EVERY[self._live] or now - self._began < _AT_FIRST:
            return
        self._told = now
        if self._live:
            self._draw(self.line(now))
        else:
            tell(self.line(now))

    def line(self, now: float) -> str:
        """Where it stands."""
        name, by = self._unit
        rate = (self._done - self._first) / max(now - self._began, 1e-9)
        share = min(self._done / self._total, 1.0)
        left = f", {clock((self._total - self._done) / rate)} left" if rate > 0 and share < 1 else ""
        said = f"{self._what} {share:.0%}, {self._done / by:,.0f} of {self._total / by:,.0f} {name}"
        return f"{said}, {rate / by:,.1f} {name}/s{left}"

    def _draw(self, line: str) -> None:
        line = cut(one_line(line), max(10, shutil.get_terminal_size().columns - 1))
        try:
            stream = unescaped(sys.stderr)
            stream.write("\r" + line.ljust(self._drawn) + ("" if line else "\r"))
            stream.flush()
        except OSError:
            self._live = False
        self._drawn = len(line)


def each(what: str, things: Sequence[T], unit: str) -> Iterator[T]:
    """Some things, with progress that counts them."""
    with Progress(what, len(things), (unit, 1.0)) as progress:
        for number, thing in enumerate(things):
            yield thing
            progress.update(number + 1)
