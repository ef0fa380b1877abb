"""What the loop asks of a recipe, and nothing more: the loop knows no tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx

from bigctl.training.metrics import Sums

Batch = dict[str, jax.Array]
"""Columns of examples, all with the batch dimension first; `mask` float32 is 0 where an example only pads, `number`
int32 is the example's place in the global batch."""


class Objective(Protocol):
    """One kind of experiment."""

    metric: str
    """What selects the best checkpoint, such as "val/accuracy"."""

    def example_shapes(self, n: int) -> dict[str, Any]:
        """Columns of a batch of n examples, as ShapeDtypeStructs."""

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """The model, newly initialised."""

    def loss(
        self, model: nnx.Module, batch: Batch, key: jax.Array, augment_key: jax.Array, numbers: Mapping[str, Any]
    ) -> Sums:
        """Training sums of a batch; `loss` is the pair that is minimised."""

    def evaluate(self, model: nnx.Module, batch: Batch) -> Sums:
        """Evaluation sums of a batch, additive over batches; and, named `metrics.EACH`..., values of each example."""

    def metrics(self, sums: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """What is reported of evaluation sums that are no plain means: numbers by name, without prefix.

        What began with `metrics.EACH` is here of all examples of the split.
        """
