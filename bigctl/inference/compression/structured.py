"""Whole parts of a network taken out of it: what is left is a smaller network of the same kind.

Layers go first: all but those that are named, or one after the other, each time the one without which the loss on
calibration rows is least (Song et al. 2024, arXiv 2402.09025). Then heads, columns and channels, in each layer those of
the least importance: the mean over rows of the absolute gradient of the loss with respect to a gate of 1 on each of
them (Michel et al. 2019, arXiv 1905.10650), or the size of their weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigctl.config.schema import Config
from bigctl.data.dataset import Dataset
from bigctl.errors import RunError
from bigctl.inference.compression import calibration, parts
from bigctl.inference.compression.method import SHARES, TAYLOR, Method
from bigctl.inference.compression.parts import Units
from bigctl.inference.compression.sensitivity import Sensitivity, of_units
from bigctl.inference.compression.sized import Sized
from bigctl.inference.trained import TrainedRun
from bigctl.training.state import Weights

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Shrunk:
    """What is left of a network.

    Attributes:
        config: of the run, with the smaller model.
        values: its weights, by path.
        removed: numbers of what went, by the path of its place; of layers by "layers".
        changed: keys of the model with the values that they had and have.
        rows: of the training split, which showed what can be done without; 0 where weights alone were looked at.
        without: the mean loss on these rows without each layer, where layers went, counted as they were.
        sensitivity: the loss where parts of one layer alone are gone; None where whole layers went and no more.
        bytes_before, bytes_after: of all weights.
    """

    config: Config
    values: Arrays
    removed: dict[str, list[int]]
    changed: dict[str, tuple[Any, Any]]
    rows: int
    without: list[float]
    sensitivity: Sensitivity | None
    bytes_before: int
    bytes_after: int

    def applied(self, trained: TrainedRun) -> TrainedRun:
        """A run with this network in place of its own."""
        sized = Sized(self.config, trained.features)
        weights = sized.weights(self.values)
        return type(trained)(trained.run, self.config, trained.features, sized.programs, weights, trained.step)


def shrunk(trained: TrainedRun, method: Method, dataset: Dataset, *, sensitive: bool = True) -> Shrunk:
    """A run's network without the parts that a method takes out; `sensitive` asks what each layer does to the loss.

    Raises:
        RunError: if the model has no such parts, or nothing would go, or all.
    """
    where, config = str(trained.run.path), trained.config
    sized = Sized.of(trained)
    values = sized.arrays(Weights(trained.params, trained.variables))
    before, rows = _bytes(values), []
    if method.layers or (method.by == TAYLOR and method.shares):
        rows = list(calibration.batches(dataset, method.calibration))
    removed: dict[str, list[int]] = {}
    without: list[float] = []
    sensitivity = None
    if method.layers:
        sized, values, removed["layers"], without = _without_layers(sized, values, method.layers, rows, where)
    elif method.keep:
        sized, values, removed["layers"] = _with_layers(sized, values, method.keep, where)
    model = sized.config.model
    units = [each for kind in method.shares for each in parts.of_model(model, values, kind, where)]
    if units:
        taylor = method.by == TAYLOR
        scores = importance(sized, values, units, rows) if taylor else [each.size(values) for each in units]
        left, whole_values = dict[str, int](), values
        for each, score in zip(units, scores, strict=True):
            gone = int(getattr(method, each.kind) * each.count + 1e-9)
            order = np.argsort(score, kind="stable")
            removed[each.place] = sorted(order[:gone].tolist())
            left[each.place] = each.count - gone
            values = each.keep(values, np.sort(order[gone:]))
        _require_some(units, removed, method, where)
        sensitivity = of_units(sized, whole_values, units, removed, dataset) if sensitive else None
        sized = sized.with_model(parts.resized(sized.config.model, units, left))
    model, old = sized.config.model, config.model
    pairs = {each.name: (getattr(old, each.name), getattr(model, each.name)) for each in dataclasses.fields(old)}
    changed = {name: (one, other) for name, (one, other) in pairs.items() if one != other}
    whole = dataclasses.replace(config, model=model)
    seen = calibration.count(rows)
    return Shrunk(whole, values, removed, changed, seen, without, sensitivity, before, _bytes(values))


def importance(
    sized: Sized, values: Arrays, units: Sequence[Units], rows: Sequence[Mapping[str, np.ndarray]]
) -> list[np.ndarray]:
    """The mean over rows of the absolute gradient of a row's loss with respect to the gate of each unit, float64
    [count]. One row after the other: no more memory is needed than for a training step of one row."""

    def of_row(gates: list[jax.Array], values: Arrays, row: Mapping[str, Any]) -> jax.Array:
        gated: dict[str, Any] = dict(values)
        for each, gate in zip(units, gates, strict=True):
            gated = each.gated(gated, gate)
        total, weight = sized.loss(gated, {name: column[None] for name, column in row.items()})
        mean: jax.Array = total / jnp.maximum(weight, 1e-9)
        return mean

    @jax.jit
    def of_batch(values: Arrays, batch: Mapping[str, Any]) -> list[jax.Array]:
        ones = [jnp.ones(each.count) for each in units]
        slopes = jax.lax.map(lambda row: jax.grad(of_row)(ones, values, row), dict(batch))
        return [jnp.abs(each).sum(0) for each in slopes]

    totals, count = [np.zeros(each.count) for each in units], 0
    for batch in rows:
        found = of_batch(values, dict(batch))
        totals = [total + np.asarray(each, np.float64) for total, each in zip(totals, found, strict=True)]
        count += len(next(iter(batch.values())))
    return [total / count for total in totals]


def _without_layers(
    sized: Sized, values: Arrays, count: int, rows: Sequence[Mapping[str, np.ndarray]], where: str
) -> tuple[Sized, Arrays, list[int], list[float]]:
    there = parts.layer_count(sized.config.model, where)
    if count >= there:
        raise RunError(f"layers={count} leaves none of {there}", where=where, hint=f"layers={there - 1} or less")
    numbers, first = list(range(there)), list[float]()
    for _ in range(count):
        smaller = _of_layers(sized, len(numbers) - 1)
        losses = [smaller.mean_loss(parts.without_layer(values, i), rows) for i in range(len(numbers))]
        first = first or losses
        worst = int(np.nanargmin(losses))
        values, sized = parts.without_layer(values, worst), smaller
        numbers.pop(worst)
    return sized, values, [number for number in range(there) if number not in numbers], first


def _with_layers(sized: Sized, values: Arrays, kept: Sequence[int], where: str) -> tuple[Sized, Arrays, list[int]]:
    there = parts.layer_count(sized.config.model, where)
    if not 0 <= kept[0] <= kept[-1] < there:
        strange = kept[0] if kept[0] < 0 else kept[-1]
        raise RunError(f"there is no layer {strange}", where=f"{where}: keep", hint=f"they are 0 to {there - 1}")
    gone = [number for number in range(there) if number not in kept]
    if not gone:
        raise RunError(f"keep= names all of the {there} layers", where=where, hint="name fewer")
    for number in reversed(gone):
        values = parts.without_layer(values, number)
    return _of_layers(sized, len(kept)), values, gone


def _of_layers(sized: Sized, count: int) -> Sized:
    fewer: dict[str, Any] = {"layers": count}
    return sized.with_model(dataclasses.replace(sized.config.model, **fewer))


def _require_some(units: Sequence[Units], removed: Mapping[str, list[int]], method: Method, where: str) -> None:
    for kind in SHARES:
        found = [each for each in units if each.kind == kind]
        if found and not any(removed[each.place] for each in found):
            most = max(each.count for each in found)
            what = f"{kind}={getattr(method, kind):g} of {most} {kind} a layer is none"
            raise RunError(what, where=where, hint=f"{kind}={1 / most:.2g} is one of them")


def _bytes(values: Mapping[str, np.ndarray]) -> int:
    return sum(each.nbytes for each in values.values())
