"""Plotly figures of a sweep: parallel coordinates, slices, importance, all curves, the Pareto set. See `plots`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigctl.formatting import alike
from bigctl.reports.history import Curve
from bigctl.reports.plots import PALETTE, Figure, number, numbers, shown, spans, text
from bigctl.reports.thinning import thin

BUDGET = 60_000
"""Points of all curves of a sweep together: what a browser draws at once."""
FEWEST, MOST = 50, 1500
"""Points of one of them."""
LINES = 300
"""Lines in the parallel coordinates."""
NAMED = 5
"""How many of the best curves have colours of their own."""


@dataclass(frozen=True)
class Dot:
    """One trial as the figures see it.

    Attributes:
        label: its point and seed in short.
        point: key -> value as text.
        value: the sweep's metric; None where it has none.
        metrics: all it has.
    """

    label: str
    point: Mapping[str, str]
    value: float | None
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Scale:
    """Where the values of a searched key lie on an axis.

    Attributes:
        numeric: whether all of them are numbers; else they are names in some order.
        log: whether they are drawn by their logarithm.
        names: the names, where they are no numbers.
    """

    key: str
    numeric: bool
    log: bool
    names: tuple[str, ...] = ()

    def place(self, value: str | None) -> float | None:
        """The position, before any logarithm; None for what has none."""
        if value is None:
            return None
        if not self.numeric:
            return float(self.names.index(value)) if value in self.names else None
        found = _float(value)
        return None if found is None or (self.log and found <= 0) else found


def scale(axis: Mapping[str, Any], dots: Sequence[Dot]) -> Scale:
    """The scale of a searched key: numbers if all values are; by logarithm if the axis says so, or they span a lot."""
    key = str(axis.get("key"))
    values = list(dict.fromkeys([*map(str, axis.get("values") or ()), *(d.point[key] for d in dots if key in d.point)]))
    places = [_float(value) for value in values]
    if not values or any(place is None for place in places):
        return Scale(key, False, False, tuple(values))
    found = [place for place in places if place is not None]
    wide = min(found) > 0 and max(found) / min(found) >= 50
    return Scale(key, True, min(found) > 0 and (bool(axis.get("log")) or wide))


def _float(value: str) -> float | None:
    try:
        found = float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def parallel(dots: Sequence[Dot], scales: Sequence[Scale], metric: str, mode: str) -> Figure | None:
    """One line a trial through its parameters to its metric, the better the stronger its colour.

    Drawn as ordinary lines: Plotly's own kind needs WebGL and the right to evaluate text as code.
    """
    told = [dot for dot in dots if dot.value is not None]
    if len(told) < 2 or not scales:
        return None
    sign = 1.0 if mode == "max" else -1.0
    count = len(told)
    told = sorted(told, key=lambda dot: sign * float(dot.value or 0.0))[-LINES:]  # the best is drawn last
    columns = [_column(where, [where.place(dot.point.get(where.key)) for dot in told]) for where in scales]
    columns.append(_column(Scale(metric, True, False), [dot.value for dot in told]))
    goodness = (
        columns[-1].heights if mode == "max" else [1 - height for height in columns[-1].heights if height is not None]
    )
    data = [
        {
            "type": "scatter", "mode": "lines+markers", "name": text(dot.label, 80), "x": list(range(len(columns))),
            "y": [None if (height := column.heights[n]) is None else round(height, 4) for column in columns],
            "connectgaps": True, "line": {"width": 1.6, "color": f"quality:{goodness[n]:.3f}"},
            "marker": {"size": 5, "color": f"quality:{goodness[n]:.3f}"}, "showlegend": False,
            "hovertemplate": f"%{{fullData.name}}<br>{text(metric)} {dot.value:.5g}<extra></extra>",
        }
        for n, dot in enumerate(told)
    ]  # fmt: skip
    notes: list[dict[str, Any]] = []
    for n, column in enumerate(columns):
        last = n == len(columns) - 1
        notes.append({"x": n, "y": 1.1, "text": f"<b>{column.title}</b>", "showarrow": False})
        notes += [
            {"x": n, "y": height, "text": name, "showarrow": False, "xanchor": "left" if last else "right",
             "xshift": 5 if last else -5, "font": {"size": 11}, "bgcolor": "card", "borderpad": 1, "opacity": 0.9}
            for height, name in column.ticks
        ]  # fmt: skip
    layout = {
        "xaxis": {"visible": False, "range": [-0.1, len(columns) - 0.9], "fixedrange": True},
        "yaxis": {"visible": False, "range": [-0.07, 1.17], "fixedrange": True},
        "shapes": [
            {"type": "line", "x0": n, "x1": n, "y0": 0, "y1": 1, "line": {"width": 1, "color": "muted"}}
            for n in range(len(columns))
        ],
        "annotations": notes, "hovermode": "closest", "dragmode": "select",
        "margin": {"l": 62, "r": 58, "t": 6, "b": 6},
    }  # fmt: skip
    which = f"one of {count} trials" if count <= LINES else f"one of the best {LINES} of {count} trials"
    caption = (
        f"Each line is {which} with a value of {metric}; the better, the stronger its colour. "
        "Drag over a part of an axis to see only the lines through it, double-click to see all again."
    )
    wide = 110 * len(columns)
    return Figure("Parallel coordinates", caption, data, layout, height=400, wide=True, brush=True, least=wide)


@dataclass(frozen=True)
class _Column:
    """One axis of the parallel coordinates: heights from 0 to 1 of each trial, and ticks (height, name)."""

    title: str
    heights: list[float | None]
    ticks: list[tuple[float, str]]


def _column(where: Scale, places: Sequence[float | None]) -> _Column:
    known = sorted({place for place in places if place is not None})
    if not where.numeric:
        names = {float(n): text(name, 14) for n, name in enumerate(where.names)}
    elif len(known) <= 6:
        names = {value: f"{value:.4g}" for value in known}
    elif where.log:
        names = {value: f"{value:.3g}" for value in _log_ticks(known[0], known[-1])}
    else:
        names = {float(value): f"{value:.4g}" for value in np.linspace(known[0], known[-1], 5)}
    bend = math.log10 if where.log else float
    ends = [bend(value) for value in (*known, *names)]
    low, high = min(ends, default=0.0), max(ends, default=1.0)

    def height(place: float) -> float:
        return (bend(place) - low) / (high - low) if high > low else 0.5

    heights = [None if place is None else height(place) for place in places]
    title = text(where.key if "/" in where.key else where.key.rsplit(".", 1)[-1], 18)
    return _Column(title, heights, [(round(height(value), 4), name) for value, name in names.items()])


def _log_ticks(low: float, high: float) -> list[float]:
    """Both ends and the powers of ten between them that are not too close to either."""
    powers = [10.0**k for k in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
    return sorted({low, *(p for p in powers if p > low * 1.8 and p * 1.8 < high), high})


def slices(dots: Sequence[Dot], scales: Sequence[Scale], metric: str, mode: str) -> list[Figure]:
    """The metric against each parameter, one dot a trial; a line through the best at each value."""
    found = []
    for where in scales:
        known = [
            (place, float(d.value), d)
            for d in dots
            if d.value is not None and (place := where.place(d.point.get(where.key))) is not None
        ]
        if not known:
            continue
        places = sorted({place for place, _, _ in known})
        best = max if mode == "max" else min
        top = [best(value for place, value, _ in known if place == p) for p in places]
        data: list[dict[str, Any]] = [{
            "type": "scatter", "mode": "markers", "name": "trial", "x": numbers(p for p, _, _ in known),
            "y": numbers(v for _, v, _ in known), "text": [text(d.label, 80) for _, _, d in known],
            "marker": {"size": 8, "opacity": 0.65, "color": PALETTE[0]},
            "hovertemplate": "%{text}<br>%{y:.5g}<extra></extra>",
        }]  # fmt: skip
        if 1 < len(places) < len(known):
            data.append({
                "type": "scatter", "mode": "lines", "name": "best", "x": numbers(places), "y": numbers(top),
                "line": {"color": PALETTE[1], "width": 1.5}, "hoverinfo": "skip",
            })  # fmt: skip
        axis: dict[str, Any] = {"title": {"text": text(where.key, 40)}}
        if where.log:
            axis |= {"type": "log", "dtick": 1 if places[-1] / places[0] >= 100 else "D2"}
        if where.numeric and len(places) <= 8:
            axis |= {"tickmode": "array", "tickvals": numbers(places), "ticktext": [f"{p:g}" for p in places]}
        elif not where.numeric:
            axis |= {"tickmode": "array", "tickvals": list(range(len(where.names))),
                     "ticktext": [text(name, 18) for name in where.names], "range": [-0.5, len(where.names) - 0.5],
                     "zeroline": False}  # fmt: skip
        layout = {
            "xaxis": axis,
            "yaxis": {"title": {"text": text(metric)}},
            "hovermode": "closest",
            "showlegend": False,
        }
        at = [place for place, value in zip(places, top, strict=True) if value == best(top)]
        names = alike([f"{place:g}" if where.numeric else where.names[int(place)] for place in at])
        caption = f"{len(known)} trials; the best {metric}, {shown(best(top))}, is at {where.key}={names}."
        found.append(Figure(where.key, caption, data, layout, log=spans([v for _, v, _ in known])))
    return found


def importance(effects: Sequence[Mapping[str, Any]], metric: str) -> Figure | None:
    """How much of the metric's spread each parameter explains, the most important on top."""
    known = sorted((float(e["importance"]), str(e["key"])) for e in effects if e.get("importance") is not None)
    if not known:
        return None
    data = [{
        "type": "bar", "orientation": "h", "x": numbers(v for v, _ in known), "y": [text(key) for _, key in known],
        "marker": {"color": PALETTE[0]}, "text": [f"{v:.2f}" for v, _ in known], "textposition": "outside",
        "textangle": 0, "cliponaxis": False,
        "hovertemplate": "%{y}: %{x:.3f}<extra></extra>",
    }]  # fmt: skip
    layout = {
        "xaxis": {"range": [0, 1.08 * max(1.0, known[-1][0])]}, "yaxis": {"type": "category"}, "hovermode": "closest",
        "showlegend": False,
    }  # fmt: skip
    told = ", ".join(f"{key} {value:.2f}" for value, key in reversed(known))
    caption = f"How much of the spread of {metric} each parameter explains, of 1: {told}."
    return Figure("Importance", caption, data, layout, height=110 + 36 * len(known))


