"""Scoring a split: every example exactly once, one wait at the end."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np

from bigctl.config import schema
from bigctl.data.layouts import ragged
from bigctl.data.layouts.windows import WindowEvaluationPlan, in_order
from bigctl.data.sampler import EvaluationPlan
from bigctl.parallel import mesh as meshes
from bigctl.training import feed, metrics
from bigctl.training.step import Programs

LARGEST_BATCH = 512
LARGEST_TEXT_BATCH = 128
LARGEST_WINDOWS = 2**14
"""Tokens of a batch of windows."""


class Evaluator:
    """One split of a data set, ready to be scored again and again.

    Args:
        programs: the compiled programs.
        columns: the split's arrays.
        config: the experiment.
        prefix: what metric names begin with: "val" or "test".
        edges: the lengths that texts are padded to, those of training where it is known; None for what is no text.

    Attributes:
        examples: values of each example of the last evaluation, by name, in the split's order.
    """

    def __init__(
        self,
        programs: Programs,
        columns: feed.Columns,
        config: schema.Config,
        *,
        prefix: str,
        edges: tuple[int, ...] | None = None,
    ):
        self.programs, self.columns, self.prefix = programs, columns, prefix
        self.examples: dict[str, np.ndarray] = {}
        block = config.block
        self.count = len(columns["label"]) if block is None else in_order(len(columns["inputs"]), block)
        shards = meshes.batch_shards(programs.mesh)
        largest = LARGEST_BATCH if edges is None else LARGEST_TEXT_BATCH
        if block is not None:
            largest = max(1, LARGEST_WINDOWS // block)
        size = config.eval.batch_size or min(self.count, largest)
        size = -(-size // shards) * shards
        self.plan: Any = EvaluationPlan(self.count, size)
        if block is not None:
            self.plan = WindowEvaluationPlan(len(columns["inputs"]), block, size)
        elif edges is not None:
            self.plan = ragged.LengthEvaluationPlan(ragged.lengths_of(columns), size, edges)
        self.resident = feed.fits(columns, config)
        self._arrays: dict[str, jax.Array] | None = None

    def __call__(self, params: Any, variables: Any) -> dict[str, Any]:
        """Metrics of these weights, named `prefix/...`."""
        total: Any = None
        each: list[tuple[np.ndarray, np.ndarray, Any]] = []
        for indices, mask, found in self._batches(params, variables):
            each.append((indices, mask, {name: found[name] for name in found if name.startswith(metrics.EACH)}))
            sums = {name: value for name, value in found.items() if not name.startswith(metrics.EACH)}
            total = sums if total is None else self.programs.add_sums(total, sums)
        sums = {name: np.asarray(value) for name, value in jax.device_get(total).items()}
        sums |= self._collected(each)
        if "bytes" in self.columns:
            sums[metrics.BYTES] = np.float64(self.columns["bytes"][0]) / len(self.columns["inputs"])
        special = self.programs.task.metrics(sums)
        return {**metrics.means(sums, self.prefix), **{f"{self.prefix}/{k}": v for k, v in special.items()}}

    def place(self) -> None:
        """Bring the split onto the devices, if it fits and is not there yet."""
        if self.resident and self._arrays is None:
            self._arrays = feed.place(self.programs, self.columns)

    def _collected(self, each: list[tuple[np.ndarray, np.ndarray, Any]]) -> dict[str, np.ndarray]:
        """Values of each example, in the split's order; kept in `examples` without the prefix of their names."""
        found: dict[str, np.ndarray] = {}
        for indices, mask, values in each:
            real = mask > 0
            for name, part in jax.device_get(values).items():
                if name not in found:
                    found[name] = np.zeros((self.count, *part.shape[1:]), part.dtype)
                found[name][indices[real]] = part[real]
        self.examples = {name.removeprefix(metrics.EACH): values for name, values in found.items()}
        return found

    def _batches(self, params: Any, variables: Any) -> Any:
        """Triples (indices, mask, what the program gives) of every batch."""
        self.place()
        where = meshes.batch_sharding(self.programs.mesh)
        for indices, mask, *length in self.plan.batches():
            if self.resident:
                found = self.programs.evaluate_resident(params, variables, self._arrays, indices, mask, *length)
            else:
                batch = meshes.put_batch(
                    partial(feed.gather, self.columns, length=length[0] if length else None), indices, where
                )
                found = self.programs.evaluate_sent(params, variables, batch, meshes.put(mask, where))
            yield indices, mask, found
