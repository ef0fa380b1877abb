"""What `bigctl eval` has found out about a run beyond its metrics, as tables and figures of its page."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bigctl.inference import kept
from bigctl.reports import pictures
from bigctl.reports.plots import PALETTE, Figure, numbers, shown
from bigctl.runs import untrusted
from bigctl.runs.directory import RunDirectory

_SIDE = 1024
"""Of a picture, at most [pixels]."""


@dataclass(frozen=True)
class Table:
    """A table with what is said of it."""

    title: str
    caption: str
    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Picture:
    """An image as a data URI, and what it shows."""

    image: str
    caption: str


@dataclass(frozen=True)
class Trust:
    """What a page shows of `assessment.json`."""

    step: int
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)


def of_run(run: RunDirectory) -> Trust | None:
    """Of a run that has been assessed. Raises ValueError and the like for a file that is none of ours."""
    if not run.assessment.exists():
        return None
    read = untrusted.read(run.assessment, kept.SHAPE)
    found, trust = read["found"], Trust(int(read["step"]))
    trust.tables.extend(_slices(each) for each in found.get("slices", ()))
    if told := found.get("ood"):
        trust.tables.append(_ood(told))
    if told := found.get("overall"):
        _overall(trust, told)
    if told := found.get("audit"):
        trust.figures.append(_audit(told))
    for each in found.get("robust", ()):
        if "rows" in each:
            trust.tables.append(_changed(each))
            continue
        trust.figures.append(_robust(each))
        trust.notes.extend(f"Masked gradients ({each['norm']}): {said}" for said in each["warnings"])
        trust.pictures.extend(_pair(example) for example in each["worst"] if "pixels" in example)
    return trust


def _robust(found: Mapping[str, Any]) -> Figure:
    """Accuracy by eps: under all attacks, and under those that were tried by themselves."""
    points, clean = found["points"], float(found["clean"])
    eps = [0.0, *(float(point["eps"]) for point in points)]
    curves = {"all attacks": [clean, *(float(point["robust"]) for point in points)]}
    for name in ("FGSM", "PGD"):
        curves[f"{name} alone"] = [clean, *(float(point["alone"][name]) for point in points)]
    data = [
        {
            "type": "scatter", "mode": "lines+markers", "name": name, "x": numbers(eps), "y": numbers(values),
            "line": {"width": 3 if name == "all attacks" else 1.5, "color": PALETTE[place]},
            "hovertemplate": f"{name}, eps %{{x}}: %{{y:.1%}}<extra></extra>",
        }
        for place, (name, values) in enumerate(curves.items())
    ]  # fmt: skip
    last = points[-1]
    low, high = last["interval"]
    caption = (
        f"Of {int(found['count']):,} {found['split']} examples {clean:.1%} are right; {float(last['robust']):.1%} "
        f"({float(low):.1%} to {float(high):.1%}) where each may move by {float(last['eps']):g} in {found['norm']}."
    )
    axes = {"title": {"text": "accuracy"}, "range": [-0.02, 1.02], "zeroline": False}
    layout = {"xaxis": {"title": {"text": f"eps ({found['norm']})"}}, "yaxis": axes, "showlegend": True}
    return Figure(f"Under attack, {found['norm']}", caption, data, layout, height=320)


def _audit(found: Mapping[str, Any]) -> Figure:
    """Members that are found by those that are wrongly taken for such, and what that proves."""
    lines = [
        (str(each["name"]), [float(x) for x, _ in each["roc"]], [float(y) for _, y in each["roc"]], PALETTE[place])
        for place, each in enumerate(found["attacks"])
    ]
    data = [
        {
            "type": "scatter", "mode": "lines", "name": name, "x": numbers(x), "y": numbers(y),
            "line": {"width": 2, "color": colour},
            "hovertemplate": f"{name}, %{{x:.1%}} false: %{{y:.1%}}<extra></extra>",
        }
        for name, x, y, colour in [*lines, ("by chance", [0.0, 1.0], [0.0, 1.0], "#999999")]
    ]  # fmt: skip
    proven, promise = found["proven"], found.get("promise")
    said = [f"promised: {shown(float(promise['epsilon']))}" if promise else "nothing was promised"]
    if proven:
        at = f"{float(proven['confidence']):.0%} confidence"
        said.insert(0, f"epsilon is at least {shown(float(proven['epsilon']))} at {at}")
    if by := found.get("canaries"):
        said.insert(0, f"by {int(by['count']):,} canaries epsilon is at least {shown(float(by['epsilon']))}")
    areas = ", ".join(f"{each['name']} {float(each['auc']):.3f}" for each in found["attacks"])
    caption = f"Area under the curve: {areas or 'too few examples'}; {'; '.join(said)}."
    axes = [{"title": {"text": text}, "range": [-0.01, 1.01]} for text in ("others taken for members", "members found")]
    layout = {"xaxis": axes[0], "yaxis": axes[1], "showlegend": True}
    return Figure("Who was trained on", caption, data, layout, height=320)


def _changed(found: Mapping[str, Any]) -> Table:
    rows = []
    for each in found["rows"]:
        name = f"{each['name']} {int(each['severity'])}" if "severity" in each else str(each["name"])
        told = [shown(float(each[key])) if key in each else "" for key in ("clean", "accuracy", "changed")]
        rows.append([name, *told])
    caption = (
        f"{int(found['count']):,} {found['split']} examples, {float(found['clean']):.1%} of them right as they are."
    )
    return Table(f"Under {found['norm']}", caption, ["change", "as they are", "accuracy", "other answers"], rows)


def _pair(example: Mapping[str, Any]) -> Picture:
    """A picture before and after an attack. Raises ValueError for what is none."""
    pixels = _pixels(example)
    scale = max(1, 64 // len(pixels))
    shown = pixels.repeat(scale, 0).repeat(scale, 1)
    said = (
        f"row {int(example['row'])}, a {example['label']}, is a {example['predicted']} at eps {float(example['eps']):g}"
    )
    return Picture(pictures.picture(shown), said)


def _pixels(stored: Mapping[str, Any]) -> np.ndarray:
    """A picture that is kept, uint8 [height, width, channels]. Raises ValueError for what is none."""
    height, width, channels = (int(side) for side in stored["shape"])
    if not (0 < height <= _SIDE and 0 < width <= 2 * _SIDE and channels in (1, 3)):
        raise ValueError("is no picture")
    return np.frombuffer(base64.b64decode(stored["pixels"]), np.uint8).reshape(height, width, channels)


def _overall(trust: Trust, found: Mapping[str, Any]) -> None:
    """What the model goes by: columns and their values, words or patches by class."""
    if found["kind"] == "table":
        trust.tables.append(_importance(found["importance"]))
        trust.figures.extend(_dependence(each, found) for each in found["dependence"])
    about = f"{int(found['examples']):,} {found['split']} examples"
    for name, told in found.get("classes", {}).items():
        if found["kind"] == "text":
            trust.tables.append(_words(str(name), told, about))
            continue
        values = np.asarray(told["adds"], np.float64)
        said = f"{name}: the mean of {int(told['examples']):,} pictures; what speaks for it is blue, against it red"
        trust.pictures.append(Picture(pictures.tinted(_pixels(told["mean"]), values), said))
        for each in told["patches"]:
            said = (
                f"{name}: around the strongest patch of row {int(each['row'])}, which adds {float(each['adds']):+.3g}"
            )
            trust.pictures.append(Picture(pictures.enlarged(_pixels(each["around"])), said))


def _importance(found: Mapping[str, Any]) -> Table:
    columns = sorted(found["columns"], key=lambda each: -float(each["importance"]))
    rows = []
    for each in columns:
        low, high = (float(end) for end in each["interval"])
        rows.append([str(each["column"]), shown(float(each["importance"])), f"{shown(low)} to {shown(high)}"])
    caption = (
        f"By how much the {found['what']} of {int(found['examples']):,} {found['split']} examples, "
        f"{shown(float(found['loss']))}, grows where a column is shuffled."
    )
    return Table("Columns that matter", caption, ["column", "grows by", "95% interval"], rows)


def _dependence(each: Mapping[str, Any], found: Mapping[str, Any]) -> Figure:
    """Mean answers by the value of a column."""
    grid = each["grid"]
    ordered = all(isinstance(value, int | float) for value in grid)
    data = [
        {
            "type": "scatter", "mode": "lines+markers" if ordered else "markers", "name": str(name),
            "x": numbers(grid) if ordered else [str(value) for value in grid], "y": numbers(map(float, values)),
            "line": {"width": 2, "color": PALETTE[place % len(PALETTE)]},
            "hovertemplate": f"{name}, %{{x}}: %{{y:.4g}}<extra></extra>",
        }
        for place, (name, values) in enumerate(each["answers"].items())
    ]  # fmt: skip
    what = "value" if [*each["answers"]] == ["value"] else "probability"
    column, size = str(each["column"]), int(found["examples"])
    caption = f"Mean {what} where all of {size:,} {found['split']} rows had this {column} (partial dependence)."
    layout = {"xaxis": {"title": {"text": column}}, "yaxis": {"title": {"text": what}}, "showlegend": len(data) > 1}
    return Figure(f"Answers by {column}", caption, data, layout)


def _words(name: str, told: Mapping[str, Any], about: str) -> Table:
    rows = [
        [str(each["word"]), f"{float(each['adds']):+.3f}", f"{int(each['texts']):,}"]
        for each in (*told["for"], *told["against"][::-1])
    ]
    caption = f"What words add to its logit on average, in the {int(told['examples']):,} of {about} taken for it."
    return Table(f"Words of {name}", caption, ["word", "adds", "texts"], rows)


def _slices(found: Mapping[str, Any]) -> Table:
    main = str(found["headline"])
    rows = []
    for each in found["slices"]:
        low, high = each["intervals"].get(main) or (float("nan"), float("nan"))
        rows.append(
            [str(each["name"]), f"{int(each['count']):,}", shown(float(each["metrics"][main])),
             f"{shown(float(low))} to {shown(float(high))}", shown(float(each["p"]))]
        )  # fmt: skip
    worse = ", ".join(map(str, found["worse"]))
    said = f"worse than the other examples: {worse}" if worse else "none is worse than the other examples"
    caption = f"{main} of all: {shown(float(found['whole']))}; {said} (p < 0.05, corrected for {len(rows)} slices)"
    return Table(f"By {found['by']}", f"{caption}.", ["slice", "examples", main, "95% interval", "p"], rows)


def _ood(found: Mapping[str, Any]) -> Table:
    names = ("auroc", "fpr95", "threshold", "flagged", "own_flagged")
    rows = [[str(each["score"]), *(shown(float(each[name])) for name in names)] for each in found["scores"]]
    caption = (
        f"{int(found['count']):,} examples of {found['data']} beside {int(found['own_count']):,} of {found['split']}; "
        "thresholds let 95% of the validation examples pass."
    )
    header = ["score", "AUROC", "FPR at 95%", "threshold", "flagged", "own flagged"]
    return Table("Examples from elsewhere", caption, header, rows)
