"""What a compiled function is called by, and a step that is two of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from bigctl import imports

Executable = Any
"""What `lower(...).compile()` gives: jax has no name for it that stays."""


class Compiled(Protocol):
    """What `jax.jit` gives: a function that is compiled when it is called, once for all arguments of one shape."""

    def __call__(self, *arguments: Any) -> Any: ...

    def lower(self, *arguments: Any) -> Any: ...


@dataclass(frozen=True, eq=False)
class InParts:
    """A step as two programs: gradients, compiled for each shape of batch, and the update, compiled once for all.

    Of a BERT the update is nearly half of what there is to compile. It is called as a whole step is, and its memory is
    that of the gradients, as the update overwrites the state.

    Attributes:
        graded: (state, *batch) -> `Graded`.
        update: (state, graded, hparams) -> state.
        hparams: the place of the hparams among the arguments.
    """

    graded: Compiled
    update: Compiled
    hparams: int

    def __call__(self, *arguments: object) -> Any:
        return self.update(arguments[0], self.graded(*arguments), arguments[self.hparams])

    def lower(self, *arguments: object) -> Any:
        return self.graded.lower(*arguments)

    def _cache_size(self) -> int:
        """Programs that were compiled, as `jax.jit` has it."""
        size: int = getattr(self.graded, "_cache_size", lambda: 1)()
        return size


def compiled(program: Compiled, *arguments: object) -> Executable:
    """A program compiled for these arguments, which is kept for the call."""
    with imports.unsearched():
        lowered = program.lower(*arguments)
    return lowered.compile()
