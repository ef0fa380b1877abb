"""Explanations on a terminal: tokens in colour where there are colours, and numbers."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from bigctl import terminal
from bigctl.cli import render
from bigctl.inference.explaining import wording

if TYPE_CHECKING:
    from bigctl.inference.explaining.asked import Explanation
    from bigctl.inference.explaining.images import ImageExplanation
    from bigctl.inference.explaining.tables import TableExplanation
    from bigctl.inference.explaining.texts import TextExplanation
    from bigctl.training.task import Record

_FOR, _AGAINST = (17, 18, 19, 20, 26, 27), (52, 88, 124, 160, 196, 196)
"""Backgrounds of 256 colours, from faint to strong: blue speaks for a class, red against it."""


def show(each: Explanation) -> None:
    """One explanation, in several lines."""
    from bigctl.inference.explaining.images import ImageExplanation
    from bigctl.inference.explaining.tables import TableExplanation
    from bigctl.inference.explaining.texts import TextExplanation

    print(terminal.one_line(wording.headline(each)))
    for line in wording.about(each):
        render.print_wrapped(f"  {terminal.one_line(line)}")
    if isinstance(each, TextExplanation):
        _show_text(each)
    if isinstance(each, ImageExplanation):
        _show_places(each)
    if isinstance(each, TableExplanation):
        _show_columns(each)
    for line in wording.nearest(each):
        render.print_wrapped(f"  {terminal.one_line(line)}")


# --------------------------------------------------------------------------------------------------------------- texts


def _show_text(each: TextExplanation) -> None:
    if colours():
        for part, text in enumerate(each.texts):
            terminal.unescaped(sys.stdout).write(f"  {_coloured(each, part, text)}\n")
    values = each.attribution.values.tolist()
    rows = [(piece.token, value) for piece, value in zip(each.pieces, values, strict=True)]
    rows += [("(no word of the text)", each.rest)] if each.rest else []
    render.print_table(["  token", "adds"], [[f"  {name}", f"{value:+.4f}"] for name, value in rows])


def colours() -> bool:
    """Whether standard output is a terminal that shows colours, and nobody has asked for none (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in ("dumb", None)


def _coloured(each: TextExplanation, part: int, text: str) -> str:
    largest = max(map(abs, each.attribution.values.tolist()), default=0.0) or 1.0
    shown, at = "", 0
    for piece, value in zip(each.pieces, each.attribution.values.tolist(), strict=True):
        if piece.part != part or piece.start < at:
            continue
        shown += terminal.one_line(text[at : piece.start])
        shown += _painted(terminal.one_line(text[piece.start : piece.end]), value / largest)
        at = piece.end
    return shown + terminal.one_line(text[at:])


def _painted(text: str, share: float) -> str:
    if abs(share) < 0.05:
        return text
    palette = _FOR if share > 0 else _AGAINST
    return f"\x1b[97;48;5;{palette[min(len(palette) - 1, int(abs(share) * len(palette)))]}m{text}\x1b[0m"


# ---------------------------------------------------------------------------------------------------- images and tables

_WIDE = 24
"""Of a bar [characters]."""


def _show_places(each: ImageExplanation, most: int = 6) -> None:
    """The places of a picture that matter most."""
    from bigctl.inference.explaining.wording import places

    rows = [[f"  {name}", f"{value:+.4f}"] for name, value in places(each)[:most]]
    render.print_table(["  place, the strongest first", "adds"], rows)


def _show_columns(each: TableExplanation) -> None:
    from bigctl.inference.explaining.wording import columns

    rows = []
    largest = max(map(abs, each.attribution.values.tolist()), default=0.0)
    for name, cell, value, error in columns(each):
        spread = "" if error is None else f"+-{error:.4f}"
        rows.append([f"  {name}", cell, f"{value:+.4f}", spread, _bar(value, largest)])
    render.print_table(["  column", "is", "adds", "", ""], rows)


def show_importance(found: Record) -> None:
    """Which columns a model relies on, the most important first, as `Importance.to_json` tells it."""
    about = f"{found['what']} {found['loss']:.4f}; each column shuffled, seed {found['seed']}"
    print(f"{found['split']} split, {found['examples']:,} examples: {about}")
    columns = sorted(found["columns"], key=lambda each: -each["importance"])
    largest = columns[0]["importance"] if columns else 0.0
    rows = [
        [
            f"  {each['column']}",
            f"{each['importance']:+.4f}",
            "{:+.4f} to {:+.4f}".format(*each["interval"]),
            _bar(each["importance"], largest),
        ]
        for each in columns
    ]
    render.print_table(["  column", "loss grows by", "95% interval", ""], rows)


def show_check(found: dict[str, Any]) -> None:
    """How faithful explanations are."""
    from bigctl.inference.explaining.faithfulness import sentences

    for line in sentences(found):
        print(line)


def _bar(value: float, largest: float) -> str:
    """A bar as long as a value is of the largest, on a terminal alone."""
    length = round(_WIDE * abs(value) / largest) if largest > 0 and sys.stdout.isatty() else 0
    return ("#" if value > 0 else "-") * length
