"""How far the host may run ahead of the devices.

Dispatching a step returns before it is computed, and a backend takes in some thirty steps or more. Where a step takes
seconds, what is dispatched already is minutes of work, and a run that is asked to stop has to end all of it first.
"""

from __future__ import annotations

import time

import jax

LONGEST = 1.0
"""Of the work in a group of dispatches, of which two may be under way [s]."""
LARGEST = 64


class Ahead:
    """Waits, every so many dispatches, for those before the last so many.

    The devices always have a group of dispatches before them, so that none of them waits for the host. A group grows
    and shrinks until it takes between a quarter of `LONGEST` and all of it: one dispatch at least, `LARGEST` at most.
    """

    def __init__(self) -> None:
        self.group = 1
        self._count = 0
        self._mark: jax.Array | None = None
        self._then = 0.0

    def dispatched(self, step: jax.Array) -> None:
        """One more dispatch was made; `step` is a small array that it gives, which may be donated to the next."""
        self._count += 1
        if self._count < self.group:
            return
        self._count = 0
        if self._mark is not None:
            self._mark.block_until_ready()
            now = time.perf_counter()
            seconds, self._then = now - self._then, now
            if seconds > LONGEST:
                self.group = max(1, self.group // 2)
            elif seconds < LONGEST / 4:
                self.group = min(LARGEST, 2 * self.group)
        # Of this process alone: groups differ from process to process, so nothing that all take part in may be asked.
        self._mark = _copy(step.addressable_data(0))


@jax.jit
def _copy(step: jax.Array) -> jax.Array:
    return step + 0
