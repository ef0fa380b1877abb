"""The leaderboard of a study: ranked points, the effect of each key, the Pareto set, failures, and the winner.

Points are ranked by how many of the study's seeds and folds are complete, then by the mean of the metric over them:
comparing a mean over one seed with means over three would favour luck. Free of jax.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
import shlex
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigctl.config import schema
from bigctl.files import write_json, write_text
from bigctl.formatting import plain
from bigctl.runs import run_info
from bigctl.runs.directory import RunDirectory
from bigctl.sweeps.effects import Scored, effects
from bigctl.sweeps.trials import COMPLETE, FAILED, Point, State, Study

SCHEMA = 1
JSON, CSV = "leaderboard.json", "leaderboard.csv"
_SOURCES = ("--config-dir", "--plugin")


def build_leaderboard(study: Study) -> dict[str, Any]:
    """The leaderboard as a JSON object.

    `points` are sorted, the best first. A point without any complete trial, or with one whose metric is missing or not
    finite, has no rank and comes last, whatever its other seeds reached. `std` is the sample standard deviation over
    seeds and folds, None for a single one; `seconds` is the sum over all trials of the point. `winner` is the first
    point.
    """
    points = _ranked(study)
    entries = [point.to_json() for point in points]
    for rank, (point, entry) in enumerate(zip(points, entries, strict=True), 1):
        entry["rank"] = rank if point.sound else None
    return {
        "schema": SCHEMA,
        "sweep": str(_typed(study.path)),
        "metric": study.metric,
        "mode": study.mode,
        "status": dict(Counter(state.status for state in study.states.values())),
        "axes": [_axis(axis) for axis in study.definition.get("axes") or ()],
        "seeds": list(study.definition.get("seeds") or ()),
        "folds": list(study.definition.get("folds") or ()),
        "points": entries,
        "trials": [_trial(study, state) for state in study.states.values()],
        "effects": effects(study.definition, [Scored(p.point, p.scores) for p in points if p.sound]),
        "pareto": _pareto(study, points),
        "failures": [_failure(study, state) for state in study.states.values() if state.status == FAILED],
        "winner": _winner(study, points[0]) if points and points[0].sound else None,
    }


# -------------------------------------------------------------------------------------------------------------- points


@dataclass(frozen=True)
class _Point:
    """All trials of one point.

    Attributes:
        point: searched keys and values.
        states: its trials by number.
        metric: of the study.
        complete_repeats: how many of the study's seeds and folds are complete.
    """

    point: Point
    states: Sequence[State]
    metric: str
    complete_repeats: int

    @property
    def complete(self) -> list[State]:
        return [state for state in self.states if state.status == COMPLETE]

    @property
    def scores(self) -> list[float]:
        return self.values(self.metric)

    @property
    def sound(self) -> bool:
        """Whether it can be ranked: some trial is complete, and the metric is finite in all that are."""
        return 0 < len(self.scores) == len(self.complete)

    def values(self, metric: str) -> list[float]:
        return [value for state in self.states if (value := state.score(metric)) is not None]

    def to_json(self) -> dict[str, Any]:
        """Its entry in the leaderboard; the rank is filled in later."""
        names = dict.fromkeys(name for state in self.complete for name in state.metrics)
        return {
            "rank": None,
            "point": dict(self.point),
            **_spread(self.scores),
            "seconds": round(sum(state.seconds for state in self.states), 3),
            "metrics": {
                name: _spread(values)
                for name in sorted(names)
                if not name.startswith("test/") and (values := self.values(name))
            },
            "trials": [state.trial.id for state in self.states],
        }


def _ranked(study: Study) -> list[_Point]:
    """The points, the best first; those that cannot be ranked come last, in the order they were proposed."""
    groups: dict[tuple[tuple[str, str], ...], list[State]] = {}
    for state in sorted(study.states.values(), key=lambda state: state.trial.number):
        groups.setdefault(tuple(sorted(state.trial.point.items())), []).append(state)
    keys = [axis["key"] for axis in study.definition.get("axes") or ()]
    seeds, folds = (study.definition.get(name) or (None,) for name in ("seeds", "folds"))
    repeats = set(itertools.product(seeds, folds))
    points = []
    for states in groups.values():
        point = states[0].trial.point
        ordered = {key: point[key] for key in (*(k for k in keys if k in point), *(k for k in point if k not in keys))}
        done = {(state.trial.seed, state.trial.fold) for state in states if state.status == COMPLETE}
        points.append(_Point(ordered, states, study.metric, len(done & repeats)))
    sign = -1.0 if study.mode == "max" else 1.0

    def order(each: _Point) -> tuple[Any, ...]:
        number = each.states[0].trial.number
        if not each.sound:
            return (1, number)
        spread = _spread(each.scores)
        return (0, -each.complete_repeats, sign * spread["mean"], spread["std"] or 0.0, number)

    return sorted(points, key=order)


def best_mean(study: Study) -> float | None:
    """The mean of the metric over the seeds and folds of the point in front; None where there is none."""
    front = next((point for point in _ranked(study) if point.sound), None)
    return None if front is None else float(_spread(front.scores)["mean"])


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "mean": statistics.fmean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "n": len(values),
    }


def _pareto(study: Study, points: Sequence[_Point]) -> dict[str, Any] | None:
    """The points that no other beats in both metrics, among those with as many complete seeds as the best has."""
    settings = study.definition.get("sweep") or {}
    second = settings.get("pareto")
    # A study of an earlier version has not noted it; where the recipe is a plugin's, nobody knows it here.
    mode = settings.get("pareto_mode") or schema.known_direction(second or "")
    if not second or mode is None:
        return None
    signs = [1.0 if each == "max" else -1.0 for each in (study.mode, mode)]
    values = {
        index: (signs[0] * statistics.fmean(point.scores), signs[1] * statistics.fmean(other))
        for index, point in enumerate(points)
        if point.sound
        and point.complete_repeats == points[0].complete_repeats
        and len(other := point.values(second)) == len(point.scores)
    }  # fmt: skip
    best: list[int] = []
    highest = -math.inf
    # In order of the first metric: a point is dominated unless its second is above all before it. Equal points stay.
    for index in sorted(values, key=lambda i: (-values[i][0], -values[i][1], i)):
        if values[index][1] > highest or (best and values[index] == values[best[-1]]):
            best.append(index)
            highest = values[index][1]
    return {"metrics": [study.metric, second], "points": best}


# -------------------------------------------------------------------------------------------------- trials, the winner


def _trial(study: Study, state: State) -> dict[str, Any]:
    trial = state.trial
    return {
        "id": trial.id,
        "number": trial.number,
        "seed": trial.seed,
        "fold": trial.fold,
        "point": dict(trial.point),
        "status": state.status,
        "run": str(_typed(study.run(state))),
        "metrics": dict(state.metrics),
        "step": state.step,
        "seconds": round(state.seconds, 3),
        "message": state.message,
        "log": _log(study, state),
    }


def _failure(study: Study, state: State) -> dict[str, Any]:
    message = " ".join(state.message.split()) or "no message was recorded"
    return {"id": state.trial.id, "label": state.trial.label, "message": message, "log": _log(study, state)}


def _log(study: Study, state: State) -> str:
    """The log of its run; if it has none, the output of its process."""
    log = study.run(state) / "log.txt"
    return str(_typed(study.path / state.log if state.log and not log.exists() else log))


def _winner(study: Study, point: _Point) -> dict[str, Any]:
    runs = point.complete
    names = dict.fromkeys(name for state in runs for name in study.test.get(state.trial.id, {}))
    found = [study.test.get(state.trial.id, {}) for state in runs]
    test = {name: [float(scores[name]) for scores in found if _finite(scores.get(name))] for name in names}
    return {
        "point": dict(point.point),
        "trials": [state.trial.id for state in runs],
        "command": command(study, runs[0]),
        "use": _use(study, runs),
        **_spread(point.scores),
        "test": {name: _spread(values) for name, values in sorted(test.items())},
    }


def _use(study: Study, runs: Sequence[State]) -> list[str]:
    """The commands that use the best of the winner's runs as it is; of folds none is, each lacks a part of the data."""
    if any(state.trial.fold is not None for state in runs):
        return []
    best = (min if study.mode == "min" else max)(runs, key=lambda state: state.score(study.metric) or 0.0)
    return run_info.use_commands(RunDirectory(_typed(study.run(best))))


