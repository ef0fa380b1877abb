"""What is said of an explanation, on a terminal and on a page alike. Nothing heavy at import."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bigctl.inference.explaining.asked import Explanation
    from bigctl.inference.explaining.images import ImageExplanation
    from bigctl.inference.explaining.tables import TableExplanation

_CELLS = 8
"""Rows and columns, at most, that the places of a picture are told in."""


def headline(each: Explanation) -> str:
    """Where an example comes from, what is predicted of it, and what is explained."""
    details, found, output = each.details, each.prediction, each.attribution.output
    place = " ".join(str(details[name]) for name in ("file", "split") if name in details)
    row = f" row {details['row']}" if "row" in details else ""
    told = found.get("label", found.get("labels", found.get("value")))
    said = f"predicted {told if str(told).strip() else repr(told)}"  # a token may be a space
    if isinstance(probability := found.get("probability"), float):
        said += f" ({probability:.3f})"
    true = f", truly {details['true']}" if "true" in details else ""
    what = (
        ""
        if output is None or output.name is None
        else f"; explained: {output.name if output.name.strip() else repr(output.name)}"
    )
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


def nearest(each: Explanation) -> list[str]:
    """The nearest training examples, where they were asked for, in lines."""
    if "nearest" not in each.details:
        return []
    lines = [f"nearest of {each.details['nearest_among']}, by the cosine of what the last layer reads:"]
    for one in each.details["nearest"]:
        cells = ", ".join(f"{name} {cell}" for name, cell in [*one.get("cells", {}).items()][:6])
        true = "" if "true" not in one else f"  {one['true']}"
        lines.append(f"  {one['cosine']:.3f}  row {one['row']}{true}  {one.get('text', cells)}".rstrip())
    return lines


def places(each: ImageExplanation) -> list[tuple[str, float]]:
    """Parts of a picture with what they add in total, or of Grad-CAM on average; the strongest first."""
    values, (height, width) = each.attribution.values, each.pixels.shape[:2]
    rows, columns = (min(_CELLS, size) for size in values.shape)
    found = []
    for row in range(rows):
        for column in range(columns):
            top, bottom = (n * values.shape[0] // rows for n in (row, row + 1))
            left, right = (n * values.shape[1] // columns for n in (column, column + 1))
            part = values[top:bottom, left:right]
            value = float(part.sum() if each.attribution.baseline is not None else part.mean())
            down = _span("row", top * height // values.shape[0], bottom * height // values.shape[0])
            across = _span("column", left * width // values.shape[1], right * width // values.shape[1])
            found.append((f"{down}, {across}", value))
    return sorted(found, key=lambda one: -abs(one[1]))


def _span(name: str, start: int, stop: int) -> str:
    return f"{name} {start}" if stop - start < 2 else f"{name}s {start}-{stop - 1}"


def columns(each: TableExplanation) -> list[tuple[str, str, float, float | None]]:
    """Name, cell, value and standard error of each column of a row; the strongest first."""
    values = each.attribution.values.tolist()
    errors = [None] * len(values) if each.errors is None else each.errors.tolist()
    found = zip(each.names, each.cells, values, errors, strict=True)
    return sorted(found, key=lambda one: -abs(one[2]))
