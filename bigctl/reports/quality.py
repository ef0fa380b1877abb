"""How scores tell classes apart, and how far probabilities are to be believed, as figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bigctl.reports.plots import PALETTE, Figure, numbers, shown, text


def figures(curves: Mapping[str, Any]) -> list[Figure]:
    """The figures of `curves` of a summary, see `recipes.curves.described`; raises for what is none."""
    found = []
    positive = str(curves.get("positive") or "the positive class")
    if roc := curves.get("roc"):
        found.append(_roc(roc["false_positive_rate"], roc["true_positive_rate"], positive))
    if pairs := curves.get("precision_recall"):
        found.append(_precision_recall(pairs["recall"], pairs["precision"], positive, float(curves["share_positive"])))
    if several := curves.get("one_vs_rest"):
        found += [_of_classes(several, *each) for each in _SEVERAL]
    if bins := curves.get("reliability"):
        found.append(_reliability(bins, curves.get("positive")))
    return found


def _unit(title: str) -> dict[str, Any]:
    return {"title": {"text": title}, "range": [-0.02, 1.02], "zeroline": False}


def _line(x: Sequence[float], y: Sequence[float], *, name: str, shape: str = "linear", told: str) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "lines", "name": name, "x": numbers(x), "y": numbers(y),
        "line": {"width": 2, "color": PALETTE[0], "shape": shape}, "hovertemplate": f"{told}<extra></extra>",
    }  # fmt: skip


def _reference(x: Sequence[float], y: Sequence[float], name: str) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "lines", "name": name, "x": list(x), "y": list(y), "hoverinfo": "skip",
        "line": {"width": 1, "dash": "dot", "color": "muted"},
    }  # fmt: skip


def _roc(false: Sequence[float], true: Sequence[float], positive: str) -> Figure:
    area = float(np.trapezoid(true, false))
    at = float(np.interp(0.1, false, true))
    data = [
        _reference((0, 1), (0, 1), "chance"),
        _line(false, true, name="ROC", told="%{x:.1%} false, %{y:.1%} true positives"),
    ]
    layout = {"xaxis": _unit("false positive rate"), "yaxis": _unit("true positive rate"), "showlegend": False}
    caption = (
        f"ROC curve of {positive}: the area under it is {shown(area)}; where one in ten of the others is taken for it, "
        f"{at:.0%} of its examples are found."
    )
    return Figure("ROC curve", caption, data, layout, height=320)


def _precision_recall(recall: Sequence[float], precision: Sequence[float], positive: str, share: float) -> Figure:
    kept = float(np.max(np.where(np.asarray(precision) >= 0.9, recall, 0.0)))
    data = [
        _reference((0, 1), (share, share), "chance"),
        _line(
            recall, precision, name="precision", shape="hv", told="recall %{x:.1%}, precision %{y:.1%}<extra></extra>"
        ),
    ]
    layout = {"xaxis": _unit("recall"), "yaxis": _unit("precision"), "showlegend": False}
    caption = (
        f"Precision and recall of {positive}, which {share:.0%} of the examples are: at a precision of 90% "
        f"the recall is {kept:.0%}."
    )
    return Figure("Precision and recall", caption, data, layout, height=320)


_SEVERAL = (
    ("ROC curves", "roc", "roc_auc", "false positive rate", "true positive rate", "area under the ROC curve"),
    ("Precision and recall", "precision_recall", "average_precision", "recall", "precision", "average precision"),
)
"""Heading, curves and numbers in `recipes.curves.one_vs_rest`, axes, and what the numbers are."""


def _of_classes(found: Mapping[str, Any], title: str, key: str, by: str, x: str, y: str, measure: str) -> Figure:
    """Of several classes the mean curve, and those of the worst: of a hundred lines none could be told from another."""
    areas = {str(each["name"]): float(each[by]) for each in found["classes"] if each[by] is not None}
    data = [_reference((0, 1), (0, 1), "chance") | {"showlegend": False}] if key == "roc" else []
    lines = found[key]
    for number, line in enumerate(lines):
        name = None if line["name"] is None else str(line["name"])
        area = float(found[by]) if name is None else areas[name]
        label = "mean" if name is None else text(name, 12)
        trace = _line(
            line[x.replace(" ", "_")], line[y.replace(" ", "_")], name=f"{label} {area:.3f}",
            shape="linear" if key == "roc" else "hv", told=f"{label}: {x} %{{x:.1%}}, {y} %{{y:.1%}}",
        )  # fmt: skip
        if key == "roc":  # from none predicted on
            trace["x"], trace["y"] = [0, *trace["x"]], [0, *trace["y"]]
        trace["line"] |= {"width": 3 if name is None else 1.5, "color": PALETTE[number % len(PALETTE)]}
        data.append(trace | {"legendrank": number})
    data.append(data.pop(len(data) - len(lines)))  # the mean lies above the others
    worst = sorted(areas, key=lambda name: areas[name])[:3]
    told = ", ".join(f"{name} ({shown(areas[name])})" for name in worst)
    caption = (
        f"Each class against the rest: the mean {measure} of {len(areas)} classes is {shown(float(found[by]))}; "
        f"the lowest are {told}." + ("" if len(areas) < len(lines) else f" Drawn are the {len(lines) - 1} lowest.")
    )
    longest = max(len(str(each["name"])) for each in data)
    legend = {"entrywidth": 10 + 6 * min(longest, 24)}
    layout = {"xaxis": _unit(x), "yaxis": _unit(y), "showlegend": True, "legend": legend}
    return Figure(title, caption, data, layout, height=360)


def _reliability(bins: Mapping[str, Any], positive: object) -> Figure:
    said, share, count = bins["probability"], bins["share"], [int(n) for n in bins["count"]]
    largest = max(count, default=1)
    data = [
        _reference((0, 1), (0, 1), "as said"),
        {
            "type": "scatter", "mode": "lines+markers", "name": "came true", "x": numbers(said), "y": numbers(share),
            "line": {"width": 2, "color": PALETTE[0]},
            "marker": {"size": [round(5 + 9 * (n / largest) ** 0.5, 1) for n in count]},
            "customdata": count, "hovertemplate": "said %{x:.1%}, true %{y:.1%} of %{customdata}<extra></extra>",
        },
    ]  # fmt: skip
    of = f"of {positive}" if positive else "of the predicted class"
    layout = {
        "xaxis": _unit(text(f"probability {of}", 50)), "yaxis": _unit("share that is true"), "showlegend": False,
    }  # fmt: skip
    gaps = np.asarray(share, float) - np.asarray(said, float)
    mean = float((gaps * count).sum() / max(1, sum(count)))
    lean = (
        "too sure of itself"
        if mean < -0.02
        else "less sure than it could be"
        if mean > 0.02
        else "about right on the whole"
    )
    error = float(bins.get("error") or 0.0)
    tail = "" if positive else f": the model is {lean}"
    caption = f"Reliability: probabilities {of} are {shown(error)} from what comes true, on average{tail}."
    return Figure("Reliability", caption, data, layout, height=320)
