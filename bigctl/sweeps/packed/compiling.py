"""Compiling what a pack runs, shared among the processes of a sweep: each program by one of them, while the others
compile another; these then find it in the cache. What is compiled does not depend on who does it.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from bigctl.errors import BigctlError
from bigctl.files import open_regular

log = logging.getLogger("bigctl")

Parts = Mapping[str, Callable[[], object]]
"""What there is to compile: each with a name that all processes of a sweep know it by."""


def compile_all(parts: Parts, folder: Path | None, *, later: Parts) -> None:
    """Compile all parts, first those that no other process is at; the last ones are waited for.

    What goes wrong is left to the trials, which meet it again and have a log to say so in.

    Args:
        parts: what to compile.
        folder: of the sweep, where a process that compiles says so; None where nothing that is compiled is kept, so
            that each process has to do all of it.
        later: what one of the processes may compile for others that come after it, while it would wait.
    """
    waiting = [name for name in parts if not _compiled(name, parts, folder, wait=False)]
    if waiting:
        for name in later:
            _compiled(name, later, folder, wait=False)
    for name in waiting:
        _compiled(name, parts, folder, wait=True)


def _compiled(name: str, parts: Parts, folder: Path | None, *, wait: bool) -> bool:
    """Compile a part; whether it was free."""
    from jax.errors import JaxRuntimeError

    with _taken(None if folder is None else folder / f".compiling-{name}", wait=wait) as free:
        if free:
            try:
                parts[name]()
            except (BigctlError, JaxRuntimeError) as error:
                log.info("%s of a pack: %s", name, str(error)[:200])
        return free


@contextlib.contextmanager
def _taken(path: Path | None, *, wait: bool) -> Iterator[bool]:
    """A lock, which ends with its process; gives whether it could be taken, True also where there can be none."""
    with contextlib.ExitStack() as stack:
        free = True
        if path is not None:
            with contextlib.suppress(OSError):
                file = stack.enter_context(os.fdopen(open_regular(path, os.O_RDWR | os.O_CREAT)))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    free = False
        yield free
