"""What is said of an explanation, on a terminal and on a page alike. Nothing heavy at import."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bigctl.inference.explaining.asked import Explanation


def headline(each: Explanation) -> str:
    """Where an example comes from, what is predicted of it, and what is explained."""
    details, found, output = each.details, each.prediction, each.attribution.output
    place = " ".join(str(details[name]) for name in ("file", "split") if name in details)
    row = f" row {details['row']}" if "row" in details else ""
    told = found.get("label", found.get("labels", found.get("value")))
    said = f"predicted {told}"
    if isinstance(probability := found.get("probability"), float):
        said += f" ({probability:.3f})"
    true = f", truly {details['true']}" if "true" in details else ""
    what = "" if output is None or output.name is None else f"; explained: {output.name}"
    return f"{(place + row).strip()}{': ' if place else ''}{said}{true}{what}"


def about(each: Explanation, *, notes: bool = True) -> list[str]:
    """How values came about, and what is to be known of them."""
    found = each.attribution
    parts = [found.method]
    if found.points is not None and found.completeness is not None:
        parts.append(f"{found.points} points, completeness error {found.completeness:.1e}")
    if found.output is not None:
        base = "" if found.baseline_score is None else f", baseline {found.baseline_score:.4f}"
        parts.append(f"{found.output.unit} {found.score:.4f}{base}")
    lines = ["; ".join(parts)]
    if found.baseline is not None:
        lines.append(f"baseline: {found.baseline}")
    return [*lines, *(f"note: {note}" for note in found.notes)] if notes else lines
