"""The mean of several checkpoints of one architecture, which costs no more to use than one of them (Wortsman et al.
2022, arXiv 2203.05482)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
        RunError: if there is one only, or they are of other data or shapes.
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
    for source in method.sources:
        other = TrainedRun.load(source)
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
