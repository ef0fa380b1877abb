"""One page of explanations: tokens in colour, and all numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bigctl.inference.explaining import wording
from bigctl.inference.explaining.asked import Explanation
from bigctl.inference.explaining.images import ImageExplanation
from bigctl.inference.explaining.tables import TableExplanation
from bigctl.inference.explaining.texts import TextExplanation
from bigctl.inference.trained import TrainedRun
from bigctl.reports import page, pictures

FAINT = 0.03
"""Of the largest value: what is less is not coloured."""


def explanation_page(trained: TrainedRun, found: Sequence[Explanation]) -> str:
    """The whole HTML, which asks nothing of any network."""
    run = trained.run.path
    explained = [_shown(each, alone=len(found) == 1) for each in found]
    return page.render("explanation.html", {}, name=run.name, run=str(run), step=trained.step, explained=explained)


def _shown(each: Explanation, *, alone: bool) -> dict[str, Any]:
    """What the template shows of an example."""
    shown = {
        "title": wording.headline(each),
        "notes": each.attribution.notes,
        "texts": [],
        "pictures": [],
        "rows": [],
        "open": alone,
    }
    shown |= {"about": [*wording.about(each, notes=False), *wording.nearest(each)], "what": "token", "bars": False}
    if isinstance(each, ImageExplanation):
        rows = [{"name": name, "value": f"{value:+.4f}"} for name, value in wording.places(each)]
        drawn = [pictures.enlarged(each.pixels), pictures.tinted(each.pixels, each.attribution.values)]
        shown |= {"pictures": drawn, "rows": rows, "what": "place", "open": False}
    if isinstance(each, TableExplanation):
        shown |= {"rows": _columns(each), "what": "column", "bars": True, "open": True}
    if isinstance(each, TextExplanation):
        shown |= {"texts": [_spans(each, part) for part in range(len(each.texts))], "rows": _rows(each)}
    return shown


def share_of(value: float, largest: float) -> dict[str, Any]:
    """How strongly a value is shown, and on which side."""
    return {"side": "for" if value > 0 else "against", "share": round(abs(value) / (largest or 1.0), 3)}


def _rows(each: TextExplanation) -> list[dict[str, Any]]:
    values = each.attribution.values.tolist()
    named = [(piece.token, value) for piece, value in zip(each.pieces, values, strict=True)]
    named += [("(no word of the text)", each.rest)] if each.rest else []
    return [{"name": name, "value": f"{value:+.4f}"} for name, value in named]


def _columns(each: TableExplanation) -> list[dict[str, Any]]:
    largest = max(map(abs, each.attribution.values.tolist()), default=0.0)
    rows = []
    for name, cell, value, error in wording.columns(each):
        spread = "" if error is None else f" ± {error:.4f}"
        rows.append({"name": f"{name} = {cell}", "value": f"{value:+.4f}{spread}", **share_of(value, largest)})
    return rows


def _spans(each: TextExplanation, part: int) -> list[dict[str, Any]]:
    """A text in pieces: tokens with their values, and what is between them."""
    text, at, spans = each.texts[part], 0, []
    values = each.attribution.values.tolist()
    largest = max(map(abs, values), default=0.0)
    for piece, value in zip(each.pieces, values, strict=True):
        if piece.part != part or piece.start < at:
            continue
        shown = share_of(value, largest)
        told = f"{value:+.4f}" if shown["share"] >= FAINT else None
        spans.append({"text": text[at : piece.start], "value": None})
        spans.append({"text": text[piece.start : piece.end], "value": told, "token": piece.token, **shown})
        at = piece.end
    return [span for span in [*spans, {"text": text[at:], "value": None}] if span["text"]]
