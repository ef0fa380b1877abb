"""Sums in, means out.

A mean over examples travels as the pair [sum, weight], so that padding, accumulation and uneven devices give exactly
the mean of the one big batch. Anything else that adds up, such as a confusion matrix, travels as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Sums = dict[str, Any]

EACH = "each/"
"""Begins the names of what an evaluation gives of every example, float32 or int32 [batch], which is not added up."""


def pair(values: jax.Array, weights: jax.Array) -> jax.Array:
    """[sum(values * weights), sum(weights)] as float32 [2]."""
    return jnp.stack([jnp.sum(values * weights), jnp.sum(weights)]).astype(jnp.float32)


def add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


def means(sums: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Each pair as its mean under `prefix/name`; other sums are left to those who know what they mean."""
    result = {}
    for name, value in sums.items():
        if name.startswith(EACH):
            continue
        value = np.asarray(value, np.float64)
        if value.shape == (2,):
            result[f"{prefix}/{name}"] = float(value[0] / value[1]) if value[1] else float("nan")
    return result
