"""What layouts of training batches with room to spare have in common: places that hold no example are masked."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from bigctl.data.layouts.layout import Arrays, Columns, Indices, Layout
from bigctl.data.layouts.ragged import Ragged
from bigctl.data.layouts.rows import Rows
from bigctl.data.sampler import RowEvaluationPlan

PADDING = -1
"""The index of a place that holds no example."""
KINDS = (Rows.kind, Ragged.kind)
"""Layouts whose examples may be drawn one by one."""


def drawable(layout: Layout) -> Rows | Ragged:
    """The layout, which is one of `KINDS`. Raises ValueError for others."""
    if not isinstance(layout, Rows | Ragged):
        raise ValueError(f"examples of {layout.kind} are not drawn one by one")
    return layout


@dataclass(frozen=True)
class Masked:
    """The training split of another layout. A batch has a column `mask`, float32 [rows].

    Attributes:
        base: the layout of the examples.
    """

    base: Rows | Ragged

    def size(self, columns: Arrays, *, training: bool) -> int:
        return self.base.size(columns, training=training)

    def evaluation_plan(self, columns: Columns, *, batch_size: int | None, shards: int) -> RowEvaluationPlan | Any:
        return self.base.evaluation_plan(columns, batch_size=batch_size, shards=shards)

    def rows(self, indices: np.ndarray) -> np.ndarray:
        return self.base.rows(indices)

    def gather(self, columns: Arrays, indices: Indices, length: int | None, xp: ModuleType = np) -> dict[str, Any]:
        real = indices >= 0
        batch = self.base.gather(columns, xp.maximum(indices, 0), length, xp)
        return {**batch, "mask": real.astype(xp.float32)}

    def lengths(self, columns: Columns) -> np.ndarray | None:
        return self.base.lengths(columns)

    def extra_sums(self, columns: Columns) -> Columns:
        return self.base.extra_sums(columns)
