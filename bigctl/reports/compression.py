"""What `bigctl compress` has found out about the layers of a network, as figures of the page of the run it made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bigctl.reports.plots import PALETTE, Figure, numbers, shown, text


def figures(told: Mapping[str, Any]) -> list[Figure]:
    """Of `compression` in a summary; nothing of a run that was not compressed. Raises ValueError and the like for what
    is none of ours."""
    found = []
    if measured := told.get("sensitivity"):
        before = float(measured["loss"])
        changes = {str(name): float(loss) - before for name, loss in measured["layers"].items()}
        title = "Sensitivity of each layer"
        rows = f"{int(measured['rows']):,} validation {text(measured.get('unit', 'rows'))}"
        said = f"What the loss changes by, on {rows}, where this layer alone is compressed"
        found.append(_bars(title, said, changes, before))
    if without := told.get("loss_without_layer"):
        least = min(map(float, without))
        changes = {f"layer {number}": float(loss) - least for number, loss in enumerate(without)}
        said = "What the loss on rows of the training split is above the least, where this layer alone is left out"
        found.append(_bars("Layers that can be done without", said, changes, least))
    return found


def _bars(title: str, said: str, changes: Mapping[str, float], loss: float) -> Figure:
    names, values = [text(name) for name in changes], list(changes.values())
    worst = max(changes, key=lambda name: changes[name]) if changes else ""
    caption = f"{said}; it is {shown(loss)} otherwise. The most: {worst}, {shown(changes.get(worst))}."
    data = [
        {
            "type": "bar", "orientation": "h", "y": names[::-1], "x": numbers(values)[::-1],
            "marker": {"color": PALETTE[0]}, "hovertemplate": "%{y}: %{x:+.4g}<extra></extra>",
        }
    ]  # fmt: skip
    layout = {"showlegend": False, "xaxis": {"title": {"text": "change of the loss"}}, "yaxis": {"automargin": True}}
    return Figure(title, caption, data, layout, height=120 + 22 * len(names), wide=True)
