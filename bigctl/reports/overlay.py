"""The curves of several runs over each other: one chart a metric, one colour a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigctl.errors import BigctlError
from bigctl.formatting import alike
from bigctl.reports import curves, history, page
from bigctl.reports.history import Curve
from bigctl.reports.plots import Figure, number, numbers, shown, spans, text
from bigctl.reports.thinning import thin
from bigctl.runs import directory, listing, pace
from bigctl.runs.directory import RunDirectory

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9")
"""Told apart by those who do not see red or green too (Okabe and Ito 2008), on white and on black."""
DASHES = ("solid", "dash", "dot", "dashdot")
MOST = len(COLOURS) * len(DASHES)
"""Runs on one page, each with a line of its own kind."""
_POINTS = 12_000
"""Of all runs in one chart together."""


@dataclass(frozen=True)
class Chosen:
    """A run of an overlay.

    Attributes:
        name: that it is chosen by, and shown with: NAME, or SWEEP/TRIAL.
        address: of its own page.
        run: its folder.
    """

    name: str
    address: str
    run: RunDirectory


def overlay_page(
    chosen: Sequence[Chosen], others: Sequence[Mapping[str, Any]], *, again: str, bare: bool = False
) -> str:
    """The page as text.

    Args:
        chosen: at most MOST of them are drawn, which is said.
        others: everything that may be chosen, as {"name", "status", "recipe"}.
        again: the address of this very page without scripts, for what is still being trained.
        bare: see `page.render`.
    """
    drawn = chosen[:MOST]
    rows = [_row(each, number) for number, each in enumerate(drawn)]
    figures = {f"overlay-{n}": figure for n, figure in enumerate(overlaid(drawn))}
    notes = [f"Only the first {MOST} of {len(chosen)} runs are shown."] if len(chosen) > MOST else []
    return page.render(
        "overlay.html",
        figures,
        served=True,
        bare=bare,
        again=again if any(row["status"] == directory.RUNNING for row in rows) else "",
        rows=rows,
        others=others,
        names={each.name for each in drawn},
        notes=notes,
        up=("/", "All runs"),
    )


def _row(each: Chosen, place: int) -> dict[str, Any]:
    row = listing.row(each.run)
    found: dict[str, Any] = {
        "name": each.name,
        "address": each.address,
        "status": row.status,
        "recipe": row.recipe,
        "step": row.step,
    }
    found |= {"metric": row.metric, "value": row.value, "colour": _colour(place), "dash": _dash(place)}
    return {**found, "overrides": row.overrides, "pace": _pace(each.run) if row.status == directory.RUNNING else None}


def _pace(run: RunDirectory) -> pace.Pace | None:
    try:
        return pace.of_run(run, run.record())
    except BigctlError:
        return None


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def _dash(place: int) -> str:
    return DASHES[place // len(COLOURS) % len(DASHES)]


def overlaid(chosen: Sequence[Chosen]) -> list[Figure]:
    """One figure a metric that any of them has, with a curve of each run that has it."""
    found = [(place, each.name, history.read_history(each.run.metrics).curves) for place, each in enumerate(chosen)]
    every = dict.fromkeys(name for _, _, metrics in found for name in metrics)
    order: list[str] = []
    for members in curves.grouped({name: Curve(np.zeros(0), np.zeros(0)) for name in every}).values():
        order += sorted(members, key=lambda name: (not name.startswith("val/"), name))
    figures = []
    for metric in [*order, *(name for name in every if name == "perf/examples_per_s")]:
        having = [(place, name, metrics[metric]) for place, name, metrics in found if metric in metrics]
        figures.append(_figure(metric, having, alone=len(chosen) < 2))
    return figures


def _figure(metric: str, members: Sequence[tuple[int, str, Curve]], *, alone: bool) -> Figure:
    most = max(50, min(1500, _POINTS // len(members)))
    data = []
    for place, name, curve in members:
        kept = thin(curve.values, most)
        data.append({
            "type": "scatter", "mode": "lines+markers" if len(kept) <= 30 else "lines", "name": text(name, 32),
            "meta": f"{name} {metric}", "x": numbers(curve.steps[kept]), "y": numbers(curve.values[kept]),
            "line": {"width": 2, "color": _colour(place), "dash": _dash(place)}, "marker": {"size": 5},
            "hovertemplate": f"{text(name, 60)}<br>step %{{x}}: %{{y:.5g}}<extra></extra>",
        })  # fmt: skip
    layout = {"xaxis": {"title": {"text": "step"}}, "hovermode": "closest", "showlegend": not alone}
    values = np.concatenate([curve.values for _, _, curve in members])
    return Figure(metric, _caption(metric, members), data, layout, height=320, log=spans(values))


def _caption(metric: str, members: Sequence[tuple[int, str, Curve]]) -> str:
    """Which run has the best value, where it is known which that is; else where each ends."""
    direction = curves.direction(metric)
    finite = [(name, curve.values[np.isfinite(curve.values)]) for _, name, curve in members]
    ends = [(name, values) for name, values in finite if len(values)]
    if not ends:
        return f"{metric} has no finite value."
    if direction is None or len(ends) == 1:
        if len({float(values[-1]) for _, values in ends}) == 1 < len(ends):
            return f"{metric} ends at {shown(ends[0][1][-1])} in all {len(ends)} runs."
        told = ", ".join(f"{name} at {shown(values[-1])}" for name, values in ends[:4])
        return f"{metric} ends: {told}{' and others' if len(ends) > 4 else ''}."
    reached = {name: float(getattr(values, direction)()) for name, values in ends}
    best = (max if direction == "max" else min)(reached.values())
    tied = [name for name, value in reached.items() if value == best]
    return f"The best {metric}, {shown(number(best))}, is of {alike(tied)}."
