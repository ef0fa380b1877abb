"""What each column of a row adds to an answer: Shapley values against rows of the training split.

Dimension names: columns (those of the table), features (numbers that the model reads, one or more a column), rows (of
the background), sets (of columns that are known).
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from bigctl.data.dataset import Features
from bigctl.data.table_encoder import Numeric, TableEncoder
from bigctl.inference.explaining.asked import Attribution, Explanation, Output, outputs_of, score_of
from bigctl.inference.explaining.faithfulness import Units
from bigctl.inference.trained import TrainedRun
from bigctl.training.state import Tree
from bigctl.training.task import Record

SHAPLEY = "shapley"
EXACT = 10
"""Columns up to which all sets are looked at."""
BACKGROUND = 100
"""Rows of the training split that stand for what is not known."""
PAIRS = 64
"""Orders of the columns that are drawn, each beside its reverse."""
_BLOCK = 8192  # rows that are computed at once

Values = Callable[[Bool[np.ndarray, "sets columns"]], Float[np.ndarray, " sets"]]
"""The mean answer where some columns are known, for each of some sets of columns."""


@dataclass(frozen=True)
class TableExplanation(Explanation):
    """What each column of a row adds to an output.

    Attributes:
        names: of the columns, as many as values.
        cells: what the row has there, in words.
        errors: standard errors of the values; None where they are exact.
    """

    names: tuple[str, ...] = ()
    cells: tuple[str, ...] = ()
    errors: np.ndarray | None = None

    def to_json(self) -> Record:
        found = {"columns": [*self.names], "cells": [*self.cells], "attributions": self.attribution.values.tolist()}
        errors = None if self.errors is None else self.errors.tolist()
        about = {**self.prediction, **self.attribution.to_json()}
        return {**about, **found, "standard_errors": errors, **self.details}


class TableExplainer:
    """Explains the answers of a model of tables.

    Args:
        trained: the run, whose training split gives the background.
        rows: of the background.
        seed: by which they, and orders of the columns, are drawn.

    Raises:
        RunError: if the data has changed since.
    """

    def __init__(self, trained: TrainedRun, rows: int = BACKGROUND, seed: int = 0):
        self.trained, self.seed = trained, seed
        self.names, self.column = columns_of(trained.features)
        train = trained.data().splits["train"]["inputs"]
        chosen = np.sort(np.random.default_rng(seed).choice(len(train), min(rows, len(train)), replace=False))
        self.background = np.asarray(train[chosen], np.float32)
        self._structure, self.state = nnx.split(trained.model)

    @property
    def baseline(self) -> str:
        return f"the mean over {len(self.background):,} rows of the training split, drawn with seed {self.seed}"

    def methods(self) -> tuple[str, ...]:
        return (SHAPLEY,)

    def explain(
        self, inputs: Sequence[Any] | np.ndarray, method: str = SHAPLEY, wanted: str | None = None
    ) -> list[TableExplanation]:
        """One explanation a row, float32 [N, features]. Raises ConfigError for an unknown class."""
        rows = np.asarray(inputs, np.float32)
        predictions = self.trained.describe_all(rows)
        outputs = outputs_of(self.trained, wanted, predictions)
        return [self._explained(*each) for each in zip(rows, outputs, predictions, strict=True)]

    def _explained(self, row: np.ndarray, output: Output, prediction: Record) -> TableExplanation:
        count = len(self.names)
        ask = self.values(row, output.number)
        found = self.shapley(ask)
        base, score = ask(np.stack([np.zeros(count, bool), np.ones(count, bool)])).tolist()
        target, values = self.trained.features.target, found.values
        if output.name is None:  # in the unit of the data
            values, output = values * target.std, Output(0, None, "value")
            base, score = (float(v * target.std + target.mean + target.origin) for v in (base, score))
        error = abs(float(values.sum()) - (score - base))
        how = (
            f"all {2**count:,} sets of columns"
            if found.errors is None
            else (f"{2 * PAIRS} orders of the columns, in pairs, drawn with seed {self.seed}")
        )
        told = Attribution(SHAPLEY, output, values, score, self.baseline, base, error).with_note(f"by {how}")
        errors = None if found.errors is None else found.errors * (target.std if output.name is None else 1.0)
        cells = cells_of(self.trained.features, row)
        return TableExplanation(told, prediction, names=tuple(self.names), cells=tuple(cells), errors=errors)

    def units(self, example: Float[np.ndarray, " features"], method: str, output: Output) -> Units:
        """The columns of a row."""
        ask = self.values(np.asarray(example, np.float32), output.number)
        return Units(self.shapley(ask).values, ask)

    def randomised(self) -> Self:
        other = copy.copy(self)
        other.trained = self.trained.randomised()
        other.state = nnx.split(other.trained.model)[1]
        return other

    def shapley(self, ask: Values) -> Shapley:
        """Exact where there are few columns."""
        count = len(self.names)
        return exact(ask, count) if count <= EXACT else sampled(ask, count, PAIRS, self.seed)

    def values(self, row: Float[np.ndarray, " features"], number: int) -> Values:
        """The mean output over the background where some columns are those of a row."""
        at_once = max(1, _BLOCK // len(self.background))

        def ask(known: Bool[np.ndarray, "sets columns"]) -> Float[np.ndarray, " sets"]:
            found = []
            for start in range(0, len(known), at_once):
                block = known[start : start + at_once]
                padded = np.concatenate([block, np.ones((at_once - len(block), known.shape[1]), bool)])
                shown = padded[:, self.column]
                found.append(np.asarray(self._mean(self.state, row, self.background, shown, number))[: len(block)])
            return np.concatenate(found).astype(np.float64)

        return ask

    @cached_property
    def _mean(self) -> Callable[..., Array]:
        task, classes = cast(Any, self.trained.task), len(self.trained.classes)

        def mean(state: Tree, row: Array, background: Array, shown: Array, number: Array) -> Array:
            rows = jnp.where(shown[:, None], row, background)
            batch = task.seen({"inputs": rows.reshape(-1, rows.shape[-1])})
            outputs = task.scored_outputs(nnx.merge(self._structure, state), batch)
            return score_of(outputs, number, classes).reshape(rows.shape[:2]).mean(1)

        return jax.jit(mean)


# ------------------------------------------------------------------------------------------------------- Shapley values


@dataclass(frozen=True)
class Shapley:
    """Values of columns; `errors` are standard errors, None where values are exact."""

    values: Float[np.ndarray, " columns"]
    errors: Float[np.ndarray, " columns"] | None = None


def exact(ask: Values, count: int) -> Shapley:
    """Shapley values (Shapley 1953) by all 2^count sets of columns."""
    sets = np.array([*itertools.product((False, True), repeat=count)], bool).reshape(-1, count)
    worth = np.asarray(ask(sets), np.float64)
    size = sets.sum(1)
    weight = np.array([math.factorial(n) * math.factorial(count - n - 1) for n in range(count)]) / math.factorial(count)
    values = np.zeros(count)
    for column in range(count):
        without = np.flatnonzero(~sets[:, column])
        gain = worth[without + 2 ** (count - 1 - column)] - worth[without]  # the set with the column besides
        values[column] = weight[size[without]] @ gain
    return Shapley(values)


def sampled(ask: Values, count: int, pairs: int, seed: int) -> Shapley:
    """Shapley values by orders in which columns become known, each beside its reverse (Mitchell et al. 2022).

    Args:
        ask: the mean answer where some columns are known.
        count: how many columns there are.
        pairs: orders that are drawn.
        seed: by which they are drawn.
    """
    draw, gains = np.random.default_rng(seed), np.zeros((pairs, count))
    for pair in range(pairs):
        order = draw.permutation(count)
        for way in (order, order[::-1]):
            place = np.empty(count, int)
            place[way] = np.arange(count)
            worth = ask(place < np.arange(count + 1)[:, None])  # the first 0, 1, ... columns of the order
            gains[pair, way] += np.diff(worth) / 2
    return Shapley(gains.mean(0), gains.std(0, ddof=1) / math.sqrt(pairs))


# -------------------------------------------------------------------------------------------------- columns and cells


def columns_of(features: Features) -> tuple[list[str], np.ndarray]:
    """Names of a table's columns, and which of them each feature is of, int [features]."""
    if not features.encoder:
        size = math.prod(features.shape)
        return list(features.feature_names) or [f"column {n}" for n in range(size)], np.arange(size)
    encoder = TableEncoder.from_json(features.encoder)
    widths = [len(column.features) for column in encoder.columns]
    return [column.name for column in encoder.columns], np.repeat(np.arange(len(widths)), widths)


def cells_of(features: Features, row: Float[np.ndarray, " features"]) -> list[str]:
    """What a row has in each column, as near as the encoded numbers tell."""
    if not features.encoder:
        return [f"{value:.6g}" for value in row.tolist()]
    cells, start = [], 0
    for column in TableEncoder.from_json(features.encoder).columns:
        part = row[start : start + len(column.features)]
        start += len(column.features)
        if isinstance(column, Numeric):
            cells.append("missing" if column.missing and part[1] else f"{part[0] * column.std + column.mean:.6g}")
        else:
            place = np.flatnonzero(part)
            cells.append(column.features[int(place[0])].partition("=")[2] if len(place) else "(unseen)")
    return cells
