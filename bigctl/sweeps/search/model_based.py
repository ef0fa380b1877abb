"""Samplers that learn from what is done, by Optuna and by the CMA-ES package it uses; both come with an extra."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from itertools import islice
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from bigctl.errors import ConfigError
from bigctl.sweeps.search import space
from bigctl.sweeps.search.samplers import Observation, Random, derived, from_unit, key_of, to_unit, within
from bigctl.sweeps.search.space import Plan
from bigctl.sweeps.search.sweep_syntax import Axis
from bigctl.sweeps.trials import COMPLETE, FAILED, PRUNED, RUNNING, STOPPED, WAITING, Point

if TYPE_CHECKING:
    import numpy as np


class OptunaTrial(Protocol):
    """The part of Optuna's `FrozenTrial` that is used here."""

    state: Enum


class OptunaStudy(Protocol):
    """The part of Optuna's `Study` that is used here."""

    def get_trials(self, deepcopy: bool) -> list[OptunaTrial]: ...


RETRIES = 20
"""How often a sampler that proposes a known point is asked again before a random point is taken."""


class Learner:
    """A sampler that learns from results and never proposes a point twice: it is asked again, then chance decides.

    Points outside of the space, from before the sweep was changed, are ignored.
    """

    def __init__(self, plan: Plan):
        self.plan, self.dimensions = plan, plan.space.dimensions
        self.chance = Random(plan)

    def ask(self, number: int, history: Sequence[Observation]) -> Point | None:
        seen = [observation.point for observation in history]
        known = {key_of(point) for point in seen}
        inside = [observation for observation in history if within(self.dimensions, observation.point)]
        if len({key_of(observation.point) for observation in inside}) < self.chance.size:
            for point in islice(self.proposals(number, inside), RETRIES):
                if key_of(point) not in known:
                    return point
        return self.chance.draw(number, seen)

    def proposals(self, number: int, history: Sequence[Observation]) -> Iterator[Point]:
        """Candidates, the best first; the history holds points of this space only."""
        raise NotImplementedError