def command(study: Study, state: State) -> str:
    """The command that trains a trial again as a run of its own, which scores the test split like any run. Of folds the
    winner needs none: it is trained on the usual splits.

    The run's name contains the trial's identity, so that it is unique and always the same.
    """
    trial = state.trial
    given = [f"{key}={value}" for key, value in trial.point.items()]
    left_out = ("eval.test=", *(("data.folds=",) if trial.fold is not None else ()))
    fixed = [o for o in study.definition.get("fixed") or () if not o.lstrip("+").startswith(left_out)]
    seed = [f"seed={trial.seed}"] if trial.seed is not None else []
    name = re.sub(r"[^\w.=,+-]+", "-", study.path.resolve().name).lstrip(".=,+-") or "sweep"
    sources = _sources(study.definition.get("argv") or ())
    return shlex.join(["bigctl", "train", *fixed, *given, *seed, *sources, "--name", f"{name}-{trial.id[:6]}"])


def _sources(argv: Sequence[str]) -> list[str]:
    """`--config-dir` and `--plugin` as they were given to the sweep."""
    found: list[str] = []
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        if word in _SOURCES:
            found += [word, following]
        elif word.startswith(tuple(f"{flag}=" for flag in _SOURCES)):
            found.append(word)
    return found


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _axis(axis: Mapping[str, Any]) -> dict[str, Any]:
    ends = {name: axis.get(name) for name in ("low", "high")}
    kind = {name: bool(axis.get(name)) for name in ("log", "integer")}
    return {"key": axis["key"], "values": list(axis.get("values") or ()), **ends, **kind}


def _typed(path: Path) -> Path:
    """A path relative to the working directory, where it is below it."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path


# --------------------------------------------------------------------------------------------------------------- files


def write_leaderboard(study: Study, board: Mapping[str, Any]) -> None:
    """Write `leaderboard.json` and `leaderboard.csv` into the sweep's folder, each atomically.

    Raises:
        OSError: if one cannot be written.
    """
    write_json(study.path / JSON, dict(board))
    write_text(study.path / CSV, table(board))


def table(board: Mapping[str, Any]) -> str:
    """The points as CSV: rank, searched keys, mean, std and n of the metric, means of the others, seconds."""
    keys = list(dict.fromkeys(key for point in board["points"] for key in point["point"]))
    others = sorted({name for point in board["points"] for name in point["metrics"]} - {board["metric"]})
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["rank", *keys, "mean", "std", "n", *others, "seconds"])
    for point in plain(board["points"]):
        means = [point["metrics"].get(name, {}).get("mean") for name in others]
        row = [point["rank"], *(point["point"].get(key) for key in keys), point["mean"], point["std"], point["n"]]
        writer.writerow(_cells([*row, *means, point["seconds"]]))
    return stream.getvalue()


def _cells(values: Iterable[Any]) -> list[Any]:
    return ["" if value is None else value for value in values]
