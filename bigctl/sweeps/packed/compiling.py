"""Compiling what a pack runs, shared among the processes of a sweep on a machine: each program by one of them, while
the others compile another; these then find it in the cache. What is compiled does not depend on who does it.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bigctl.files import open_regular

if TYPE_CHECKING:
    from bigctl.engine.experiment import Experiment
    from bigctl.training.packed.pack import PackedSteps
    from bigctl.training.packed.scoring import PackedScoring
    from bigctl.training.state import Tree

log = logging.getLogger("bigctl")

_LOOK = 0.01  # s

Parts = Mapping[str, Callable[[], object]]
"""What there is to compile: each with a name that all processes of a sweep know it by."""


@contextlib.contextmanager
def among_others(folder: Path) -> Iterator[None]:
    """While this process trains, the others know it where they can: see `compile_test`."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            file = stack.enter_context(os.fdopen(open_regular(_beside(folder, "training"), os.O_RDWR | os.O_CREAT)))
            for _ in range(10):  # one that looks whether it is alone holds it for no time
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    break
                time.sleep(_LOOK)
        yield


def compile_pack(
    experiment: Experiment, steps: PackedSteps, scoring: PackedScoring, folder: Path | None, stopped: Callable[[], bool]
) -> None:
    """Compile what all trials of packs run, before the first of them does; see `compile_all`."""
    programs = experiment.programs
    parts: Parts = {
        f"{steps.width}-steps": lambda: steps.compile(programs),
        f"{steps.width}-state": programs.initialise,
        f"{steps.width}-copies": lambda: steps.compile_copies(programs.blank()),
        f"{steps.width}-evaluation": lambda: scoring.compile(_weights(experiment), programs.hparams),
    }
    compile_all(parts, folder, stopped=stopped)


def compile_test(experiment: Experiment, folder: Path) -> None:
    """Compile what the sweep will score its winner by, while others are training still: a process that has trained all
    it was given has time for it."""
    with _taken(_beside(folder, "training")) as alone:
        pass
    if alone:
        return

    def test() -> None:
        tested = experiment.evaluator("test", "test")
        if tested.resident:
            tested.compile(*_weights(experiment))

    _compiled("test", {"test": test}, folder)


def _weights(experiment: Experiment) -> tuple[Tree, Tree]:
    """Some to compile an evaluation with."""
    blank = experiment.programs.blank()
    return experiment.programs.evaluation_weights(blank), blank.variables


def compile_all(parts: Parts, folder: Path | None, *, stopped: Callable[[], bool] = lambda: False) -> None:
    """Compile all parts, first those that no other process is at; the last ones are waited for.

    What goes wrong is left to the trials, which meet it again and have a log to say so in.

    Args:
        parts: what to compile.
        folder: of the sweep, where a process that compiles says so; None where nothing that is compiled is kept, so
            that each process has to do all of it.
        stopped: whether the process was asked to stop, so that nothing more is begun and nothing waited for.
    """
    taken = [name for name in parts if not stopped() and not _compiled(name, parts, folder)]
    for name in taken:
        while not stopped() and not _compiled(name, parts, folder):
            time.sleep(_LOOK)


def _compiled(name: str, parts: Parts, folder: Path | None) -> bool:
    """Compile a part, unless another process is at it; whether it was free."""
    with _taken(None if folder is None else _beside(folder, f"compiling-{name}")) as free:
        if free:
            try:
                parts[name]()
            except Exception as error:  # of any kind: a component may be a plugin's
                log.info("%s: %s", name, str(error)[:200])
        return free


def _beside(folder: Path, what: str) -> Path:
    """A file by which processes on this machine know of each other."""
    return folder / f".{what}-{socket.gethostname()}"


@contextlib.contextmanager
def _taken(path: Path | None) -> Iterator[bool]:
    """A lock, which ends with its process; gives whether it could be taken, True also where there can be none."""
    with contextlib.ExitStack() as stack:
        free = True
        if path is not None:
            with contextlib.suppress(OSError):
                file = stack.enter_context(os.fdopen(open_regular(path, os.O_RDWR | os.O_CREAT)))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    free = False
        yield free
