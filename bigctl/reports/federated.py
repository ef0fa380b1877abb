"""How the clients of a federated training are served, as a figure and a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bigctl.reports.plots import PALETTE, Figure, numbers, text
from bigctl.reports.trust import Table


def shown(found: Mapping[str, Any] | None) -> tuple[list[Figure], Table | None]:
    """The distribution of accuracies and who is served worst, of a summary's `federated`; nothing where it has none."""
    return ([_distribution(found)], _worst(found)) if found else ([], None)


def _distribution(found: Mapping[str, Any]) -> Figure:
    counts, told = [int(count) for count in found["histogram"]], found["accuracy"]
    width = 1 / len(counts)
    data = [
        {
            "type": "bar", "x": numbers((place + 0.5) * width for place in range(len(counts))), "y": counts,
            "width": width * 0.95, "marker": {"color": PALETTE[2]},
            "hovertemplate": "about %{x:.1%}: %{y} clients<extra></extra>",
        }
    ]  # fmt: skip
    caption = (
        f"Accuracy of {int(found['scored']):,} of {int(found['clients']):,} clients, each on its part of the test "
        f"split: {float(told['worst']):.1%} of the worst, {float(told['tenth']):.1%} or less for a tenth, "
        f"{float(told['median']):.1%} in the middle. The spread is {float(found['spread']):.3f}; if all were served "
        f"alike, parts of this size would have {float(found['spread_by_chance']):.3f} by chance."
    )
    axes = {"xaxis": {"title": {"text": "accuracy"}, "range": [-0.01, 1.01]}, "yaxis": {"title": {"text": "clients"}}}
    return Figure("Clients", caption, data, axes, height=280)


def _worst(found: Mapping[str, Any]) -> Table:
    rows = [
        [
            f"{int(each['client'])}", f"{float(each['accuracy']):.4f}", f"{int(each['scored']):,}",
            f"{int(each['examples']):,}", text(str(each["classes"]), 120),
        ]
        for each in found["worst"]
    ]  # fmt: skip
    header = ["client", "accuracy", "test examples", "training examples", "which are"]
    return Table("The worst served", "Clients by the accuracy of their part of the test split.", header, rows)
