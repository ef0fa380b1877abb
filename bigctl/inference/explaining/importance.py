"""Which columns of a table a model relies on: how much worse it is where one is shuffled (Breiman 2001)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from bigctl.data.target import CLASS, CLASSES
from bigctl.errors import ConfigError
from bigctl.inference.explaining.explain import require_split
from bigctl.inference.explaining.tables import columns_of
from bigctl.inference.trained import TrainedRun
from bigctl.training.state import Tree
from bigctl.training.task import Record

PERMUTATION = "permutation"
SHUFFLES, DRAWS, MOST = 10, 1000, 5000
"""Times that each column is shuffled, bootstrap draws, and examples at most."""


@dataclass(frozen=True)
class Importance:
    """How much the loss of each column grows where it is shuffled.

    Attributes:
        split: of the data.
        examples: how many of its first ones were looked at.
        names: of the columns.
        values: mean growth of the loss.
        low, high: 95% intervals, by bootstrap over the examples.
        loss: where nothing is shuffled.
        what: the loss in words.
        seed: by which was shuffled.
    """

    split: str
    examples: int
    names: tuple[str, ...]
    values: Float[np.ndarray, " columns"]
    low: Float[np.ndarray, " columns"]
    high: Float[np.ndarray, " columns"]
    loss: float
    what: str
    seed: int

    def to_json(self) -> Record:
        rows = zip(self.names, self.values.tolist(), self.low.tolist(), self.high.tolist(), strict=True)
        found = [{"column": name, "importance": value, "interval": [a, b]} for name, value, a, b in rows]
        about = {"method": PERMUTATION, "split": self.split, "examples": self.examples, "loss": self.loss}
        return {**about, "what": self.what, "shuffles": SHUFFLES, "seed": self.seed, "columns": found}


def permutation_importance(trained: TrainedRun, split: str = "validation", seed: int = 0) -> Importance:
    """The importance of each column on a split of the run's own data.

    Raises:
        ConfigError: for a run that is not of a table, or a split that there is not.
        RunError: if the data has changed since.
    """
    if trained.features.kind != "table":
        hint = "explain examples instead: --split test --count 5"
        raise ConfigError(f"the run is on {trained.features.kind}s, and no table", where="--method", hint=hint)
    dataset = trained.data()
    require_split(dataset, split)
    count = min(MOST, dataset.size(split))
    inputs = np.asarray(dataset.splits[split]["inputs"][:count], np.float32)
    labels = np.asarray(dataset.splits[split]["label"][:count])
    losses = _losses(trained)
    names, column = columns_of(trained.features)
    plain, draw = losses(inputs, labels), np.random.default_rng(seed)
    growth = np.zeros((len(names), count))
    for number in range(len(names)):
        own = np.flatnonzero(column == number)
        for _ in range(SHUFFLES):
            shuffled = inputs.copy()
            shuffled[:, own] = inputs[draw.permutation(count)][:, own]
            growth[number] += (losses(shuffled, labels) - plain) / SHUFFLES
    again = draw.multinomial(count, np.full(count, 1 / count), DRAWS) / count
    low, high = np.quantile(again @ growth.T, [0.025, 0.975], axis=0)
    what = "cross-entropy" if trained.classes else "absolute error, in the unit of the data"
    return Importance(split, count, tuple(names), growth.mean(1), low, high, float(plain.mean()), what, seed)


def _losses(trained: TrainedRun) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The loss of each of some examples."""
    structure, state = nnx.split(trained.model)
    task, target = cast(Any, trained.task), trained.features.target

    @jax.jit
    def compiled(state: Tree, inputs: Array, labels: Array) -> Array:
        outputs = task.scored_outputs(nnx.merge(structure, state), task.seen({"inputs": inputs})).astype(jnp.float32)
        if target.kind == CLASSES:
            signs = 2.0 * labels - 1.0
            return jax.nn.softplus(-signs * outputs).sum(-1)
        if target.kind == CLASS:
            logits = outputs if outputs.shape[-1] > 1 else jnp.concatenate([jnp.zeros_like(outputs), outputs], -1)
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None].astype(jnp.int32), 1)[:, 0]
        return jnp.abs(outputs[:, 0] * target.std + target.mean - labels)

    return lambda inputs, labels: np.asarray(compiled(state, inputs, labels), np.float64)
