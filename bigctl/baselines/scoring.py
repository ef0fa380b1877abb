"""Cheap answers scored as models are: by the metrics of the project's own heads, under the same names."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigctl.data.target import CLASS, CLASSES, TOKEN_CLASS, Target
from bigctl.recipes.classification import classification_metrics
from bigctl.recipes.head import Head
from bigctl.training import metrics

_LEAST = 1e-9
"""The least probability that anything is given: a certain answer that is wrong would have an infinite loss."""


def score(
    head: Head, target: Target, predicted: dict[str, np.ndarray], labels: dict[str, np.ndarray]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Metrics of both splits, "val/accuracy" and the like; what the validation split decides, such as a threshold,
    holds for the test split. And, of two classes, those that are about one of them ("val/binary_recall"), by its name:
    which one a run calls the positive is no matter of the data.

    Args:
        head: of the target.
        target: of the data.
        predicted: "val" and "test" -> probabilities [N, ..., classes], or standardised numbers [N, 1].
        labels: likewise, as prepared data has them.
    """
    found: dict[str, Any] = {}
    binary: dict[str, dict[str, float]] = {name: {} for name in target.names} if _two_classes(target) else {}
    evaluate = jax.jit(head.evaluate)
    for split, values in predicted.items():
        decided = head.decided({name: found[f"val/{name}"] for name in head.carried}) if split != "val" else head
        batch = {"label": jnp.asarray(labels[split]), "mask": jnp.ones(len(values), jnp.float32)}
        sums = {name: np.asarray(value) for name, value in evaluate(_outputs(target, values), batch).items()}
        special = {name: value for name, value in decided.metrics(sums).items() if isinstance(value, int | float)}
        found |= {**metrics.means(sums, split), **{f"{split}/{name}": value for name, value in special.items()}}
        for place, name in enumerate(binary):
            binary[name] |= _about(split, classification_metrics(sums, positive=place))
    return {name: float(value) for name, value in found.items() if "/binary_" not in name}, binary


def _two_classes(target: Target) -> bool:
    return target.kind == CLASS and len(target.names) == 2


def _about(split: str, values: dict[str, Any]) -> dict[str, float]:
    """The metrics that are about the positive class alone."""
    return {f"{split}/{name}": float(value) for name, value in values.items() if name.startswith("binary_")}


def _outputs(target: Target, values: np.ndarray) -> Any:
    """What a model would have given for these predictions."""
    if target.kind in (CLASS, TOKEN_CLASS):
        return jnp.asarray(np.log(np.maximum(values, _LEAST)), jnp.float32)
    if target.kind == CLASSES:
        clipped = np.clip(values, _LEAST, 1 - _LEAST)
        return jnp.asarray(np.log(clipped) - np.log1p(-clipped), jnp.float32)
    return jnp.asarray(values, jnp.float32)
