"""Where one array could not be written or read, Orbax tells of that one and closes its event loop; what becomes of the
others is then told to a closed loop, which Python reports with a traceback for each, in between the one line that says
what went wrong. Nothing is lost with them: their save or load has failed already, and has told why."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs


class _Hook:
    """Takes the place of `sys.unraisablehook`, and leaves everything else to that."""

    def __init__(self, before: Callable[[UnraisableHookArgs], object]):
        self._before = before

    def __call__(self, args: UnraisableHookArgs) -> None:
        error, source = args.exc_value, args.object  # there is no object where a library calls from C++
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed" and source is None):
            self._before(args)


def ignore() -> None:
    """Show none of them in this process from now on."""
    if not isinstance(sys.unraisablehook, _Hook):
        sys.unraisablehook = _Hook(sys.unraisablehook)
