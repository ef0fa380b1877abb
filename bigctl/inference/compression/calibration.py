"""What the layers of a model are given: norms of the inputs of every kernel, from rows of the training split.

The model is traced and its equations are evaluated one by one; where a product takes a kernel as it is, the other
side is what the layer is given. Products inside of loops (the recurrence of an LSTM) are not seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var

from bigctl.data.dataset import Dataset
from bigctl.inference.exporters.network import Arrays, Network, on_cpu

_SEEN_THROUGH = ("convert_element_type", "copy", "name", "stop_gradient")
_BATCH = 32
_Dimensions = tuple[tuple[Sequence[int], Sequence[int]], tuple[Sequence[int], Sequence[int]]]
"""Of a product: those that are summed over, and those of the batch, of either side."""


def norms(network: Network, rows: Iterable[Arrays]) -> dict[str, np.ndarray]:
    """Root of the sum of squares of each input of each kernel, float64 [inputs], by path.

    Args:
        network: the model.
        rows: batches of what it is given, see `batches`.
    """
    found: dict[str, np.ndarray] = {}
    for batch in rows:
        _add(network, {name: batch[name] for name in network.inputs}, found)
    return {name: np.sqrt(values) for name, values in found.items()}


def batches(dataset: Dataset, rows: int, split: str = "train") -> Iterator[Arrays]:
    """About so many rows of a split, in evenly spaced batches without padding."""
    columns, layout = dataset.splits[split], dataset.batches
    size = min(_BATCH, rows)
    planned = list(layout.evaluation_plan(columns, batch_size=size, shards=1).batches())
    for indices, mask, length in planned[:: max(1, len(planned) * size // rows)]:
        batch = layout.gather(columns, indices, length)
        yield {name: np.asarray(values)[mask > 0] for name, values in batch.items()}


def count(rows: Iterable[Arrays]) -> int:
    """Rows of some batches."""
    return sum(len(next(iter(batch.values()))) for batch in rows)


def told(rows: int, dataset: Dataset) -> str:
    """So many of the training split, for people."""
    return f"{rows:,} {'windows' if dataset.features.kind == 'stream' else 'rows'} of the training split"


def _add(network: Network, inputs: Arrays, sums: dict[str, np.ndarray]) -> None:
    with on_cpu():
        traced = jax.jit(network.function).trace(dict(network.weights), inputs).jaxpr
        names = sorted(network.weights)
        given = [network.weights[name] for name in names] + [inputs[name] for name in sorted(inputs)]
        origins: list[str | None] = [*names, *(None for _ in inputs)]
        _Watch(sums).run(traced.jaxpr, traced.consts, given, origins)


class _Watch:
    """Evaluates a jaxpr and knows which values are weights."""

    def __init__(self, sums: dict[str, np.ndarray]):
        self.sums = sums

    def run(
        self, jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Any], origins: Sequence[str | None]
    ) -> tuple[list[Any], list[str | None]]:
        held: dict[Var, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))
        known: dict[Var, str | None] = dict(zip(jaxpr.invars, origins, strict=True))

        def read(atom: Literal | Var) -> object:
            return atom.val if isinstance(atom, Literal) else held[atom]

        def origin(atom: Literal | Var) -> str | None:
            return None if isinstance(atom, Literal) else known.get(atom)

        for eqn in jaxpr.eqns:
            values: list[Any] = [read(atom) for atom in eqn.invars]
            sources = [origin(atom) for atom in eqn.invars]
            inner = next(
                (eqn.params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in eqn.params), None
            )
            name = eqn.primitive.name
            if inner is not None and name not in ("scan", "while", "cond"):
                closed = inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())
                results, made = self.run(closed.jaxpr, closed.consts, values, sources)
            else:
                if name == "dot_general":
                    self._product(eqn.params["dimension_numbers"], values[0], sources[1])
                result = eqn.primitive.bind(*values, **eqn.params)
                results = list(result) if eqn.primitive.multiple_results else [result]
                made = sources[:1] if name in _SEEN_THROUGH else [None] * len(results)
            held.update(zip(eqn.outvars, results, strict=True))
            known.update(zip(eqn.outvars, made, strict=True))
        return [read(atom) for atom in jaxpr.outvars], [origin(atom) for atom in jaxpr.outvars]

    def _product(self, dimensions: _Dimensions, left: jax.Array, kernel: str | None) -> None:
        (left_sum, right_sum), (batched, _) = dimensions
        if kernel is None or batched or tuple(right_sum) != (0,) or len(left_sum) != 1:
            return
        values = np.moveaxis(np.asarray(left, np.float64), left_sum[0], -1)
        squares = np.square(values.reshape(-1, values.shape[-1])).sum(0)
        self.sums[kernel] = self.sums.get(kernel, 0) + squares
