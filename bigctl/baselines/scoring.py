"""Cheap answers scored as models are: by the metrics of the project's own heads, under the same names."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigctl.data.target import CLASS, CLASSES, TOKEN_CLASS, Target
from bigctl.recipes.head import Head
from bigctl.training import metrics

_LEAST = 1e-9
"""The least probability that anything is given: a certain answer that is wrong would have an infinite loss."""


def score(
    head: Head, target: Target, predicted: dict[str, np.ndarray], labels: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Metrics of both splits, "val/accuracy" and the like; what the validation split decides, such as a threshold,
    holds for the test split.

    Args:
        head: of the target.
        target: of the data.
        predicted: "val" and "test" -> probabilities [N, ..., classes], or standardised numbers [N, 1].
        labels: likewise, as prepared data has them.
    """
    found: dict[str, Any] = {}
    evaluate = jax.jit(head.evaluate)
    for split, values in predicted.items():
        decided = head.decided({name: found[f"val/{name}"] for name in head.carried}) if split != "val" else head
        batch = {"label": jnp.asarray(labels[split]), "mask": jnp.ones(len(values), jnp.float32)}
        sums = {name: np.asarray(value) for name, value in evaluate(_outputs(target, values), batch).items()}
        special = {name: value for name, value in decided.metrics(sums).items() if isinstance(value, int | float)}
        found |= {**metrics.means(sums, split), **{f"{split}/{name}": value for name, value in special.items()}}
    # those of the positive class would be of another one where `data.positive` names it
    return {name: float(value) for name, value in found.items() if "/binary_" not in name}


def _outputs(target: Target, values: np.ndarray) -> Any:
    """What a model would have given for these predictions."""
    if target.kind in (CLASS, TOKEN_CLASS):
        return jnp.asarray(np.log(np.maximum(values, _LEAST)), jnp.float32)
    if target.kind == CLASSES:
        clipped = np.clip(values, _LEAST, 1 - _LEAST)
        return jnp.asarray(np.log(clipped) - np.log1p(-clipped), jnp.float32)
    return jnp.asarray(values, jnp.float32)
