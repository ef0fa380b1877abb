"""Whether a copy of a model, in another runtime, computes what the model does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bigctl.errors import RunError
from bigctl.inference.exporters.network import Arrays, Network

TOLERANCE = 1e-4
"""How far an output may be from the model's, as a part of the largest absolute value of that output."""


@dataclass(frozen=True)
class Agreement:
    """How well a copy agrees.

    Attributes:
        difference: the largest, as a part of the largest absolute value.
        checked: what it was compared on.
        by: what computed the copy, where it could be one of several.
    """

    difference: float
    checked: str
    by: str = ""

    def __str__(self) -> str:
        by = f"read again by {self.by}, " if self.by else ""
        return f"{by}within {self.difference:.1g} of the largest logit on {self.checked} (allowed: {TOLERANCE:g})"


def require_agreement(
    network: Network,
    run: Callable[[Arrays], Arrays],
    where: str,
    locate: Callable[[Arrays], str | None] = lambda batch: None,
    by: str = "",
) -> Agreement:
    """How well a copy agrees with a model, on all of its examples.

    Args:
        network: the model.
        run: the copy: inputs -> outputs, by name, the first of the model's at least; given the batches in order.
        where: what the copy is called.
        locate: finds the operation at which a difference begins, given the inputs; None where it cannot.
        by: see `Agreement`.

    Raises:
        RunError: if an output differs by more than `TOLERANCE`, or another label comes out; it says where it begins.
    """
    worst = 0.0
    for batch, expected in zip(network.batches, network.expected, strict=True):
        found = run(batch)
        for number, (name, values) in enumerate(expected.items()):
            if number and name not in found:
                continue
            how_much = difference(values, found[name])
            if how_much > TOLERANCE or (number == 0 and other_labels(values, found[name])):
                begins = locate(batch)
                said = f"; it begins {begins}" if begins else ""
                message = f"does not compute what the model does: {name} is off by {how_much:.2g} of the largest{said}"
                hint = (
                    "nothing was written; this is a mistake in bigctl, or a runtime of another make: please report it"
                )
                raise RunError(message, where=where, hint=hint)
            worst = max(worst, how_much)
    return Agreement(worst, network.checked, by)


def difference(expected: np.ndarray, found: np.ndarray) -> float:
    """The largest difference as a part of the largest absolute value; infinity for what has another shape, or is no
    number on one side alone."""
    if expected.shape != found.shape:
        return np.inf
    if not expected.size:
        return 0.0
    known = np.isfinite(expected)
    if (known != np.isfinite(found)).any():
        return np.inf
    scale = np.abs(expected[known].astype(np.float64)).max(initial=0.0) or 1.0
    off = np.abs(expected[known].astype(np.float64) - found[known].astype(np.float64)).max(initial=0.0) / scale
    return float(off)


def other_labels(expected: np.ndarray, found: np.ndarray) -> bool:
    """Whether another class is the likeliest somewhere; not where the two likeliest are as good as equal."""
    if expected.shape != found.shape or expected.ndim < 2 or expected.shape[-1] < 2:
        return False
    ordered = np.sort(expected.astype(np.float64), axis=-1)
    clear = ordered[..., -1] - ordered[..., -2] > 2 * TOLERANCE * np.abs(expected).max()
    return bool((clear & (expected.argmax(-1) != found.argmax(-1))).any())
