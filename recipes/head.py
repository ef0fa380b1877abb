"""What one kind of target makes of a model's outputs: loss, metrics and predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bigctl.config import schema
from bigctl.errors import ConfigError
from bigctl.training.metrics import Sums
from bigctl.training.task import Batch, Judged, Record


class Head:
    """What the heads share. Methods without a word of their own do as those of `Task` with the same name.

    Attributes:
        outputs: how many numbers the model gives for each example.
        metric: what selects the best checkpoint.
        carried: metrics of the validation split that predictions need, see `Task.carried`.
    """

    outputs: int
    metric: str
    carried: tuple[str, ...] = ()
    positive_class: str | None = None
    """Of two classes, the one that binary metrics are about."""

    cut: float | None = None
    """The least probability of a class that is predicted; None where the likeliest is."""

    def decided(self, values: Mapping[str, float]) -> Self:
        return self

    def taught(self, distil: schema.Distil) -> Self:
        """The head that learns from a teacher's logits too, the column `TEACHER`; by default there is none such."""
        hint = "leave it out; a teacher tells of one class an example"
        raise ConfigError("nothing here can be taught by another run", where="distil.teacher", hint=hint)

    def loss(self, outputs: Float[Array, "batch outputs"], batch: Batch, hparams: Mapping[str, Any]) -> Sums:
        raise NotImplementedError

    def evaluate(self, outputs: Float[Array, "batch outputs"], batch: Batch) -> Sums:
        raise NotImplementedError

    def metrics(self, sums: Mapping[str, np.ndarray]) -> Record:
        raise NotImplementedError

    def predict(self, outputs: Float[Array, "batch outputs"]) -> Float[Array, "batch values"]:
        """Probabilities of classes, or values of the target."""
        raise NotImplementedError

    def exported(self, outputs: Float[Array, "batch outputs"]) -> dict[str, Array]:
        return {"logits": outputs.astype(jnp.float32), "probabilities": self.predict(outputs)}

    def of_exported(self, given: Mapping[str, np.ndarray]) -> Float[Array, "batch outputs"]:
        """The outputs, or what is scored like them, of what `exported` named."""
        return jnp.asarray(given["logits"])

    def describe(self, prediction: np.ndarray) -> Record:
        raise NotImplementedError

    def judge(self, predictions: np.ndarray, labels: np.ndarray) -> list[Judged]:
        raise NotImplementedError

    def curves(self, examples: Mapping[str, np.ndarray], labels: np.ndarray) -> Record:
        return {}

    def errors(self, examples: Mapping[str, np.ndarray], labels: np.ndarray, count: int) -> list[Record]:
        return []
