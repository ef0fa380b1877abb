"""Examples of one fixed shape: a row of every column each."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from bigctl.data.layouts.layout import (
    Arrays,
    Columns,
    FixedPlan,
    Indices,
    Stages,
    evaluation_batch_size,
    without_mirror,
)
from bigctl.data.pictures import scaling
from bigctl.data.sampler import RowEvaluationPlan, training_order

LARGEST_BATCH = 512
"""Examples of an evaluation batch."""


@dataclass(frozen=True)
class Rows:
    """Columns [N, ...]; an index is a row.

    Attributes:
        alternating: whether training sees each example mirrored in every other epoch: then a batch has a column
            `mirrored`, bool [batch], and indices are those of an `AlternatingPlan`.
        repeats: how often an example is in a training batch.
        stages: what sides training sees pictures at before it sees them whole, see `growing`.
    """

    alternating: bool = False
    repeats: int = 1
    stages: Stages = ()
    kind: ClassVar[str] = "rows"

    def size(self, columns: Arrays, *, training: bool) -> int:
        return len(next(iter(columns.values())))

    def training_plan(self, columns: Columns, *, batch_size: int, seed: int, frozen: bool = False) -> FixedPlan:
        order = training_order(
            self.size(columns, training=True), seed, batch_size, frozen=frozen, alternating=self.alternating,
            repeats=self.repeats,
        )  # fmt: skip
        return FixedPlan(order, batch_size, stages=() if frozen else self.stages)

    def evaluation_plan(self, columns: Columns, *, batch_size: int | None, shards: int) -> RowEvaluationPlan:
        count = self.size(columns, training=False)
        return RowEvaluationPlan(count, evaluation_batch_size(count, batch_size, LARGEST_BATCH, shards))

    def rows(self, indices: np.ndarray) -> np.ndarray:
        return indices

    def gather(self, columns: Arrays, indices: Indices, length: int | None, xp: ModuleType = np) -> dict[str, Any]:
        mirrored: Arrays = {}
        if self.alternating:
            indices, mirrored = without_mirror(indices, self.size(columns, training=True))
        taken = {name: xp.take(values, indices, axis=0, mode="clip") for name, values in columns.items()}
        if length is not None:
            taken["inputs"] = scaling.scaled(taken["inputs"], length, xp)
        return {**taken, **mirrored}

    def lengths(self, columns: Columns) -> np.ndarray | None:
        return None

    def extra_sums(self, columns: Columns) -> Columns:
        return {}
