"""Plotly figures as JSON: what is drawn; page.js draws it in the colours of the reader's theme.

Colours are those of the palette, which stands out on white and on black, or names that page.js has two colours for:
"muted", "accent", and the colour scales "share" and "quality".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

PALETTE = ("#3b82f6", "#e07b16", "#16a34a", "#8b5cf6", "#db2777", "#0d9488", "#a16207", "#dc2626")
SPLITS = {"train": PALETTE[0], "val": PALETTE[1], "test": PALETTE[2]}
POINTS = 2000
"""Points of a curve that stands for itself; more than a screen is wide."""
SHOWN_CLASSES = 30
"""Up to so many classes each has its tick; up to two thirds of them counts are written into the matrix."""


@dataclass(frozen=True)
class Figure:
    """One plot with what is said about it.

    Attributes:
        title: a heading, plain text.
        caption: what it shows, in a sentence, for those who do not see it too.
        data, layout: as Plotly has them.
        height: in pixels.
        log: whether a logarithmic y axis makes sense, see `spans`.
        wide: whether it takes the whole width of the page.
        least: pixels that it is wide at least: on a narrow screen it is scrolled.
        brush: whether a selection in it fades the lines that do not go through.
    """

    title: str
    caption: str
    data: list[dict[str, Any]]
    layout: dict[str, Any] = field(default_factory=dict)
    height: int = 280
    log: bool = False
    wide: bool = False
    least: int = 0
    brush: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"data": self.data, "layout": {"height": self.height, **self.layout}, "brush": self.brush}


def number(value: float) -> float | int | None:
    """Six significant digits are more than a screen shows; None for what is not finite."""
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) and abs(value) < 1e15 else float(f"{value:.6g}")


def numbers(values: Iterable[float]) -> list[float | int | None]:
    return [number(value) for value in values]


def text(value: str, most: int = 40) -> str:
    """A name as Plotly shows it, which takes <b> and the like for markup; a long one is cut."""
    short = value if len(value) <= most else value[: most - 1] + "…"
    return " ".join(short.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").split())


def shown(value: float | None) -> str:
    """A number in a sentence."""
    if value is None or not math.isfinite(value):
        return "not finite"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def spans(values: np.ndarray | Sequence[float]) -> bool:
    """Whether all finite values are positive and the largest is some times the smallest."""
    found = np.asarray(values, np.float64)
    found = found[np.isfinite(found)]
    return bool(len(found)) and bool(found.min() > 0) and bool(found.max() >= 3 * found.min())


# ------------------------------------------------------------------------------------------------------ parts of a run


def times(seconds: Mapping[str, float]) -> Figure | None:
    """Where the time of a process went, as one bar. `wall` is all of it; what no part says is start-up and test."""
    parts = {name.replace("_", " "): float(s) for name, s in seconds.items() if name != "wall" and _positive(s)}
    wall = seconds.get("wall")
    if _positive(wall) and float(wall or 0) > sum(parts.values()):
        parts["start-up and test"] = float(wall or 0) - sum(parts.values())
    if not parts:
        return None
    whole = sum(parts.values())
    hover = {name: f"{name}: {value:.2f} s, {value / whole:.0%}" for name, value in parts.items()}
    data, layout = one_bar({name: round(value, 3) for name, value in parts.items()}, hover, "seconds")
    told = ", ".join(f"{name} {value:.1f} s ({value / whole:.0%})" for name, value in parts.items())
    return Figure("Time", f"{whole:.1f} s: {told}.", data, layout, height=220, wide=True)


def one_bar(
    parts: Mapping[str, float], hover: Mapping[str, str], unit: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Data and layout of the parts of a whole, one behind the other in one bar; `hover` says more of each."""
    data = [
        {
            "type": "bar", "orientation": "h", "name": name, "y": [""], "x": [value],
            "marker": {"color": PALETTE[number % len(PALETTE)]}, "hovertemplate": f"{hover[name]}<extra></extra>",
        }
        for number, (name, value) in enumerate(parts.items())
    ]  # fmt: skip
    layout = {
        "barmode": "stack", "showlegend": True, "hovermode": "closest", "xaxis": {"title": {"text": unit}},
        "yaxis": {"visible": False, "fixedrange": True}, "bargap": 0.2,
        "legend": {"traceorder": "normal", "entrywidth": 106},
    }  # fmt: skip
    return data, layout


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


def confusion(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """Counts [true class, predicted class], coloured by their share of the true class."""
    count = len(matrix)
    names = [text(name, 14) for name in classes]
    totals = matrix.sum(1, keepdims=True)
    share = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    trace: dict[str, Any] = {
        "type": "heatmap", "z": [numbers(row) for row in share.round(4)],
        "text": [[f"{int(n)}" if n else "" for n in row] for row in matrix],
        "zmin": 0, "zmax": 1, "colorscale": "share", "showscale": count > SHOWN_CLASSES * 2 // 3,
        "colorbar": {"thickness": 10, "tickformat": ".0%"}, "xgap": 1 if count <= SHOWN_CLASSES else 0,
        "ygap": 1 if count <= SHOWN_CLASSES else 0,
        "customdata": [[f"{true} as {guess}: {int(matrix[t, p])}" for p, guess in enumerate(names)]
                       for t, true in enumerate(names)],
        "hovertemplate": "%{customdata}, %{z:.1%} of the true class<extra></extra>",
    }  # fmt: skip
    if count <= SHOWN_CLASSES * 2 // 3:
        trace |= {"texttemplate": "%{text}", "textfont": {"size": 12 if count <= 12 else 10}}
    every = -(-count // SHOWN_CLASSES)
    ticks = {"tickmode": "array", "tickvals": list(range(0, count, every)), "ticktext": names[::every]}
    layout = {
        "xaxis": {"title": {"text": "predicted"}, **ticks, "side": "bottom", "showgrid": False, "zeroline": False},
        "yaxis": {"title": {"text": "true"}, **ticks, "autorange": "reversed", "showgrid": False, "zeroline": False},
        "hovermode": "closest",
    }  # fmt: skip
    hits, whole = int(np.trace(matrix)), int(matrix.sum())
    worst = _confused(matrix)[:3]
    told = "; ".join(f"{classes[t]} is taken for {classes[p]} ({n})" for n, t, p in worst)
    caption = f"{hits:,} of {whole:,} examples are on the diagonal." + (f" Most often, {told}." if told else "")
    height = min(760, max(300, 130 + 34 * count if count <= 20 else 130 + 7 * count))
    return Figure("Confusion matrix", caption, [trace], layout, height=height)


def _confused(matrix: np.ndarray) -> list[tuple[int, int, int]]:
    """(count, true class, predicted class) of all mistakes, the most frequent first."""
    found = [(int(matrix[t, p]), int(t), int(p)) for t, p in np.argwhere(matrix > 0) if t != p]
    return sorted(found, key=lambda item: (-item[0], item[1], item[2]))


def per_class(matrix: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Precision, recall, F1 and count of each class, and what it is taken for most often."""
    rows = []
    for k, name in enumerate(classes):
        true, predicted, hits = int(matrix[k].sum()), int(matrix[:, k].sum()), int(matrix[k, k])
        others = matrix[k].copy()
        others[k] = 0
        rows.append({
            "name": name, "count": true, "precision": hits / predicted if predicted else None,
            "recall": hits / true if true else None, "f1": 2 * hits / (true + predicted) if true + predicted else None,
            "taken_for": f"{classes[int(others.argmax())]} ({int(others.max())})" if others.max() > 0 else "",
        })  # fmt: skip
    return rows