def all_curves(found: Sequence[tuple[Dot, Curve]], metric: str, by: str, mode: str) -> Figure | None:
    """The metric of every trial over the steps; the best ones in colour and named, the others muted.

    Args:
        found: of each trial its curve; those without points are left out.
        by, mode: what the trials are ranked by, and whether it is to be "max" or "min".
    """
    told = [(dot, curve) for dot, curve in found if len(curve.steps)]
    if not any(len(curve.steps) > 1 for _, curve in told):  # one number each: the table of trials has them
        return None
    sign = -1.0 if mode == "max" else 1.0
    told.sort(key=lambda item: (item[0].value is None, sign * (item[0].value or 0.0)))
    most = min(MOST, max(FEWEST, BUDGET // len(told)))
    data = []
    for rank, (dot, curve) in reversed(list(enumerate(told))):  # the best is drawn last, over the others
        kept = thin(curve.values, most)
        named = rank < NAMED and dot.value is not None
        data.append({
            "type": "scatter", "mode": "lines+markers" if len(kept) == 1 else "lines", "name": text(dot.label, 60),
            "x": numbers(curve.steps[kept]), "y": numbers(curve.values[kept]), "showlegend": named,
            "opacity": 1 if named else 0.5, "legendrank": rank,
            "line": {"width": 3 if rank == 0 and named else 1.5 if named else 1,
                     "color": PALETTE[rank % len(PALETTE)] if named else "muted"},
            "hovertemplate": "%{fullData.name}<br>step %{x}: %{y:.5g}<extra></extra>",
        })  # fmt: skip
    positive = spans(np.concatenate([curve.values for _, curve in told]))
    layout = {"xaxis": {"title": {"text": "step"}}, "yaxis": {"title": {"text": text(metric)}}, "hovermode": "closest",
              "showlegend": True}  # fmt: skip
    first = told[0][0]
    tied = sum(dot.value == first.value for dot, _ in told)
    which = f"the best by {by}" if tied == 1 else f"one of {tied} with the best {by}"
    best = f"; {first.label}, {which}, is drawn thick" if first.value is not None else ""
    return Figure(metric, f"{metric} of {len(told)} trials{best}.", data, layout, height=440, log=positive, wide=True)


def pareto(points: Sequence[Mapping[str, Any]], front: Sequence[int], pair: Sequence[str], main: str) -> Figure | None:
    """All points by two metrics, those that none is better than in both drawn as a line."""
    from bigctl.sweeps.trials import label

    def value(point: Mapping[str, Any], metric: str) -> float | None:
        found = (point.get("metrics") or {}).get(metric)
        mean = found.get("mean") if isinstance(found, Mapping) else found
        return point.get("mean") if mean is None and metric == main else mean

    places = [(value(point, pair[0]), value(point, pair[1])) for point in points]
    labels = [text(label(point.get("point") or {}), 80) for point in points]
    known = [k for k, (x, y) in enumerate(places) if x is not None and y is not None]
    best = sorted((k for k in front if k in known), key=lambda k: places[k][0] or 0.0)
    if not best:
        return None

    def trace(which: Sequence[int], **style: object) -> dict[str, Any]:
        return {"type": "scatter", "x": [number(places[k][0] or 0.0) for k in which],
                "y": [number(places[k][1] or 0.0) for k in which], "text": [labels[k] for k in which],
                "hovertemplate": "%{text}<br>%{x:.5g}, %{y:.5g}<extra></extra>", **style}  # fmt: skip

    data = [
        trace([k for k in known if k not in best], mode="markers", name="other points", marker={"color": "muted"}),
        trace(best, mode="lines+markers", name="Pareto set", marker={"size": 9, "color": PALETTE[1]},
              line={"shape": "linear", "width": 1, "dash": "dot", "color": PALETTE[1]}),
    ]  # fmt: skip
    layout = {"xaxis": {"title": {"text": text(pair[0])}}, "yaxis": {"title": {"text": text(pair[1])}},
              "hovermode": "closest"}  # fmt: skip
    caption = f"{len(best)} of {len(known)} points are such that none is better in both {pair[0]} and {pair[1]}."
    return Figure("Pareto set", caption, data, layout, height=380)
