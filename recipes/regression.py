"""Regression on one real target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from bigctl.recipes.head import Head
from jaxtyping import Array, Float

from bigctl.training.metrics import Sums, pair
from bigctl.training.task import Batch, Judged, Record


class NumberHead(Head):
    """Squared error of the standardised target as the loss, and errors in the target's own unit.

    Args:
        mean, std: of the target in the training split.
    """

    outputs = 1
    metric = "val/loss"

    def __init__(self, mean: float, std: float):
        self.mean, self.std = mean, std

    def loss(self, outputs: Float[Array, "batch 1"], batch: Batch, hparams: Mapping[str, Any]) -> Sums:
        return self.evaluate(outputs, batch)

    def evaluate(self, outputs: Float[Array, "batch 1"], batch: Batch) -> Sums:
        return regression_sums(outputs, batch["label"], batch["mask"], self.mean, self.std)

    def metrics(self, sums: Mapping[str, np.ndarray]) -> Record:
        squared, count = (float(v) for v in sums["mse"])
        return {"rmse": (squared / count) ** 0.5}

    def predict(self, outputs: Float[Array, "batch 1"]) -> Float[Array, "batch 1"]:
        return outputs.astype(jnp.float32) * self.std + self.mean

    def exported(self, outputs: Float[Array, "batch 1"]) -> dict[str, Array]:
        return {"value": self.predict(outputs)}

    def of_exported(self, given: Mapping[str, np.ndarray]) -> Float[Array, "batch 1"]:
        return (jnp.asarray(given["value"]) - self.mean) / self.std

    def describe(self, prediction: np.ndarray) -> Record:
        return {"value": float(prediction[0])}

    def judge(self, predictions: np.ndarray, labels: np.ndarray) -> list[Judged]:
        pairs = zip(labels, predictions[:, 0], strict=True)
        return [Judged(f"{true:.6g}", f"{value:.6g}", False, float(abs(value - true))) for true, value in pairs]


def regression_sums(
    outputs: Float[Array, "batch 1"], targets: Float[Array, " batch"], mask: Array, mean: float, std: float
) -> Sums:
    """Squared error of the standardised target as the loss, and errors in the target's own unit."""
    predicted = outputs.astype(jnp.float32)[:, 0]
    error = predicted - (targets - mean) / std
    return {
        "loss": pair(jnp.square(error), mask),
        "mse": pair(jnp.square(error * std), mask),
        "mae": pair(jnp.abs(error * std), mask),
    }
