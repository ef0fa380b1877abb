"""Scoring a split: every example exactly once, one wait at the end."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from bigctl.config import schema
from bigctl.data.sampler import EvaluationPlan
from bigctl.parallel import mesh as meshes
from bigctl.training import feed, metrics
from bigctl.training.step import Programs

LARGEST_BATCH = 512


class Evaluator:
    """One split of a data set, ready to be scored again and again.

    Args:
        programs: the compiled programs.
        columns: the split's arrays.
        config: the experiment.
        prefix: what metric names begin with: "val" or "test".
    """

    def __init__(self, programs: Programs, columns: feed.Columns, config: schema.Config, *, prefix: str):
        self.programs, self.columns, self.prefix = programs, columns, prefix
        count = len(columns["label"])
        shards = programs.mesh.size
        size = config.eval.batch_size or min(count, LARGEST_BATCH)
        self.plan = EvaluationPlan(count, -(-size // shards) * shards)
        self.resident = feed.fits(columns, config)
        self._arrays: dict[str, jax.Array] | None = None

    def __call__(self, params: Any, variables: Any) -> dict[str, Any]:
        """Metrics of these weights, named `prefix/...`."""
        total: Any = None
        for sums in self._batches(params, variables):
            total = sums if total is None else self.programs.add_sums(total, sums)
        sums = {name: np.asarray(value) for name, value in jax.device_get(total).items()}
        special = self.programs.objective.metrics(sums)
        return {**metrics.means(sums, self.prefix), **{f"{self.prefix}/{k}": v for k, v in special.items()}}

    def _batches(self, params: Any, variables: Any) -> Any:
        if self.resident:
            if self._arrays is None:
                self._arrays = feed.place(self.programs, self.columns)
            for indices, mask in self.plan.batches():
                yield self.programs.evaluate_resident(params, variables, self._arrays, indices, mask)
            return
        where = meshes.batch_sharding(self.programs.mesh)
        for indices, mask in self.plan.batches():
            batch = {name: jax.device_put(values[indices], where) for name, values in self.columns.items()}
            yield self.programs.evaluate_sent(params, variables, batch, jax.device_put(mask, where))
