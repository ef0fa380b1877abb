"""The states of several trainings in one tree of arrays [width, ...], and out of it again. A program that had them one
by one for its arguments, and the arrays of each, would take twice as long to compile as that of one training.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import numpy as np

from bigctl.parallel import mesh as meshes
from bigctl.training.programs import Programs, options_of_copies
from bigctl.training.state import TrainState, Tree


def side_by_side(trees: Sequence[Tree], width: int) -> Tree:
    """At most `width` trees as one of arrays [width, ...] on the host, in whose rows that are left over is the first;
    nothing is compiled for it."""
    rows = [*trees, *[trees[0]] * (width - len(trees))]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(rows))


class Copies:
    """What brings states side by side, and apart.

    Args:
        programs: of any of the trainings.
        width: how many states are side by side.
    """

    def __init__(self, programs: Programs, width: int):
        self.width, self._one = width, programs.carried_state
        self._everywhere = meshes.replicated(programs.mesh)
        placed = jax.tree.map(lambda leaf: leaf.sharding, self._one)
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self._one))
        compiled = partial(jax.jit, compiler_options=options_of_copies(programs.step, size))
        self._put = compiled(_put, donate_argnums=0, out_shardings=self._everywhere)
        self._take = compiled(_take, out_shardings=placed)
        self._spare: list[TrainState] = []  # of dispatches before, whose memory is written to again

    def joined(self, states: Sequence[TrainState]) -> TrainState:
        """At most `width` states as one, in whose rows that are left over is the first; they are used up."""
        try:
            found = self._spare.pop()
        except IndexError:  # also where another pack has just taken the last
            found = self.empty()
        for row in range(self.width):
            found = self._put(found, states[row] if row < len(states) else states[0], np.int32(row))
        for leaf in jax.tree.leaves(states):
            leaf.delete()
        return found

    def parted(self, together: TrainState, count: int) -> list[TrainState]:
        """The first `count` of them, one by one; what they were side by side in is used up."""
        found = [self._take(together, np.int32(row)) for row in range(count)]
        self._spare.append(together)
        return found

    def empty(self) -> TrainState:
        """States of zeros, side by side."""
        return jax.tree.map(self._zeros, self._one)

    def _zeros(self, one: jax.ShapeDtypeStruct) -> jax.Array:
        return meshes.put(np.zeros((self.width, *one.shape), one.dtype), self._everywhere)


def _put(together: TrainState, state: TrainState, row: jax.Array) -> TrainState:
    return jax.tree.map(lambda leaf, one: jax.lax.dynamic_update_index_in_dim(leaf, one, row, 0), together, state)


def _take(together: TrainState, row: jax.Array) -> TrainState:
    return jax.tree.map(lambda leaf: leaf[row], together)
