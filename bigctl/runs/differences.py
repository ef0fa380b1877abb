"""Two or more runs side by side: configuration, surroundings, metrics and times, in whatever state each is.

Free of jax.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigctl.config import saved
from bigctl.errors import ConfigError, RunError
from bigctl.files import sha256
from bigctl.runs import directory, listing, provenance
from bigctl.runs.comparison import TIMED, Comparison, compare_curve
from bigctl.runs.directory import RunDirectory
from bigctl.runs.exports import Export
from bigctl.runs.metrics_file import read_counted
from bigctl.runs.redaction import without_folders
from bigctl.runs.whole_config import defaults, whole

ABSENT = "-"
"""What stands for a value that a run does not have."""
NOT_FINITE = "not finite"
EXPORT = "export"
UNREADABLE = listing.UNREADABLE
"""What stands for the values of a run that cannot be read; a note says why."""
_TIMES = ("wall", "train", "compile", "data_wait", "evaluate", "checkpoint")
_RATES = ("examples_per_s", "tokens_per_s", "mfu")
_SPLITS = ("train/", "val/", "test/")


@dataclass(frozen=True)
class Side:
    """One run as it is compared.

    Attributes:
        name: what it is called in tables.
        status: of the run.
        step: the last one known.
        final: whether `metrics` are those of its summary; else they are the last ones logged.
        evaluated: the step of the last evaluation, of a run that is not complete.
        config: dotted key -> value; keys that it is too old to know have the value that is their default now.
        decided: those whose value follows from others, as the horizon of a schedule from the length of training.
        surroundings: what it was made with, by name.
        metrics: name -> number, or None where that is not finite.
        times: seconds by phase, and rates.
        curves: name -> step -> value, what measures time left out.
        damaged: lines of metrics.jsonl that cannot be read.
        notes: what could not be read else.
        derived_from: the run that a compressed one was made from, and how.
    """

    path: str
    name: str
    status: str
    step: int | None
    final: bool
    evaluated: int | None
    config: Mapping[str, Any]
    decided: frozenset[str]
    surroundings: Mapping[str, Any]
    metrics: Mapping[str, float | None]
    times: Mapping[str, float]
    curves: Mapping[str, Mapping[int, Any]]
    damaged: int
    notes: Sequence[str]
    derived_from: str | None = None
    model: Mapping[str, str] | None = None
    """Its format, what its weights are stored as, and bytes of the model; of a run where it is known."""


def sides(runs: Sequence[RunDirectory | Export]) -> list[Side]:
    """All runs and exports, each by a name of its own. One that cannot be read is there without values, and a note says
    why.

    Raises:
        ConfigError: if there are fewer than two, or one is there twice.
        RunError: if fewer than two can be read.
    """
    if len(runs) < 2:
        raise ConfigError("takes two runs or more", where="bigctl compare", hint="`bigctl runs` lists the runs")
    paths = [run.shown if isinstance(run, Export) else run.path for run in runs]
    resolved = [path.resolve() for path in paths]
    twice = next((path for path, found in zip(paths, resolved, strict=True) if resolved.count(found) > 1), None)
    if twice is not None:
        raise ConfigError("is named twice", where=str(twice), hint="give runs to compare it with")
    names = [path.name or str(path) for path in paths]
    names = [str(path) if names.count(name) > 1 else name for path, name in zip(paths, names, strict=True)]
    found, errors = [], []
    for run, path, name in zip(runs, paths, names, strict=True):
        try:
            found.append(_of_export(run, name) if isinstance(run, Export) else _side(run, name))
        except RunError as error:
            errors.append(error)
            found.append(_unreadable(path, name, error))
    if errors and len(found) - len(errors) < 2:
        raise errors[0]
    return found


def _unreadable(path: Path, name: str, error: RunError) -> Side:
    return Side(
        path=str(path), name=name, status=UNREADABLE, step=None, final=False, evaluated=None, config={},
        decided=frozenset(), surroundings={}, metrics={}, times={}, curves={}, damaged=0, notes=[str(error)],
    )  # fmt: skip


def _side(run: RunDirectory, name: str) -> Side:
    record, status, notes = run.record(), run.status(), []
    try:
        summary = run.summary() if status == directory.COMPLETE else {}
    except RunError as error:
        summary = {}
        notes.append(str(error))
    try:
        lines, damaged = read_counted(run.metrics)
        config = _config(run, notes)
        curves = _curves(lines)
        evaluated = [line["step"] for line in lines if any(name.startswith("val/") for name in line)]
        metrics = {n: c[max(c)] for n, c in curves.items() if n.startswith(_SPLITS if not summary else "train/")}
        return Side(
            path=str(run.path), name=name, status=status, step=listing.row(run).step, final=bool(summary),
            evaluated=max(evaluated, default=None), config=config, decided=_decided(config, record),
            surroundings=_surroundings(run, record),
            metrics={n: v for n, v in {**metrics, **(summary.get("metrics") or {})}.items() if _is_number(v)},
            times=_times(summary, lines), curves=curves, damaged=damaged, notes=notes,
            derived_from=provenance.derived(record), model=_model(record),
        )  # fmt: skip
    except OSError as error:
        raise RunError(f"cannot be read: {error.strerror}", where=str(run.metrics)) from error
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise RunError(f"is not as bigctl writes it ({error!r})", where=str(run.path)) from error


def _model(record: Mapping[str, Any]) -> dict[str, str] | None:
    count = record.get("parameters")
    return None if count is None else {"format": "run", "weights": "float32", "model [bytes]": f"{4 * count:,}"}


def _of_export(export: Export, name: str) -> Side:
    """Raises RunError if it does not say what it was made from."""
    origin, files, notes = export.origin, export.files, []
    settings: Mapping[str, Any] = {}
    config: dict[str, Any] = {}
    try:
        settings = export.settings()
        config = whole(saved.values(settings["config"], where=str(export.shown)))
    except (RunError, ConfigError) as error:
        notes.append(str(error))
    except (KeyError, TypeError, ValueError) as error:
        notes.append(f"{export.shown}: its settings are not as bigctl writes them ({error!r})")
    try:
        notes += [f"{export.shown / file} is damaged, cut short or missing" for file in export.damaged()]
    except RunError as error:
        notes.append(str(error))
    tokenizer = ((settings.get("features") or {}).get("tokenizer") or {}).get("sha256")
    data = (settings.get("data") or {}).get("fingerprint")
    size = sum(size for file, size in files.items() if file in (*directory.EXPORT_MODELS, "weights.npz"))
    if not origin.same:
        notes.append(f"{name}: {origin.said}")
    known = {"data": data and str(data), "tokenizer": tokenizer and str(tokenizer)}
    model = {"format": export.format, "weights": export.weights, "model [bytes]": f"{size:,}"}
    return Side(
        path=str(export.shown), name=name, status=EXPORT, step=origin.step, final=True, evaluated=None,
        config=config, decided=frozenset(), surroundings={key: value and value[:12] for key, value in known.items()},
        metrics={}, times={}, curves={}, damaged=0, notes=notes,
        derived_from=f"{origin.name}, step {origin.step:,}: {export.format}, {export.weights}", model=model,
    )  # fmt: skip


def _curves(lines: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, Any]]:
    curves: dict[str, dict[int, Any]] = {}
    for line in lines:
        for name, value in line.items():
            if name != "step" and not name.startswith(TIMED):
                curves.setdefault(name, {})[int(line["step"])] = value
    return curves


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _times(summary: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    logged = {name.removeprefix(TIMED): v for line in lines for name, v in line.items() if name.startswith(TIMED)}
    found = {**(summary.get("timings") or {}), **{n: summary.get(n, logged.get(n)) for n in _RATES}}
    return {n: float(v) for n in (*_TIMES, *_RATES) if isinstance(v := found.get(n), int | float)}


# -------------------------------------------------------------------------------------- configuration and surroundings


def _config(run: RunDirectory, notes: list[str]) -> dict[str, Any]:
    try:
        found = saved.values(run.read_config(), where=str(run.config))
    except (RunError, ConfigError) as error:
        notes.append(str(error))
        return {}
    return whole(found)


def _decided(config: Mapping[str, Any], record: Mapping[str, Any]) -> frozenset[str]:
    steps = record.get("steps")
    return frozenset(["schedule.horizon"] if steps is not None and config.get("schedule.horizon") == steps else [])


def _surroundings(run: RunDirectory, record: Mapping[str, Any]) -> dict[str, Any]:
    """What `config.drift` has rules for, every package by itself, and which changes the code has."""
    found = provenance.comparable(record)
    found.pop("packages")
    diff = (record.get("code") or {}).get("diff")
    if found["commit"] and diff:
        found["commit"] += f" {provenance.digest(diff)}"
    tokenizer = sha256(run.tokenizer)[:12] if run.tokenizer.exists() else None
    data = str((record.get("data") or {}).get("fingerprint") or "")[:12] or None
    python = (record.get("machine") or {}).get("python")
    others = {name: v for name, v in (record.get("packages") or {}).items() if name not in found}
    return {"data": data, "tokenizer": tokenizer, **found, "python": python, **others}


# ---------------------------------------------------------------------------------------------------- what is different


def rows(found: Sequence[Mapping[str, Any]], *, every: bool) -> dict[str, list[Any]]:
    """Name -> its value in each run, `ABSENT` where it has none; only those that differ, unless all are asked for."""
    names = dict.fromkeys(name for each in found for name in each)
    table = {name: [each.get(name, ABSENT) for each in found] for name in names}
    return {name: values for name, values in table.items() if every or any(not _same(values[0], v) for v in values)}


def configuration(found: Sequence[Side], *, every: bool) -> dict[str, list[Any]]:
    """As `rows`, by the runs whose configuration can be read, two or more. No difference of its own is what follows
    from other keys in all of them, and what components that only some have leave at its default."""
    readable = [side for side in found if side.config]
    if len(readable) < 2:
        return {}
    configs = [side.config for side in readable]
    if any(side.status == EXPORT for side in readable):  # which tell no folders
        configs = [{key: _without_folders(value) for key, value in config.items()} for config in configs]
    table = rows(configs, every=every)
    follows = frozenset.intersection(*(side.decided for side in readable))
    usual_of = [defaults(side.config) for side in readable]

    def is_chosen(name: str, values: Sequence[Any]) -> bool:
        found = [v == usual.get(name, ABSENT) for v, usual in zip(values, usual_of, strict=True)]
        return name not in follows and not (any(name not in usual for usual in usual_of) and all(found))

    chosen = {name: iter(values) for name, values in table.items() if every or is_chosen(name, values)}
    return {name: [next(values) if side.config else UNREADABLE for side in found] for name, values in chosen.items()}


def _without_folders(value: object) -> object:
    return without_folders(value) if isinstance(value, str) else value


def surroundings(found: Sequence[Side], *, every: bool) -> dict[str, list[Any]]:
    """As `rows`; what a run does not know of does not differ."""
    table = rows([{n: v for n, v in side.surroundings.items() if v is not None} for side in found], every=every)
    return {name: v for name, v in table.items() if every or len({x for x in map(str, v) if x != ABSENT}) > 1}


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    return bool(a == b)


# ------------------------------------------------------------------------------------------------------------- equality


@dataclass(frozen=True)
class Tolerances:
    """How far metrics may be apart, relative to the larger value: one for all, others for some by pattern."""

    every: float = 0.0
    some: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def of(self, metric: str) -> float:
        matching = [value for pattern, value in self.some.items() if fnmatch.fnmatchcase(metric, pattern)]
        return matching[-1] if matching else self.every


def tolerances(texts: Iterable[str]) -> Tolerances:
    """As they are written on the command line: "1e-5", or "val/loss=1e-3" with * and ? as wildcards.

    Raises:
        ConfigError: for what is no such tolerance.
    """
    every, some = 0.0, {}
    for text in texts:
        pattern, equals, value = text.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0 <= number < math.inf or (equals and not pattern):
            hint = "a relative difference: --tolerance 1e-5, or for some metrics --tolerance 'val/*=1e-3'"
            raise ConfigError(f"{text!r} is no tolerance", where="--tolerance", hint=hint)
        if equals:
            some[pattern] = number
        else:
            every = number
    return Tolerances(every, some)


def known(found: Sequence[Side], patterns: Iterable[str], *, where: str) -> set[str]:
    """The metrics of any run that match some pattern; all of them where there is none.

    Raises:
        ConfigError: for a pattern that matches none.
    """
    names = dict.fromkeys(name for side in found for name in (*side.metrics, *side.curves))
    chosen: set[str] = set()
    patterns = list(patterns)
    for pattern in patterns:
        matching = fnmatch.filter(names, pattern)
        if not matching:
            close = difflib.get_close_matches(pattern, names, n=2)
            hint = f"did you mean {' or '.join(close)}?" if close else f"one of: {', '.join(sorted(names)) or 'none'}"
            raise ConfigError(f"there is no metric {pattern!r}", where=where, hint=hint)
        chosen.update(matching)
    return chosen if patterns else set(names)


def equality(first: Side, other: Side, within: Tolerances, names: Iterable[str]) -> list[Comparison]:
    """Whether two runs have the same metrics: the whole curve of each and its final value, those that differ first.

    Raises:
        RunError: if one has no metrics at all: nothing would be compared.
    """
    names = set(names)
    for side in (first, other):
        if not names & {*side.curves, *side.metrics}:
            hint = f"`bigctl info {side.path}` says why" if side.status != EXPORT else "--significance scores an export"
            raise RunError("has no metrics to compare", where=side.path, hint=hint)
    results = []
    for side in (first, other):
        if side.damaged:
            what = f"{side.path}/metrics.jsonl"
            lines = "1 line" if side.damaged == 1 else f"{side.damaged:,} lines"
            results.append(Comparison(what, difference=f"{what}: {lines} cannot be read", where=what, step=-1))
    if first.final != other.final:
        results.append(Comparison("status", difference=f"status: {first.status} and {other.status}", where="status"))
    for name in sorted(names):
        curves = first.curves.get(name, {}), other.curves.get(name, {})
        if any(curves):
            results.append(compare_curve(name, *curves, tolerance=within.of(name)))
        if first.final and other.final and (name in first.metrics or name in other.metrics) and _in_summary(name):
            results.append(_final(name, first.metrics, other.metrics, within.of(name)))
    return sorted(results, key=lambda each: (each.equal, each.step if each.step is not None else math.inf))


def _in_summary(name: str) -> bool:
    return not name.startswith("train/")


def _final(name: str, a: Mapping[str, float | None], b: Mapping[str, float | None], tolerance: float) -> Comparison:
    """A metric of both summaries."""
    what = f"final {name}"
    found = compare_curve(what, *({0: side[name]} if name in side else {} for side in (a, b)), tolerance=tolerance)
    if found.equal:
        return found
    said = f"{what}: {found.difference.split(': ', 1)[1]}"
    return dataclasses.replace(found, difference=said, where=name, step=None)


def to_json(side: Side) -> dict[str, Any]:
    """All but the configuration and the curves, which are in its files."""
    fields = (field.name for field in dataclasses.fields(side))
    return {name: getattr(side, name) for name in fields if name not in ("curves", "config", "decided")}
