"""The trainings of a pack, scored in one call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import jax
import numpy as np

from bigctl.data.layouts.layout import Layout
from bigctl.parallel import mesh as meshes
from bigctl.training.calls import Calls, Check
from bigctl.training.evaluation import Evaluator
from bigctl.training.metrics import Sums
from bigctl.training.on_batches import Arrays, evaluation_of_resident
from bigctl.training.packed.side_by_side import side_by_side
from bigctl.training.programs import Programs, options_of_use
from bigctl.training.state import Tree
from bigctl.training.step import Hparams

log = logging.getLogger("bigctl")

Triple = tuple[np.ndarray, np.ndarray, Sums]
"""Indices, mask and sums of a batch."""


@dataclass(frozen=True)
class Question:
    """Weights to be scored.

    Attributes:
        weights: (params, variables).
        answer: of each batch.
    """

    weights: tuple[Tree, Tree]
    answer: Future[list[Triple]] = field(default_factory=Future)


class PackedScoring:
    """The compiled evaluation of the weights of several trainings at once, for as many packs as use it.

    Args:
        programs: of any of the trainings.
        one: scores any of them, by itself; its data is on the devices.
        width: how many are scored in one call.
        check: told of the compiled evaluation before it runs first.

    Attributes:
        possible: whether they are: not where a metric cannot be computed for several, or there is no memory for it.
    """

    def __init__(self, programs: Programs, one: Evaluator, *, width: int, check: Check | None = None):
        self.one, self.width, self.calls = one, width, Calls(check)
        self.possible = one.resident
        self._everywhere = meshes.replicated(programs.mesh)
        evaluate = evaluation_of_resident(programs.step)

        def run(
            weights: tuple[Tree, Tree], arrays: Arrays, indices: jax.Array, mask: jax.Array, hparams: Hparams,
            layout: Layout, length: int | None,
        ) -> Sums:  # fmt: skip
            def each(weights: tuple[Tree, Tree], hparams: Hparams) -> Sums:
                return evaluate(*weights, arrays, indices, mask, hparams, layout, length)

            return jax.vmap(each)(weights, hparams)

        options = options_of_use(programs.step, one.count)
        self._program = jax.jit(run, static_argnums=(5, 6), out_shardings=self._everywhere, compiler_options=options)

    def compile(self, weights: tuple[Tree, Tree], hparams: Hparams) -> None:
        """Compile it, with weights of one training, and where that cannot be, what scores each by itself."""
        try:
            if self.possible:
                next(self._triples([Question(weights)], side_by_side([hparams], self.width)))
        except Exception as error:
            log.warning("the trainings of a pack are scored one by one: %s", str(error)[:200])
            self.possible = False
        if not self.possible:
            self.one.compile(*weights)

    def answer(self, questions: Sequence[Question], hparams: Callable[[], Hparams]) -> None:
        """Score the weights of at most `width` trainings, of hparams [width] each."""
        try:
            found = list(self._triples(questions, hparams()))
        except BaseException as error:  # each of them fails, and says so
            for question in questions:
                question.answer.set_exception(error)
            return
        for row, question in enumerate(questions):
            question.answer.set_result([(indices, mask, _row(sums, row)) for indices, mask, sums in found])

    def _triples(self, questions: Sequence[Question], hparams: Hparams) -> Iterator[Triple]:
        """Of every batch, the sums of all."""
        together = side_by_side([question.weights for question in questions], self.width)
        weights = jax.device_put(together, self._everywhere)
        for indices, mask, length in self.one.plan.batches():
            given = weights, self.one.place(), indices, mask, hparams, self.one.layout, length
            yield indices, mask, jax.device_get(self.calls.run(self._program, length, *given))


def _row(sums: Mapping[str, np.ndarray], row: int) -> dict[str, np.ndarray]:
    return {name: values[row] for name, values in sums.items()}
