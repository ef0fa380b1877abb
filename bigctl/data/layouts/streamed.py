"""Pictures that are decoded while training (`EncodedImages`), one of fixed shape a row.

Which part of a picture training sees is drawn with a key for its position, which is chosen with the row: a batch is the
same whichever thread or process decodes it, and whatever became of the batches before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, ClassVar, cast

import numpy as np

from bigctl.data.layouts.layout import (
    Arrays,
    Columns,
    FixedPlan,
    Indices,
    Stages,
    TrainingPlan,
    evaluation_batch_size,
    without_mirror,
)
from bigctl.data.layouts.rows import LARGEST_BATCH
from bigctl.data.pictures import crops, scaling
from bigctl.data.pictures.encoded_images import EncodedImages
from bigctl.data.sampler import RowEvaluationPlan, training_order

_LARGEST_BYTES = 2**25
"""Of an evaluation batch of large pictures."""


@dataclass(frozen=True)
class Streamed:
    """Columns [N, ...], of which `inputs` is `EncodedImages`; an index is a row, or for training with random parts a
    row and the key for one, int64 [batch, 2].

    Attributes:
        least: share of a picture's area that a random part of it has at least; 0 for no random parts.
        threads: that decode; None for one a core.
        alternating: whether training sees each picture mirrored in every other epoch, see `Rows`.
        repeats: how often an example is in a training batch, each time another part of it.
        stages: what sides training sees pictures at before it sees them whole, see `growing`; they are decoded to that.
    """

    least: float = 0.0
    threads: int | None = None
    alternating: bool = False
    repeats: int = 1
    stages: Stages = ()
    kind: ClassVar[str] = "streamed"

    def size(self, columns: Arrays, *, training: bool) -> int:
        return len(columns["inputs"])

    def training_plan(self, columns: Columns, *, batch_size: int, seed: int, frozen: bool = False) -> TrainingPlan:
        order = training_order(
            self.size(columns, training=True), seed, batch_size, frozen=frozen, alternating=self.alternating,
            repeats=self.repeats,
        )  # fmt: skip
        rows = FixedPlan(order, batch_size, stages=() if frozen else self.stages)
        return rows if frozen or not self.least else PartsPlan(rows, seed)

    def evaluation_plan(self, columns: Columns, *, batch_size: int | None, shards: int) -> RowEvaluationPlan:
        count = self.size(columns, training=False)
        largest = min(LARGEST_BATCH, max(1, _LARGEST_BYTES // math.prod(columns["inputs"].shape[1:])))
        return RowEvaluationPlan(count, evaluation_batch_size(count, batch_size, largest, shards))

    def rows(self, indices: np.ndarray) -> np.ndarray:
        return indices

    def gather(self, columns: Arrays, indices: Indices, length: int | None, xp: ModuleType = np) -> dict[str, Any]:
        rows, keys = (indices, None) if indices.ndim == 1 else (indices[:, 0], indices[:, 1].view(np.uint64))
        mirrored: Arrays = {}
        if self.alternating:
            rows, mirrored = without_mirror(rows, self.size(columns, training=True))
        images = cast(EncodedImages, columns["inputs"])
        if length is not None:
            height, width = scaling.scaled_size((images.form.height, images.form.width), length)
            images = replace(images, form=replace(images.form, height=height, width=width, sized=True))
        decoded = images.decode(rows, keys=keys, least=self.least, threads=self.threads)
        others = {name: np.asarray(values[rows]) for name, values in columns.items() if name != "inputs"}
        return {"inputs": decoded, **others, **mirrored}

    def lengths(self, columns: Columns) -> np.ndarray | None:
        return None

    def extra_sums(self, columns: Columns) -> Columns:
        return {}


@dataclass
class PartsPlan:
    """Rows in the order of a plan, each with the key that a part of its picture is drawn with."""

    order: FixedPlan
    seed: int

    @property
    def lengths(self) -> tuple[int | None, ...]:
        return self.order.lengths

    def batch(self, position: int) -> tuple[np.ndarray, int | None]:
        rows, length = self.order.batch(position)
        keys = crops.keys(self.seed, np.arange(position, position + len(rows), dtype=np.int64))
        return np.stack([rows.astype(np.int64), keys.view(np.int64)], axis=1), length
