"""The page of a sweep: its leaderboard, what each parameter does, all curves, failures, and the winner."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import UndefinedError

from bigctl.errors import BigctlError, RunError
from bigctl.files import real_path
from bigctl.reports import history, page, plots, studies
from bigctl.reports.history import Curve
from bigctl.reports.studies import Dot
from bigctl.runs import pace, run_info, untrusted
from bigctl.runs.directory import RunDirectory
from bigctl.sweeps import ledger
from bigctl.sweeps.trials import label, repeats_text

BOARD = "leaderboard.json"
REPORT = "report.html"
SPREAD = 6
"""Metrics that the leaderboard has columns for, besides the one that ranks."""
_REMEDY = "remove it: it is made again from the ledger"
_SPREAD = {"mean": float, "std": float, "n": untrusted.COUNT}
_POINT = {**_SPREAD, "rank": untrusted.COUNT, "point": {str: str}, "seconds": float, "metrics": {str: _SPREAD}}
_SHAPE: untrusted.Shape = {
    "sweep": str, "metric": str, "mode": str, "status": {str: untrusted.COUNT}, "seeds": [int], "folds": [int],
    "axes": [ledger.AXIS],
    "points": [{**_POINT, "trials": [str]}],
    "trials": [{**ledger.EVENT, "metrics": untrusted.NUMBERS}],
    "winner": {**_POINT, "trials": [str], "command": str, "use": [str]},
}  # fmt: skip
"""Of the leaderboard, as far as it is shown as more than text."""


def sweep_page(
    folder: Path,
    *,
    link: Callable[[Path], str] | None = None,
    up: tuple[str, str] | None = None,
    here: str = "",
    bare: bool = False,
) -> str:
    """The page of a sweep as text.

    Args:
        folder: that of the sweep.
        link: the address of a trial's page; the default is that of its report where there is one, or of its run
            directory, seen from the sweep's.
        up: address and name of the page above it, for one that is served.
        here: its own address, likewise.
        bare: see `page.render`.

    Raises:
        RunError: if neither leaderboard nor ledger can be read, or the former is not as bigctl writes it.
    """
    board, notes = read_study(folder)
    try:
        return _page(folder, board, notes, link, up=up, here=here, bare=bare)
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, UndefinedError) as error:
        said = f"is not as bigctl writes it ({type(error).__name__})"
        raise RunError(said, where=str(folder / BOARD), hint=_REMEDY) from error


def _page(
    folder: Path,
    board: dict[str, Any],
    notes: list[str],
    link: Callable[[Path], str] | None,
    *,
    up: tuple[str, str] | None,
    here: str,
    bare: bool,
) -> str:
    address = link or (lambda run: trial_link(run, folder))
    metric, mode = str(board.get("metric") or ""), str(board.get("mode") or "max")
    trials = [as_trial(folder, trial, metric) for trial in _list(board, "trials")]
    dots = [trial["dot"] for trial in trials]
    axes = _list(board, "axes") or [{"key": key} for key in dict.fromkeys(k for d in dots for k in d.point)]
    scales = [studies.scale(axis, dots) for axis in axes]
    points = _list(board, "points")
    figures, drawn = _figures(board, trials, dots, scales, metric, mode)
    for trial in trials:
        trial["address"] = address(trial["path"]) if trial["path"].is_dir() else ""
        trial["pace"] = _pace(trial["path"]) if here and trial["status"] == "running" else None
    by_id = {trial["id"]: trial for trial in trials}
    goes_on = bool((board.get("status") or {}).get("running"))
    return page.render(
        "sweep.html",
        figures,
        up=up,
        bare=bare,
        served=bool(here),
        again=f"{here}?bare=1" if here and goes_on else "",
        runs_of=lambda point: [by_id[each] for each in point.get("trials") or () if each in by_id],
        uses=_uses(board, by_id),
        name=folder.resolve().name,
        folder=str(folder),
        written=max(_modified(folder / ledger.NAME), _modified(folder / BOARD)),
        metric=metric,
        mode=mode,
        status=board.get("status") or {},
        keys=[scale.key for scale in scales],
        shown=_shown(points, metric),
        repeats=repeats_text(len(board.get("seeds") or ()) or 1, len(board.get("folds") or ())),
        folds=bool(board.get("folds")),
        seeded=any(trial.get("seed") is not None for trial in trials),
        points=points,
        trials=trials,
        effects=_list(board, "effects"),
        failures=_list(board, "failures"),
        winner=board.get("winner"),
        winner_label=label(board["winner"].get("point") or {}) if board.get("winner") else "",
        notes=notes,
        **drawn,
    )


def _figures(
    board: Mapping[str, Any],
    trials: Sequence[Mapping[str, Any]],
    dots: Sequence[Dot],
    scales: Sequence[studies.Scale],
    metric: str,
    mode: str,
) -> tuple[dict[str, plots.Figure], dict[str, Any]]:
    """All figures by their ids, and the ids of each kind."""
    points, front = _list(board, "points"), board.get("pareto") or {}
    figures: dict[str, plots.Figure] = {}

    def named(name: str, *found: plots.Figure | None) -> list[str]:
        ids = [f"{name}-{n}" for n, figure in enumerate(found) if figure is not None]
        figures.update(zip(ids, [f for f in found if f is not None], strict=True))
        return ids

    drawn: dict[str, Any] = {
        "parallel": named("parallel", studies.parallel(dots, scales, metric, mode)),
        "curves": named("curves", *_curves(trials, metric, mode)),
        "slices": named("slice", *studies.slices(dots, scales, metric, mode)),
        "importance": named("importance", studies.importance(_list(board, "effects"), metric)),
        "pareto": named("pareto", studies.pareto(points, front.get("points") or [], front["metrics"], metric))
        if front.get("metrics")
        else [],
    }
    return figures, drawn


def trial_link(run: Path, page_folder: Path) -> str:
    """The address of a trial on disk, from a page in some folder: its report, if it has one, else its run directory."""
    where = os.path.relpath(run, page_folder)
    return f"{where}/{REPORT}" if (run / REPORT).is_file() else f"{where}/"


def _pace(path: Path) -> pace.Pace | None:
    run = RunDirectory(path)
    with contextlib.suppress(BigctlError):
        return pace.of_run(run, run.record())
    return None


def _uses(board: Mapping[str, Any], trials: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The commands that use the best run of the winner as it is."""
    winner, maximal = board.get("winner") or {}, board.get("mode") != "min"
    known = [trials[each] for each in winner.get("trials") or () if each in trials]
    known = [trial for trial in known if trial["value"] is not None and trial["path"].is_dir()]
    if not known or board.get("folds"):  # of folds each lacks a part of the data
        return []
    best = (max if maximal else min)(known, key=lambda trial: float(trial["value"]))
    return run_info.use_commands(RunDirectory(Path(os.path.relpath(best["path"]))))


