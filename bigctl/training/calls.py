"""Calling compiled programs: each compiled once for each shape of batch, shown to a check before it runs first, and on
CPU never so many under way that their temporaries lie beside each other in memory."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax

from bigctl.parallel import host_memory
from bigctl.training.compiled import Compiled, Executable, compiled
from bigctl.training.state import Tree

Check = Callable[[Executable], None]
"""Told of each compiled program once, before it runs first; raises where it must not run."""


class Calls:
    """Runs programs, each of which is shown to `check` before it runs first; jax compiles it once for both.

    Attributes:
        compiling: seconds so far that programs took to be traced and compiled.
    """

    def __init__(self, check: Check | None):
        self.compiling = 0.0
        self._check = check
        self._waits: dict[int | None, bool] = {}

    def run(self, program: Compiled, length: int | None, *arguments: object, after: Tree = ()) -> Tree:
        """Call the program; `length` tells the shapes apart that it is called with.

        On CPU the temporaries of a call are taken when it is dispatched: where they are large, it waits for its
        arguments and for `after`, so that it can have the memory of the call before. Nothing is computed while a
        program is compiled: what stays of that in memory would lie above the temporaries, and keep larger ones from
        growing over them.
        """
        first = length not in self._waits
        if host_memory.keeps() and (first or self._waits[length]):
            jax.block_until_ready((arguments, after))
        if not first:
            return program(*arguments)
        start, waits = time.perf_counter(), False
        if self._check is not None or host_memory.keeps():
            host_memory.open_holes()
            executable = compiled(program, *arguments)
            host_memory.give_back()
            if self._check is not None:
                self._check(executable)
            analysis = executable.memory_analysis()
            temporary = 0 if analysis is None else int(analysis.temp_size_in_bytes)
            waits = host_memory.is_large(temporary)
            host_memory.fill_holes(temporary)
        found = program(*arguments)  # which compiles it, where nothing has yet, and is computed later
        self._waits[length] = waits
        self.compiling += time.perf_counter() - start
        return found
