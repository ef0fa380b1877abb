"""What a compiled function is called by, and a step that is two of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax

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

    Of a BERT the update is nearly half of what there is to compile. It is called as a whole step is, and lowered.

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

    def lower(self, *arguments: object) -> Lowered:
        return Lowered(self, self.graded.lower(*arguments), arguments)

    def _cache_size(self) -> int:
        """Programs that were compiled, as `jax.jit` has it."""
        size: int = getattr(self.graded, "_cache_size", lambda: 1)()
        return size


class Lowered(NamedTuple):
    """A step whose first program is lowered, and its arguments."""

    step: InParts
    graded: jax.stages.Lowered
    arguments: tuple[Any, ...]

    def compile(self) -> BothParts:
        """The second program is lowered for what the first one gives, where that will lie: else the call would compile
        it anew."""
        graded, state, hparams = self.graded.compile(), self.arguments[0], self.arguments[self.step.hparams]
        between = jax.tree.map(
            lambda value, where: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=where),
            self.graded.out_info,
            graded.output_shardings,
        )
        update = compiled(self.step.update, state, between, hparams)
        return BothParts(self.step, graded, update, _bytes(self.arguments), _bytes(state))


class BothParts(NamedTuple):
    """Both programs, compiled, and how many bytes the arguments of the step have, and its state."""

    step: InParts
    graded: Executable
    update: Executable
    arguments: int
    state: int

    def __call__(self, *arguments: object) -> Any:
        return self.update(arguments[0], self.graded(*arguments), arguments[self.step.hparams])

    def memory_analysis(self) -> Memory | None:
        """What a step takes while either program runs: all of its arguments, and what comes from the first to the
        second, are there meanwhile."""
        graded, update = self.graded.memory_analysis(), self.update.memory_analysis()
        if graded is None or update is None:
            return None
        between = int(graded.output_size_in_bytes)
        return Memory(
            argument_size_in_bytes=self.arguments,
            output_size_in_bytes=self.state,
            alias_size_in_bytes=self.state,  # which is overwritten
            temp_size_in_bytes=between + max(int(graded.temp_size_in_bytes), int(update.temp_size_in_bytes)),
            generated_code_size_in_bytes=int(graded.generated_code_size_in_bytes + update.generated_code_size_in_bytes),
        )


class Memory(NamedTuple):
    """What `memory_analysis` of a compiled program has [bytes a device]."""

    argument_size_in_bytes: int
    output_size_in_bytes: int
    alias_size_in_bytes: int
    temp_size_in_bytes: int
    generated_code_size_in_bytes: int


def _bytes(tree: object) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype"))


def compiled(program: Compiled, *arguments: object) -> Executable:
    """A program compiled for these arguments, which is kept for the call."""
    with imports.unsearched():
        lowered = program.lower(*arguments)
    return lowered.compile()