def read_study(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The leaderboard of a sweep, made from its ledger where that says more; and what could not be read.

    Raises:
        RunError: if there is neither.
    """
    notes: list[str] = []
    journal, written = folder / ledger.NAME, folder / BOARD
    if journal.exists() and _modified(journal) > _modified(written):
        study = ledger.read_study(folder)
        if study.damaged:
            notes.append(f"{ledger.NAME}: {study.damaged} damaged lines are left out")
        from bigctl.sweeps import leaderboard

        return leaderboard.build_leaderboard(study), notes
    try:
        board = untrusted.read(written, _SHAPE)
    except OSError as error:
        raise RunError(f"cannot be read: {error.strerror}", where=str(written)) from error
    except ValueError as error:
        raise RunError(f"is not as bigctl writes it: {error}", where=str(written), hint=_REMEDY) from error
    return board, notes


def _list(board: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = board.get(name)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def as_trial(folder: Path, trial: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """A trial as the page shows it, with its `dot` for the figures and the `path` of its run directory."""
    metrics = {str(k): float(v) for k, v in (trial.get("metrics") or {}).items() if isinstance(v, int | float)}
    point = {str(k): str(v) for k, v in (trial.get("point") or {}).items()}
    value, repeats = metrics.get(metric), ((name, trial.get(name)) for name in ("fold", "seed"))
    name = " ".join(filter(None, [label(point), *(f"{key}={n}" for key, n in repeats if n is not None)]))
    counted = trial.get("status") == "complete" and value is not None and np.isfinite(value)
    places = [folder / "trials" / str(trial.get("id")), folder / str(trial.get("run")), Path(str(trial.get("run")))]
    places = [place for place in places if real_path(place).is_relative_to(real_path(folder))] or [folder / "trials"]
    return {
        **{key: trial.get(key) for key in ("number", "status", "seed", "fold", "step", "seconds", "message")},
        "id": str(trial.get("id")),
        "point": point,
        "value": value,
        "path": next((place for place in places if place.is_dir()), places[0]),
        "dot": Dot(name or f"trial {trial.get('number')}", point, value if counted else None, metrics),
    }


def _curves(trials: Sequence[Mapping[str, Any]], metric: str, mode: str) -> list[plots.Figure | None]:
    """The metric of all trials, and the training loss if that is another one."""
    found: list[plots.Figure | None] = []
    for name in dict.fromkeys((metric, "train/loss")):
        curves: list[tuple[Dot, Curve]] = [
            (trial["dot"], history.read_one(trial["path"] / "metrics.jsonl", name)) for trial in trials
        ]
        found.append(studies.all_curves(curves, name, metric, mode))
    return found


def _shown(points: Sequence[Mapping[str, Any]], metric: str) -> list[str]:
    """Which metrics the leaderboard has columns for: losses and accuracies before others."""
    names = dict.fromkeys(name for point in points for name in point.get("metrics") or {} if name != metric)
    first = {"accuracy": 0, "loss": 1, "f1": 2, "perplexity": 3}
    return sorted(names, key=lambda name: (first.get(name.rpartition("/")[2], 9), name))[:SPREAD]


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
