"""The page of an export: what it was made from, what it holds, how it does, and what its rounding costs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bigctl.errors import BigctlError
from bigctl.formatting import number, size
from bigctl.reports import page, plots, quality
from bigctl.runs.export_info import gather_export_info
from bigctl.runs.exports import Export
from bigctl.runs.verify_export import verify_export

if TYPE_CHECKING:
    from bigctl.inference.scored import Evaluation

_TIMES = re.compile(r"batch (\d+): ([\d.e+-]+) -> ([\d.e+-]+) ms \(p99 ([\d.e+-]+) -> ([\d.e+-]+), (\d+) in turns\)")


def export_page(export: Export, scored: Evaluation | None, runtime: str, said: Sequence[str], command: str) -> str:
    """The whole HTML, which asks nothing of any network.

    Args:
        export: the folder.
        scored: how it does on the test split; None where that is not known.
        runtime: what computed that.
        said: why it is not known, or in what it is not what its run is told.
        command: that made the page.
    """
    known, verified = gather_export_info(export), verify_export(export)
    figures: dict[str, plots.Figure] = {}
    scores: list[list[str]] = []
    if scored is not None:
        scores, figures = _scores(scored, _summary(export)), _figures(scored, known["classes"] or [])
    about = [known["format"], known["weights"], size(known["bytes"]), f"computed by {runtime}" if runtime else ""]
    listed = {} if export.sealed or verified.problems else export.sums()
    files = [[name, size(count), listed.get(name, "")] for name, count in known["files"].items()]
    return page.render(
        "export.html",
        figures,
        name=export.shown.resolve().name,
        known=known,
        told=[", ".join(filter(None, about)), known["said"], known["compared"]],
        look=dict.fromkeys([*verified.problems, *known["notes"], *said]),
        scores=scores,
        mistakes=_mistakes(scored),
        rounded=[line for line in known["rounded"] if not _TIMES.search(line)],
        times=[list(found.groups()) for line in known["rounded"] if (found := _TIMES.search(line))],
        files=files,
        command=command,
    )


def _summary(export: Export) -> Mapping[str, Any]:
    """The scores of the very checkpoint that it was made from, as its run was told them; else nothing."""
    try:
        if export.origin.run is None or not export.origin.same:
            return {}
        summary = export.origin.run.summary()
        return dict(summary["metrics"]) if summary.get("selected_step") == export.origin.step else {}
    except (BigctlError, KeyError, TypeError, ValueError):
        return {}


def _scores(scored: Evaluation, of_run: Mapping[str, Any]) -> list[list[str]]:
    """Rows of name, value, that of the run, and the difference."""
    rows = []
    for name, value in sorted(scored.metrics.items()):
        if isinstance(value, int | float):
            before = of_run.get(name)
            beside = [number(before), f"{value - before:+.2g}"] if isinstance(before, int | float) else ["-", "-"]
            rows.append([name, number(value), *beside])
    return rows


def _figures(scored: Evaluation, classes: Sequence[str]) -> dict[str, plots.Figure]:
    found = quality.figures(scored.curves)
    if (matrix := scored.metrics.get("test/confusion")) is not None and len(matrix) == len(classes):
        found = [plots.confusion(np.asarray(matrix), classes), *found]
    return {f"figure-{number}": figure for number, figure in enumerate(found)}


def _mistakes(scored: Evaluation | None) -> list[list[str]]:
    """Rows of loss, place, what is true and what was predicted, and the text."""
    rows = []
    for each in scored.errors if scored is not None else ():
        text = " | ".join(str(each[name]) for name in ("text", "text_pair") if name in each)
        place = each.get("origin") or f"row {each['row']}"
        rows.append([number(each["loss"]), str(place), *map(_names, (each["label"], each["predicted"])), text[:300]])
    return rows


def _names(label: str | Sequence[str | None]) -> str:
    """Of tags some may be of words that were cut off."""
    return label if isinstance(label, str) else ", ".join(name or "-" for name in label) or "(none)"
