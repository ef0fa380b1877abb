"""What a large import costs beyond reading it: searches for garbage, and what a package brings along unasked."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator

_own = False


def own_process() -> None:
    """The process is that of a command, and nobody else's objects are in it.

    Its searches for garbage are made rarer: to trace a program makes hundreds of thousands of objects that stay, and
    Python would look for garbage after each 700 of them, which is a twelfth of the time of a short training.
    """
    global _own
    _own = True
    gc.set_threshold(20_000, 20, 20)


@contextlib.contextmanager
def unsearched() -> Iterator[None]:
    """No garbage is searched for in here: to trace a program makes objects that stay, and in a process that is not ours
    Python looks through all of them after each 700, a third of the time that tracing takes."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """What is imported in here stays to the end of the process, and is left out of every search for garbage.

    Python looks through all modules there are each time they have grown by a quarter: a tenth of the start of a
    training. In a process that is not ours nothing is changed: `gc.freeze` would keep its garbage too.
    """
    if not _own or not gc.isenabled():
        yield
        return
    with unsearched():
        try:
            yield
        finally:
            gc.freeze()


@contextlib.contextmanager
def without(package: str) -> Iterator[None]:
    """What is imported in here finds a package that is not imported yet as if it were not installed."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # what the import system documents for it
    try:
        yield
    finally:
        sys.modules.pop(package, None)
