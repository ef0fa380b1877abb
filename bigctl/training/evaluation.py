"""Scoring a split: every example exactly once, one wait at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from bigctl.config import schema
from bigctl.data.layouts.layout import Columns, Layout, Parted
from bigctl.parallel import mesh as meshes
from bigctl.training import feed, metrics, plans
from bigctl.training.calls import Calls, Check
from bigctl.training.compiled import Compiled
from bigctl.training.metrics import Sums
from bigctl.training.prefetch import prefetched
from bigctl.training.programs import ModelPrograms
from bigctl.training.state import Tree
from bigctl.training.task import Task, special_metrics


@dataclass(frozen=True)
class Scores:
    """What came out.

    Attributes:
        metrics: by name, `val/accuracy` for one.
        examples: values of each example by name, in the split's order.
    """

    metrics: dict[str, Any]
    examples: dict[str, np.ndarray]


Batches = Iterable[tuple[np.ndarray, np.ndarray, Sums]]
"""Triples (indices, mask, sums) of every batch of a split."""


class SplitScores:
    """One split of a data set, and what becomes of the sums of its batches, whoever computes these.

    Args:
        layout: how the split's examples become batches.
        columns: the split's arrays.
        config: the experiment.
        prefix: what metric names begin with: "val" or "test".
        shards: parts into which a batch is cut.
    """

    def __init__(self, layout: Layout, columns: Columns, config: schema.Config, *, prefix: str, shards: int = 1):
        self.layout, self.columns, self.prefix = layout, columns, prefix
        self.parted = layout if isinstance(layout, Parted) else None
        self.count = layout.size(columns, training=False)
        self.plan = layout.evaluation_plan(columns, batch_size=config.eval.batch_size, shards=shards)

    def scores(self, task: Task, batches: Batches, add: Callable[[Sums, Sums], Sums] = metrics.add) -> Scores:
        """Metrics of the batches' sums, named `prefix/...`, and values of each example."""
        each: list[tuple[np.ndarray, np.ndarray, Sums]] = []
        totals: dict[str, Sums] = {}  # of each part of the split; of a whole one under ""
        for indices, mask, found in batches:
            each.append((indices, mask, {name: found[name] for name in found if name.startswith(metrics.EACH)}))
            sums = {name: value for name, value in found.items() if not name.startswith(metrics.EACH)}
            part = self.parted.part(self.columns, indices) if self.parted is not None else ""
            totals[part] = add(totals[part], sums) if part in totals else sums
        collected, added = self._collected(each), jax.device_get(totals)
        named = self._named(task, _added(added.values()), {**collected, **self.layout.extra_sums(self.columns)})
        if self.parted is not None:
            for part, sums in added.items():
                extra = {name: values[self._is_of(part)] for name, values in collected.items()}
                own = self._named(task, sums, {**extra, **self.parted.part_sums(self.columns, part)})
                named |= {f"{name}/{part}": value for name, value in own.items()}
        return Scores(named, {name.removeprefix(metrics.EACH): values for name, values in collected.items()})

    def _named(self, task: Task, total: Sums, extra: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Metrics by name of what was added up, with what else is known."""
        sums = {name: np.asarray(value) for name, value in total.items()} | dict(extra)
        special = special_metrics(task, sums)
        return {**metrics.means(sums, self.prefix), **{f"{self.prefix}/{k}": v for k, v in special.items()}}

    def _is_of(self, part: str) -> np.ndarray:
        """Which examples are of a part of the split, bool [N]."""
        found = np.zeros(self.count, bool)
        for indices, mask, _ in self.plan.batches():
            if self.parted is not None and self.parted.part(self.columns, indices) == part:
                found[self._rows(indices[mask > 0])] = True
        return found

    def _rows(self, indices: np.ndarray) -> np.ndarray:
        return self.layout.rows(indices) if self.parted is None else self.parted.places(self.columns, indices)

    def _collected(self, each: list[tuple[np.ndarray, np.ndarray, Sums]]) -> dict[str, np.ndarray]:
        """Values of each example, in the split's order."""
        found: dict[str, np.ndarray] = {}
        for indices, mask, values in each:
            real = mask > 0
            for name, part in jax.device_get(values).items():
                if name not in found:
                    found[name] = np.zeros((self.count, *part.shape[1:]), part.dtype)
                found[name][self._rows(indices.reshape(-1)[real])] = part[real]
        return found


class Evaluator(SplitScores):
    """One split of a data set, ready to be scored again and again, by trials that share it too.

    Args:
        programs: the compiled functions.
        layout, columns, config, prefix: see `SplitScores`.
        check: told of each compiled evaluation before it runs first.
    """

    def __init__(
        self,
        programs: ModelPrograms,
        layout: Layout,
        columns: Columns,
        config: schema.Config,
        *,
        prefix: str,
        check: Check | None = None,
    ):
        layout = plans.evaluated(programs.task, layout, columns, config)
        super().__init__(layout, columns, config, prefix=prefix, shards=meshes.batch_shards(programs.mesh))
        self.programs = programs
        # Where a program has the arrays of a split for arguments, each split has programs of its own: one is enough,
        # but not one a length, and a batch of texts is soon sent.
        self.resident = layout.lengths(columns) is None and feed.fits_on_device(columns, config)
        self._arrays: Mapping[str, jax.Array] | None = None
        self.calls = Calls(check)
        self._before: Sums = {}

    def __call__(self, params: Tree, variables: Tree, task: Task | None = None) -> dict[str, Any]:
        """Metrics of these weights, named `prefix/...`; `task` where it is decided, see `Task.decided`."""
        return self.score(params, variables, task).metrics

    def score(self, params: Tree, variables: Tree, task: Task | None = None) -> Scores:
        """Metrics of these weights, and values of each example."""
        batches = self._batches(params, variables)
        return self.scores(task or self.programs.task, batches, self.programs.add_sums)

    def compile(self, params: Tree, variables: Tree) -> None:
        """Compile what batches are scored by, with the first of them."""
        with contextlib.closing(self._batches(params, variables)) as batches:
            next(batches)

    def place(self) -> Mapping[str, jax.Array]:
        """The split on the devices, brought there where it is not yet."""
        if self._arrays is None:
            self._arrays = feed.place_columns(self.programs.mesh, self.columns) if self.resident else {}
        return self._arrays

    def _batches(self, params: Tree, variables: Tree) -> Generator[tuple[np.ndarray, np.ndarray, Sums], None, None]:
        """Triples (indices, mask, sums) of every batch."""
        programs, arrays = self.programs, self.place()
        if not self.resident:
            yield from self._sent(params, variables)
            return
        evaluate = programs.evaluation(self.count).resident
        for indices, mask, length in self.plan.batches():
            given = params, variables, arrays, indices, mask, programs.hparams, self.layout, length
            yield indices, mask, self._run(evaluate, length, *given)

    def _sent(self, params: Tree, variables: Tree) -> Iterator[tuple[np.ndarray, np.ndarray, Sums]]:
        """The same of a split that is not on the devices, whose batches are made ahead."""
        programs, where = self.programs, meshes.batch_sharding(self.programs.mesh)

        def made(indices: np.ndarray, mask: np.ndarray, length: int | None) -> tuple[Any, ...]:
            gather = partial(self.layout.gather, self.columns, length=length)
            return indices, mask, length, meshes.put_batch(gather, indices, where)

        evaluate = programs.evaluation(self.count).sent
        with contextlib.closing(prefetched(partial(made, *planned) for planned in self.plan.batches())) as batches:
            for indices, mask, length, batch in batches:
                given = params, variables, batch, meshes.put(mask, where), programs.hparams
                yield indices, mask, self._run(evaluate, length, *given)

    def _run(self, program: Compiled, length: int | None, *arguments: object) -> Sums:
        """The sums of a batch, after those of the one before where there is memory for one at a time."""
        found: Sums = self.calls.run(program, length, *arguments, after=self._before)
        self._before = found
        return found


def _added(parts: Iterable[Sums]) -> Sums:
    """Sums of the whole, on the host."""
    found: Sums = {}
    for sums in parts:
        found = {name: found[name] + value for name, value in sums.items()} if found else dict(sums)
    return found
