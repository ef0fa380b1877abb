"""The main curves as a picture for Markdown, by matplotlib, which needs no browser (extra `report`)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bigctl.errors import ConfigError
from bigctl.files import temporary_name
from bigctl.reports import history, sweep
from bigctl.reports.plots import PALETTE, SPLITS
from bigctl.reports.studies import NAMED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bigctl.engine.lr_finder import Found

_SIZE = 3.2
"""Inches: the height of a panel, a third less than its width."""


def missing(where: str = "--png") -> ConfigError | None:
    """What a picture cannot be drawn without; None where nothing is missing."""
    if importlib.util.find_spec("matplotlib") is not None:
        return None
    hint = "pip install 'bigctl[report]'"
    return ConfigError("no picture is drawn, matplotlib is not installed", where=where, hint=hint)


def require(where: str = "--png") -> None:
    """Raises ConfigError if matplotlib is not installed."""
    if (error := missing(where)) is not None:
        raise error


def of_run(folder: Path, out: Path) -> None:
    """The curves of a run into a PNG."""
    _save(figure_of_run(folder), out)


def figure_of_run(folder: Path) -> Figure:
    """Loss and, where there is one, a second measure, each on all its splits."""
    curves = history.read_history(folder / "metrics.jsonl").curves
    measures = dict.fromkeys(name.partition("/")[2] for name in curves if name.startswith("val/"))
    second = next((m for m in ("accuracy", "perplexity", "mae", *measures) if m in measures and m != "loss"), None)
    panels = [m for m in ("loss", second) if m]
    figure, axes = _panels(len(panels), folder.resolve().name)
    for axis, measure in zip(axes, panels, strict=True):
        for split, colour in SPLITS.items():
            if curve := curves.get(f"{split}/{measure}"):
                axis.plot(
                    curve.steps, curve.values, label=split, color=colour, marker="." if len(curve.steps) < 60 else ""
                )
        _finish(axis, measure)
    return figure


def of_sweep(folder: Path, out: Path) -> None:
    """The sweep's metric over the steps of all trials, the best ones in colour, into a PNG."""
    board, _ = sweep.read_study(folder)
    metric, best = str(board.get("metric")), -1.0 if board.get("mode") == "max" else 1.0
    trials = [sweep.as_trial(folder, trial, metric) for trial in board.get("trials") or []]
    trials.sort(key=lambda trial: (trial["dot"].value is None, best * (trial["dot"].value or 0.0)))
    figure, (axis,) = _panels(1, folder.resolve().name)
    for rank, trial in reversed(list(enumerate(trials))):
        curve = history.read_one(trial["path"] / "metrics.jsonl", metric)
        named = rank < NAMED and trial["dot"].value is not None
        axis.plot(
            curve.steps, curve.values, color=PALETTE[rank] if named else "#c3c9d2", linewidth=2 if rank == 0 else 1,
            label=trial["dot"].label if named else None,
        )  # fmt: skip
    _finish(axis, metric)
    _save(figure, out)


def of_rates(found: Found, out: Path) -> None:
    """The loss by learning rate, with the one that is suggested, into a PNG."""
    figure, (axis,) = _panels(1, "loss by learning rate")
    axis.plot(found.rates, found.losses, color="#c3c9d2", linewidth=1, label="each step")
    axis.plot(found.rates, found.smoothed, color=PALETTE[0], linewidth=2, label="smoothed")
    if found.suggestion is not None:
        height = np.interp(np.log(found.suggestion), np.log(found.rates), found.smoothed)
        axis.plot([found.suggestion], [height], "o", color=PALETTE[1], label=f"steepest: {found.suggestion:g}")
    low, high = min(found.losses), max(found.smoothed[: len(found.smoothed) // 2 + 1])
    axis.set_ylim(low - 0.15 * (high - low), high + 0.5 * (high - low))  # what diverges would hide the rest
    axis.set_xscale("log")
    _finish(axis, "loss")
    axis.set_xlabel("learning rate")
    _save(figure, out)


def _panels(count: int, title: str) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_SIZE * 1.5 * max(count, 1.5), _SIZE), dpi=120, layout="constrained")
    figure.suptitle(title.replace("$", r"\$"))
    return figure, list(np.atleast_1d(figure.subplots(1, count)))


def _finish(axis: Axes, name: str) -> None:
    axis.set_xlabel("step")
    axis.set_ylabel(name)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        axis.legend(handles[::-1], [label.replace("$", r"\$") for label in labels[::-1]], frameon=False, fontsize=8)


def _save(figure: Figure, out: Path) -> None:
    """Atomically, as every file of a run."""
    temporary = temporary_name(out)
    try:
        figure.savefig(temporary, format="png")
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
