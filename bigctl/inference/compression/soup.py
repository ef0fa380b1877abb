"""The mean of several checkpoints of one architecture, which costs no more to use than one of them (Wortsman et al.
2022, arXiv 2203.05482)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigctl.config import schema
from bigctl.errors import RunError
from bigctl.inference.compression import statistics
from bigctl.inference.compression.method import GREEDY, Method
from bigctl.inference.compression.statistics import Statistics
from bigctl.inference.trained import TrainedRun
from bigctl.training.checkpoints.arrays import flatten
from bigctl.training.checkpoints.store import Checkpoints
from bigctl.training.state import Tree

Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Soup:
    """What was averaged.

    Attributes:
        values: the mean weights, by path, float32.
        used: the checkpoints in it, and `left_out` those that made validation worse, as RUN:STEP.
        variables: statistics of batch normalisation for these weights; None for a model without.
    """

    values: Weights
    used: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    variables: Tree | None = None


def stirred(trained: TrainedRun, method: Method) -> Soup:
    """The mean of the checkpoints of a run, or of those of several: of all, or greedily of those that help.

    Raises:
        RunError: if there is one only, one is there twice, or they are of other data or another architecture.
    """
    where = str(trained.run.path)
    gathered = statistics.Statistics(trained) if statistics.kept(trained) else None
    cooked = list(_ingredients(trained, method))
    if len(cooked) < 2:
        hint = "from=[RUN,RUN] averages several runs; checkpoint.keep=5 keeps more checkpoints of one"
        raise RunError("has one checkpoint only", where=where, hint=hint)
    if method.soup == GREEDY:
        return _greedy(trained, cooked, gathered)
    mean = _mean([values for _, values in cooked])
    return Soup(mean, tuple(name for name, _ in cooked), (), _variables(trained, mean, gathered))


def _ingredients(trained: TrainedRun, method: Method) -> Iterator[tuple[str, Weights]]:
    own = _arrays(trained)
    yield f"{trained.run.path.name}:{trained.step}", own
    if not method.sources:
        kept = Checkpoints(trained.run.checkpoints)
        steps = [step for step in kept.steps() if step != trained.step]
        kept.close()
        for step in steps:
            other = TrainedRun.load(str(trained.run.path), step=step)
            yield f"{trained.run.path.name}:{step}", _arrays(other)
    fingerprint, shapes = trained.run.record()["data"]["fingerprint"], {name: own[name].shape for name in own}
    seen = {(trained.run.path.resolve(), trained.step)}
    for source in method.sources:
        other = TrainedRun.load(source)
        if (place := (other.run.path.resolve(), other.step)) in seen:
            what, hint = f"step {other.step} of {other.run.path} is in it already", "leave it out"
            raise RunError(what, where=f"from={source}", hint=hint)
        seen.add(place)
        _require_alike(trained, other, source)
        values = _arrays(other)
        if {name: values[name].shape for name in values} != shapes:
            raise RunError(
                "has weights of other shapes", where=f"from={source}", hint=f"they must be those of {trained.run.path}"
            )
        if other.run.record()["data"]["fingerprint"] != fingerprint:
            raise RunError(
                "was trained on other data", where=f"from={source}", hint=f"that of {trained.run.path} is needed"
            )
        ours, theirs = statistics.others(trained), statistics.others(other)
        if unlike := [name for name, each in ours.items() if not np.array_equal(each, theirs[name])]:
            what = f"keeps another {unlike[0]}, for which its weights are"
            raise RunError(what, where=f"from={source}", hint=f"average runs that begin as {trained.run.path} does")
        yield f"{other.run.path.name}:{other.step}", values


def _require_alike(trained: TrainedRun, other: TrainedRun, source: str) -> None:
    """Raises RunError for a model that computes something else of its weights, of whatever shapes these are."""
    ours, theirs = trained.config.model, other.config.model
    if ours.kind != theirs.kind:
        hint = "average runs of one architecture"
        raise RunError(f"is of model={theirs.kind}, not of model={ours.kind}", where=f"from={source}", hint=hint)
    one, two = _structure(ours), _structure(theirs)
    if unlike := next((name for name in one if one[name] != two[name]), None):
        hint = f"it is {one[unlike]} in {trained.run.path}: average runs of one architecture"
        raise RunError(f"has model.{unlike}={two[unlike]}", where=f"from={source}", hint=hint)


def _structure(model: schema.Model) -> dict[str, str]:
    """The keys by which a model computes something else of the same weights."""
    whole = model.with_defaults()
    found = [each.name for each in dataclasses.fields(whole) if each.metadata.get("drift") == schema.STRUCTURAL]
    found += [name for name in ("activation", "output_factor") if hasattr(whole, name) and name not in found]
    return {name: str(getattr(whole, name)) for name in found if name != "init_from"}


def _tree(trained: TrainedRun, values: Weights) -> Tree:
    return jax.tree.unflatten(jax.tree.structure(trained.params), list(values.values()))


def _variables(trained: TrainedRun, values: Weights, gathered: Statistics | None) -> Tree | None:
    return None if gathered is None else gathered.of(_tree(trained, values))


def _greedy(trained: TrainedRun, cooked: list[tuple[str, Weights]], gathered: Statistics | None) -> Soup:
    """The best first; another one stays in where the mean with it is no worse on the validation split."""
    chosen = trained.run.record().get("selection") or {"metric": "val/loss", "mode": "min"}
    sign = 1 if chosen["mode"] == "max" else -1

    def score(values: Weights) -> float:
        other = trained.with_params(_tree(trained, values), _variables(trained, values, gathered))
        return sign * float(other.evaluate("validation")[chosen["metric"]])

    ranked = sorted(((score(values), name, values) for name, values in cooked), key=lambda each: -each[0])
    best, first, values = ranked[0]
    pot, used, left = [values], [first], []
    for _, name, values in ranked[1:]:
        found = score(_mean([*pot, values]))
        if found >= best:
            best, pot, used = found, [*pot, values], [*used, name]
        else:
            left.append(name)
    mean = _mean(pot)
    return Soup(mean, tuple(used), tuple(left), _variables(trained, mean, gathered))


def _mean(pot: list[Weights]) -> Weights:
    found: Weights = {}
    for name, first in pot[0].items():
        whole = np.mean([values[name] for values in pot], axis=0, dtype=np.float64)
        found[name] = whole.astype(first.dtype) if np.issubdtype(first.dtype, np.floating) else first
    return found


def _arrays(trained: TrainedRun) -> Weights:
    leaves: dict[str, Any] = flatten(trained.params)
    floating = {name: jnp.issubdtype(leaf.dtype, jnp.floating) for name, leaf in leaves.items()}
    return {name: np.asarray(leaf, np.float32 if floating[name] else None) for name, leaf in leaves.items()}