class Optuna(Learner):
    """TPE (Bergstra et al. 2011), a Gaussian process, or NSGA-II (Deb et al. 2002), as Optuna has them.

    For each proposal the history is added to a new study in memory, about 50 microseconds a point, so that no state
    kept by Optuna can differ between a study and its second run. Running points are added as such (TPE takes them for
    bad ones, the constant liar), pruned ones with their curve, failed ones as failed.
    """

    def __init__(self, plan: Plan, modes: Sequence[str]):
        super().__init__(plan)
        self.modes = list(modes)
        self.optuna = _package("optuna", "pip install 'bigctl[optuna]'")
        if plan.sweep.sampler == "gp":
            _package("torch", "sweep.sampler=gp needs `pip install torch`; the build for CPUs will do")
        self.optuna.logging.set_verbosity(self.optuna.logging.ERROR)
        self.distributions = {_name(dimension): self._distribution(dimension) for dimension in self.dimensions}

    def proposals(self, number: int, history: Sequence[Observation]) -> Iterator[Point]:
        told = [self._told(observation) for observation in history]
        for attempt in range(RETRIES):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what Optuna calls experimental
                study = self.optuna.create_study(
                    sampler=self._sampler(derived(self.plan.sweep.seed, number, attempt)),
                    directions=[{"max": "maximize", "min": "minimize"}[mode] for mode in self.modes],
                )
                study.add_trials(told)
                params = study.ask(self.distributions).params
            yield {key: value for dim in self.dimensions for key, value in self._point(dim, params).items()}

    def _sampler(self, seed: int) -> Any:
        samplers, kind = self.optuna.samplers, self.plan.sweep.sampler
        if kind == "tpe":
            return samplers.TPESampler(seed=seed, n_startup_trials=self._startup(), constant_liar=True)
        if kind == "gp":
            return samplers.GPSampler(seed=seed, n_startup_trials=self._startup())
        return _generations(samplers)(seed=seed, population_size=population(self.plan.sweep.trials or 0))

    def _startup(self) -> int:
        """Random points before anything is learnt: Optuna's ten, fewer of a short study."""
        return max(2, min(10, (self.plan.sweep.trials or 0) // 3))

    def _told(self, observation: Observation) -> Any:
        states = self.optuna.trial.TrialState
        scores = [observation.score, observation.second][: len(self.modes)]
        values = [float(score) for score in scores if score is not None and math.isfinite(score)]
        status = observation.status
        if status == COMPLETE and len(values) < len(self.modes):
            status = FAILED  # complete without a value to compare
        ends = {COMPLETE: states.COMPLETE, PRUNED: states.PRUNED, FAILED: states.FAIL}
        running = dict.fromkeys((WAITING, RUNNING, STOPPED), states.RUNNING)
        curve = {int(step): float(value) for step, value in observation.curve.items() if math.isfinite(value)}
        return self.optuna.trial.create_trial(
            state={**ends, **running}[status],
            values=values if status == COMPLETE else None,
            params={_name(dim): self._param(dim, observation.point) for dim in self.dimensions},
            distributions=self.distributions,
            intermediate_values=curve if len(self.modes) == 1 else None,
        )

    def _distribution(self, dimension: tuple[Axis, ...]) -> Any:
        kinds, axis = self.optuna.distributions, dimension[0]
        if axis.interval is None:
            return kinds.CategoricalDistribution(list(_rows(dimension)))
        if axis.integer:
            low, high = (int(end) for end in axis.interval)
            return kinds.IntDistribution(low, high, log=axis.log)
        return kinds.FloatDistribution(*axis.interval, log=axis.log)

    def _param(self, dimension: tuple[Axis, ...], point: Point) -> str | int | float:
        axis = dimension[0]
        if axis.interval is None:
            return _row([point[part.key] for part in dimension])
        return int(point[axis.key]) if axis.integer else float(point[axis.key])

    def _point(self, dimension: tuple[Axis, ...], params: Mapping[str, Any]) -> dict[str, str]:
        axis, value = dimension[0], params[_name(dimension)]
        return _rows(dimension)[value] if axis.interval is None else {axis.key: axis.text(value)}


def population(trials: int) -> int:
    """Points of one generation of NSGA-II: Optuna's 50, fewer of a study that would end before it has learnt."""
    return max(4, min(50, trials // 10))


def _generations(samplers: ModuleType) -> Any:
    """NSGA-II whose generations are the complete points in order, instead of what it stored in its own trials."""

    class Generations(samplers.NSGAIISampler):  # type: ignore[misc, name-defined]
        def __init__(self, seed: int, population_size: int):
            super().__init__(seed=seed, population_size=population_size)
            # By default, mutations are drawn from the same random numbers that decided what mutates.
            self._mutations = samplers.RandomSampler(seed=derived(seed, 1))

        def sample_independent(self, *arguments: object) -> object:
            return self._mutations.sample_independent(*arguments)

        def get_trial_generation(self, study: OptunaStudy, trial: OptunaTrial) -> int:
            return len(_complete(study)) // int(self.population_size)

        def get_population(self, study: OptunaStudy, generation: int) -> list[OptunaTrial]:
            size = int(self.population_size)
            return _complete(study)[generation * size : (generation + 1) * size]

    def _complete(study: OptunaStudy) -> list[OptunaTrial]:
        return [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]

    return Generations


class CmaEs(Learner):
    """CMA-ES (Hansen & Ostermeier 2001) on the unit cube, from its middle; intervals only.

    Uses the package that Optuna's own sampler wraps: that one keeps its state in the trials that it proposed, while
    here the generations are the finished points in order. Pruned points count with the last value of their curve.
    After a search has converged, another begins at a random place.
    """

    def __init__(self, plan: Plan, mode: str):
        super().__init__(plan)
        named = next((axis.key for axis in plan.space.axes if axis.values), None)
        if named is not None:
            hint = f"sweep.sampler=tpe, or an interval, or one value of {named}"
            raise ConfigError(f"sweep.sampler=cmaes searches intervals only, {named} has choices", hint=hint)
        self.sign = -1.0 if mode == "max" else 1.0
        self.cmaes = _package("cmaes", "pip install 'bigctl[optuna]'")

    def proposals(self, number: int, history: Sequence[Observation]) -> Iterator[Point]:
        import numpy as np

        done = [(self._unit(seen.point), value) for seen in history if (value := self._value(seen)) is not None]
        for attempt in range(RETRIES):
            seed = derived(self.plan.sweep.seed, number, attempt)
            search = self._start(np.full(len(self.dimensions), 0.5), seed)
            size = search.population_size
            for first in range(0, len(done) // size * size, size):
                search.tell([(np.array(unit), value) for unit, value in done[first : first + size]])
                if search.should_stop():
                    rng = np.random.default_rng(derived(self.plan.sweep.seed, first))
                    search = self._start(rng.random(len(self.dimensions)), seed)
            yield {axis.key: from_unit(axis, u) for (axis,), u in zip(self.dimensions, search.ask(), strict=True)}

    def _start(self, mean: np.ndarray, seed: int) -> Any:
        import numpy as np

        bounds = np.array([[0.0, 1.0]] * len(mean))
        return self.cmaes.CMA(mean=mean, sigma=1 / 6, bounds=bounds, seed=seed, n_max_resampling=10 * len(mean))

    def _unit(self, point: Point) -> list[float]:
        return [to_unit(axis, float(point[axis.key])) for (axis,) in self.dimensions]

    def _value(self, seen: Observation) -> float | None:
        """The value to minimise; None where it is unknown."""
        value = seen.score if seen.status == COMPLETE else None
        if seen.status == PRUNED and seen.curve:
            value = seen.curve[max(seen.curve)]
        return self.sign * value if value is not None and math.isfinite(value) else None


def _name(dimension: tuple[Axis, ...]) -> str:
    return " ".join(axis.key for axis in dimension)


def _row(values: Sequence[str]) -> str:
    return "\n".join(values)


def _rows(dimension: tuple[Axis, ...]) -> dict[str, dict[str, str]]:
    return {_row(list(setting.values())): setting for setting in space.choices(dimension)}


def _package(name: str, hint: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"the package {name} is not installed", where="sweep.sampler", hint=hint) from error
