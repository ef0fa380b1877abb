"""Explanations on a terminal: tokens in colour where there are colours, and numbers."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from bigctl import terminal
from bigctl.cli import render
from bigctl.inference.explaining import wording

if TYPE_CHECKING:
    from bigctl.inference.explaining.asked import Explanation
    from bigctl.inference.explaining.texts import TextExplanation

_FOR, _AGAINST = (17, 18, 19, 20, 26, 27), (52, 88, 124, 160, 196, 196)
"""Backgrounds of 256 colours, from faint to strong: blue speaks for a class, red against it."""


def show(each: Explanation) -> None:
    """One explanation, in several lines."""
    from bigctl.inference.explaining.texts import TextExplanation

    print(terminal.one_line(wording.headline(each)))
    for line in wording.about(each):
        render.print_wrapped(f"  {terminal.one_line(line)}")
    if isinstance(each, TextExplanation):
        _show_text(each)


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
