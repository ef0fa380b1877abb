"""The search space of a sweep: axes of choices and intervals, some of them zipped, and seeds and folds to repeat each
point with.

The command line has three parts: settings of the search (`sweep=PRESET`, `sweep.KEY=VALUE`), keys with several values
(the space), and the rest, which all trials share. Free of jax.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bigctl.config import idle_keys, presets, schema, suggestions
from bigctl.config.compose import Composed, compose, require_text
from bigctl.config.compose_many import ManyComposer
from bigctl.config.plugins import load
from bigctl.config.schema import Config, Sweep
from bigctl.errors import ConfigError
from bigctl.sweeps import sweep_config
from bigctl.sweeps.search import sweep_syntax
from bigctl.sweeps.search.sweep_syntax import Axis

Point = Mapping[str, str]
Repeat = tuple[int | None, int | None]
"""A seed and a fold, None where the sweep has none."""
SEED, FOLD, FOLDS = "seed", "data.fold", "data.folds"

MOST_POINTS = 100_000


@dataclass(frozen=True)
class Space:
    """All axes of a sweep.

    Attributes:
        axes: in the order they were given.
        zipped: keys that take their values together, the first with the first and so on; each of equal length.
        seeds, folds: repeats of every point, each seed with each fold; empty where none are given.
    """

    axes: tuple[Axis, ...]
    zipped: tuple[tuple[str, ...], ...] = ()
    seeds: tuple[int, ...] = ()
    folds: tuple[int, ...] = ()

    @property
    def repeats(self) -> list[Repeat]:
        """What each point is trained with: pairs of a seed and a fold; the folds of one seed come one after another."""
        return list(itertools.product(self.seeds or (None,), self.folds or (None,)))

    @property
    def dimensions(self) -> tuple[tuple[Axis, ...], ...]:
        """What varies independently: an axis, or all axes that are zipped, in the place of the first of them."""
        group = {key: keys for keys in self.zipped for key in keys}
        by_key = {axis.key: axis for axis in self.axes}
        keys = dict.fromkeys(group.get(axis.key, (axis.key,)) for axis in self.axes)
        return tuple(tuple(by_key[key] for key in zipped) for zipped in keys)

    @property
    def continuous(self) -> tuple[Axis, ...]:
        """The intervals."""
        return tuple(axis for axis in self.axes if not axis.values)


def choices(dimension: Sequence[Axis]) -> list[dict[str, str]]:
    """All settings of a dimension of choices; both ends of an interval."""
    if (interval := dimension[0].interval) is not None:
        return [{dimension[0].key: dimension[0].text(end)} for end in interval]
    keys = [axis.key for axis in dimension]
    return [dict(zip(keys, row, strict=True)) for row in zip(*(axis.values for axis in dimension), strict=True)]


@dataclass(frozen=True)
class Plan:
    """A sweep, ready to be started.

    Attributes:
        fixed: overrides that all trials share, sorted, in canonical spelling.
        space: what is searched.
        sweep: how.
        base: the composition of `fixed` and the first point with the first seed and fold.
        config_dirs, plugins: where presets and components of the user's own come from.
    """

    fixed: tuple[str, ...]
    space: Space
    sweep: Sweep
    base: Composed
    config_dirs: tuple[Path, ...] = ()
    plugins: tuple[str, ...] = ()


def plan(overrides: Sequence[str], *, config_dirs: Sequence[Path] = (), plugins: Sequence[str] = ()) -> Plan:
    """Read the command line of a sweep.

    A sweep over `seed` or `data.fold` becomes the repeats of each point. What the command line says of a key wins over
    the space of a preset; a single value takes the key out of it.

    Raises:
        ConfigError: for what cannot be read or searched.
    """
    load(plugins)
    for override in overrides:
        require_text(override)
    roots = presets.roots(config_dirs)
    own, rest = sweep_config.split_overrides(overrides)
    sweep, origins = sweep_config.read_sweep_config(own, roots)
    given = {_key(override): _key(override, whole=True) for override in rest}
    wanted = [(text, "command line") for text in given.values()]
    wanted += [(f"{key}={text}", origins["space"]) for key, text in sweep.space.items() if key not in given]
    fixed, found, repeats = _classify(wanted, roots, sweep.seed)
    _reject_parts([*(_key(override) for override in fixed), *(axis.key for axis in found)])
    seeds, folds = repeats.get(SEED, ()), repeats.get(FOLD, ())
    space = _zipped(found, sweep, seeds, folds, where=origins.get("zip", "command line"))
    fixed += _folds(folds, fixed)
    sweep_config.check_sweep_config(
        sweep, space_has_axes=bool(found), intervals=[a.key for a in space.continuous], origins=origins
    )
    fixed += _selection(sweep, fixed, origins)
    if not found and len(space.repeats) < 2:
        hint = "give some key several values, such as optimizer.lr=1e-3,1e-2, or choose a preset: `bigctl ls sweeps`"
        raise ConfigError("there is nothing to sweep over", where="command line", hint=hint)
    count = math.prod(len(choices(dimension)) for dimension in space.dimensions)
    if sweep.sampler == "grid" and count > MOST_POINTS:
        hint = "sweep.sampler=random with sweep.trials=N takes a part of them"
        raise ConfigError(f"the grid has {count:,} points", where="command line", hint=hint)
    first = {key: value for dimension in space.dimensions for key, value in choices(dimension)[0].items()}
    try:
        base = compose(_overrides(fixed, first, space.repeats[0]), config_dirs=config_dirs, plugins=plugins)
    except ConfigError as error:
        if any(repr(key) in error.message for key in sweep.space if key not in given):
            error.where = origins["space"]
        raise
    _reject_unmeasured(base.config)
    sweep = directed(sweep, base.config)
    return Plan(tuple(sorted(fixed)), space, sweep, base, tuple(config_dirs), tuple(plugins))


def points(plan: Plan) -> list[dict[str, str]]:
    """All points of a grid, in order: the first axis changes slowest. One empty point where only repeats differ."""
    assert not plan.space.continuous, "an interval has no end of points"
    rows = itertools.product(*(choices(dimension) for dimension in plan.space.dimensions))
    return [{key: value for part in row for key, value in part.items()} for row in rows]


def overrides_of(plan: Plan, point: Point, repeat: Repeat = (None, None)) -> tuple[str, ...]:
    """All that `bigctl train` is given for one training, sorted."""
    return tuple(sorted(_overrides(plan.fixed, point, repeat)))


# ------------------------------------------------------------------------------------------------------------- checks


def check_points(plan: Plan, points: Iterable[Point] | None = None) -> list[str]:
    """Compose and check every point before anything is started; gives notes on keys without effect.

    Args:
        plan: the sweep.
        points: those to check; None for each choice and both ends of each interval, one after another, with the
            others at their first, in every combination of group options.

    Raises:
        ConfigError: for the first point that cannot be trained, naming axis and value.
    """
    noted = [[*idle_keys.notes(config)] for config in _configs(plan, _probes(plan) if points is None else points)]
    counts = Counter(note for each in noted for note in each)
    return [note if n == len(noted) else f"{note} (in {n:,} of {len(noted):,} points)" for note, n in counts.items()]


class Composable:
    """Tells of single points whether they can be composed, as a sampler proposes them."""

    def __init__(self, plan: Plan):
        self._plan, self._composer = plan, ManyComposer(plan.config_dirs, plan.plugins)
        self._composer.reuse(plan.base)

    def problem(self, point: Point) -> ConfigError | None:
        """Why a point cannot be trained, naming its values; None for one that can."""
        try:
            with _at_place(_label(point), point):
                self._composer.compose(_overrides(self._plan.fixed, point, self._plan.space.repeats[0]))
        except ConfigError as error:
            return error
        return None


def variants(plan: Plan) -> list[Config]:
    """Configurations in which every choice, every fold, and both ends of every interval, occur at least once."""
    return list(_configs(plan, _probes(plan)))


def _configs(plan: Plan, points: Iterable[Point]) -> Iterator[Config]:
    """Those of some points with the first seed and fold, and of the first point with the other folds."""
    composer, first = ManyComposer(plan.config_dirs, plan.plugins), plan.space.repeats[0]
    for number, point in enumerate(points):
        for repeat in [first, *((first[0], fold) for fold in plan.space.folds[1:] if number == 0)]:
            with _at_place(_label(point), point):
                config = composer.compose(_overrides(plan.fixed, point, repeat)).config
                _reject_unmeasured(config)
                yield config


def _reject_unmeasured(config: Config) -> None:
    """Trials that measure their own batch size would differ by the moment. Raises ConfigError."""
    if config.train.measures_batch_size:
        raise ConfigError(
            "auto is measured by each training for itself, so that trials could not be compared",
            where="train.batch_size",
            hint="`bigctl train ... train.batch_size=auto --dry-run` measures it: give the sweep that number",
        )


def _probes(plan: Plan) -> Iterator[dict[str, str]]:
    groups = set(presets.groups(presets.roots(plan.config_dirs)))
    structural = [d for d in plan.space.dimensions if any(axis.key in groups for axis in d)]
    plain = [d for d in plan.space.dimensions if d not in structural]
    first = {key: value for dimension in plain for key, value in choices(dimension)[0].items()}
    for row in itertools.islice(itertools.product(*map(choices, structural)), MOST_POINTS):
        chosen = {key: value for part in row for key, value in part.items()}
        yield {**chosen, **first}
        for dimension in plain:
            yield from ({**chosen, **first, **setting} for setting in choices(dimension)[1:])


@contextlib.contextmanager
def _at_place(place: str, point: Point | None = None) -> Iterator[None]:
    """Give errors their place: this one, or the key and value of the point that they name."""
    try:
        yield
    except ConfigError as error:
        exact = [f"{key}={value}" for key, value in (point or {}).items()]
        named = next((text for text in exact if (error.where or "").endswith(text)), None)
        if named or point:
            error.where = named or place
        elif error.where in (None, "command line") or place in str(error.where):
            error.where = place
        elif place != "command line":
            error.where = f"{place}, {error.where}"
        raise


def _label(point: Point) -> str:
    return " ".join(f"{key}={value}" for key, value in point.items())


# ------------------------------------------------------------------------------------------------------ parts of a plan


def _overrides(fixed: Iterable[str], point: Point, repeat: Repeat) -> list[str]:
    given = [f"{key}={value}" for key, value in zip((SEED, FOLD), repeat, strict=True) if value is not None]
    return [*fixed, *(f"{key}={value}" for key, value in point.items()), *given]


def _key(override: str, *, whole: bool = False) -> str:
    """The key of an override, without the + that Hydra users write; or all of the override without it."""
    text = override.lstrip("+")
    return text if whole else text.partition("=")[0]


def _selection(sweep: Sweep, fixed: Sequence[str], origins: Mapping[str, str]) -> list[str]:
    """The metric that ranks trials also selects their checkpoints: a trial is ranked by the weights it keeps."""
    found = []
    for name in ("metric", "mode"):
        value, key = getattr(sweep, name), f"eval.{name}"
        given = next((override for override in fixed if override.startswith(f"{key}=")), None)
        if value is not None and given not in (None, f"{key}={value}"):
            message = f"sweep.{name}={value} and {given} contradict each other"
            raise ConfigError(message, where=origins.get(name, "command line"), hint=f"leave out {key}")
        if value is not None and given is None:
            found.append(f"{key}={value}")
    return found


def directed(sweep: Sweep, config: Config) -> Sweep:
    """The settings with the direction of each metric that they name. One that only the recipe's task knows is left to
    the first trial, which says it or refuses it.

    Raises:
        ConfigError: if nothing says whether the second metric should be large or small.
    """
    mode, pareto_mode = sweep.mode, sweep.pareto_mode
    if mode is None and (metric := sweep.metric or config.eval.metric) is not None:
        mode = config.eval.mode or config.recipe.direction(metric)
    if pareto_mode is None and sweep.pareto is not None:
        pareto_mode = schema.require_direction(config.recipe, sweep.pareto, "sweep.pareto_mode")
    return dataclasses.replace(sweep, mode=mode, pareto_mode=pareto_mode)


def _classify(
    wanted: Iterable[tuple[str, str]], roots: Sequence[presets.Root], seed: int
) -> tuple[list[str], list[Axis], dict[str, tuple[int, ...]]]:
    """(override, origin) pairs -> fixed overrides, searched axes, and seeds and folds by their keys."""
    fixed: list[str] = []
    found: list[Axis] = []
    repeats: dict[str, tuple[int, ...]] = {}
    for text, where in wanted:
        with _at_place(where):
            axis = sweep_syntax.parse_axis(text, roots, seed=seed)
            if _key(text) == SEED or (_key(text) == FOLD and isinstance(axis, Axis)):
                repeats[_key(text)] = _repeats(axis, text)
            elif isinstance(axis, Axis):
                _reject(axis, roots)
                found.append(axis)
            else:
                suggestions.reject_unknown([suggestions.spelling(axis)], roots)
                fixed.append(axis)
    return fixed, found, repeats


def _reject_parts(keys: Sequence[str]) -> None:
    """Reject a key given together with a part of it: which wins would depend on their order, and that is not kept."""
    for key in keys:
        above = next((other for other in keys if key.startswith(f"{other}.") and other not in schema.GROUPS), None)
        if above:
            raise ConfigError(f"{key} is a part of {above}", where="command line", hint="give one of them")


def _repeats(axis: Axis | str, text: str) -> tuple[int, ...]:
    key, what = _key(text), "fold" if _key(text) == FOLD else "seed"
    values = axis.values if isinstance(axis, Axis) else (axis.partition("=")[2],)
    if not values:
        message, hint = f"{what}s are repeats of each point, they are not searched", f"such as {key}=range(3)"
        raise ConfigError(message, where=text, hint=hint)
    for value in values:
        if not value.isdigit() or int(value) >= 2**32:
            raise ConfigError(f"{value} is no {what}", where=text, hint="whole numbers from 0 to 2^32-1")
    return tuple(dict.fromkeys(map(int, values)))


def _folds(folds: Sequence[int], fixed: Sequence[str]) -> list[str]:
    """How many folds there are, where several are swept and nothing else says it: as many, if these are all."""
    if not folds or any(_key(override) == FOLDS for override in fixed):
        return []
    if sorted(folds) != list(range(len(folds))):
        message = f"of the folds {', '.join(map(str, sorted(folds)))} it is not known how many there are"
        raise ConfigError(message, where="data.fold", hint=f"add data.folds={max(folds) + 1}, or sweep all from 0 on")
    return [f"{FOLDS}={len(folds)}"]


def _reject(axis: Axis, roots: Sequence[presets.Root]) -> None:
    """Reject keys that cannot be searched, and values that are not options of their group."""
    if axis.key == "eval.test":
        message = "trials do not score the test split, the winner does when the search is over"
        raise ConfigError(message, where=axis.key, hint="remove it from the space")
    if axis.key == FOLDS:
        message = "points are compared on the same folds, so their number is not searched"
        raise ConfigError(message, where=axis.key, hint="such as data.folds=10 'data.fold=range(10)'")
    if axis.values:  # of a key its name is looked up once: the values have been read, and composing judges them
        values = axis.values if axis.key in presets.groups(roots) else axis.values[:1]
        suggestions.reject_unknown([suggestions.spelling(f"{axis.key}={value}") for value in values], roots)
    else:
        suggestions.reject_unknown([f"{axis.key}=0"], roots)


def _zipped(
    found: Sequence[Axis], sweep: Sweep, seeds: tuple[int, ...], folds: tuple[int, ...], *, where: str
) -> Space:
    """Axes with each value once, those zipped row by row."""
    by_key = {axis.key: axis for axis in found}
    taken: dict[str, str] = {}
    for keys in sweep.zip:
        text = f"sweep.zip=[[{','.join(keys)}]]"
        for key in keys:
            if key not in by_key:
                guess = suggestions.did_you_mean(key, list(by_key))
                hint = f"several values are given for: {', '.join(by_key) or 'no key'}"
                raise ConfigError(f"{text}: {key} has no values to zip{guess}", where=where, hint=hint)
            if not by_key[key].values:
                raise ConfigError(f"{text}: {key} is an interval", where=where, hint="zip choices with choices")
            if key in taken:
                raise ConfigError(f"{text}: {key} is zipped twice", where=where, hint="name each key once")
            taken[key] = text
        lengths = {key: len(by_key[key].values) for key in keys}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{key} has {count}" for key, count in lengths.items())
            raise ConfigError(f"{text}: {told} values", where=where, hint="give each as many as the others")
        rows = list(dict.fromkeys(zip(*(by_key[key].values for key in keys), strict=True)))
        for key, values in zip(keys, zip(*rows, strict=True), strict=True):
            by_key[key] = dataclasses.replace(by_key[key], values=values)
    for key, axis in by_key.items():
        if key not in taken:
            by_key[key] = dataclasses.replace(axis, values=tuple(dict.fromkeys(axis.values)))
    return Space(tuple(by_key.values()), tuple(tuple(keys) for keys in sweep.zip), seeds, folds)
