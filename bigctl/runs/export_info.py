"""Everything known about an export without computing anything: for `bigctl info` and its page. Free of jax."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from bigctl.config import saved
from bigctl.errors import BigctlError
from bigctl.runs import run_info
from bigctl.runs.exports import Export

_ANSWER = ("onnx", "jax", "hf", "timm")
"""Formats with which bigctl labels examples."""
_WRITE = ("jax", "hf", "gguf")
"""Formats with which bigctl writes text."""


def gather_export_info(export: Export) -> dict[str, Any]:
    """What is known about an export; what cannot be read is None or empty, and a note says why.

    Its files are read against their digests.

    Raises:
        RunError: if the folder cannot be read.
    """
    files: dict[str, int] = export.files
    notes: list[str] = []
    known: dict[str, Any] = {
        "export": str(export.shown), "format": export.format, "weights": export.weights, "files": files,
        "sealed": export.sealed or export.near is not None,
        "bytes": sum(files.values()), "origin": None, "said": "", "compared": export.card.compared,
        "rounded": list(export.card.rounded), "metrics": dict(export.card.metrics), "notes": notes,
    }  # fmt: skip
    known |= dict.fromkeys(("recipe", "model", "data", "kind", "classes", "threshold", "plugins", "bigctl"))
    if export.sealed:
        notes.append("encrypted: what it is and what it was made from is told with the passphrase alone")
        return known
    try:
        known |= {"origin": export.origin.to_json(), "said": export.origin.said}
    except BigctlError as error:
        notes.append(str(error))
    try:
        known |= _of_settings(export.settings(), str(export.shown))
    except BigctlError as error:
        notes.append(str(error))
    try:
        said = " ".join(notes)
        untold = [name for name in export.damaged() if name not in said]
        notes += [f"{name} is damaged, cut short or missing: copy the folder again" for name in untold]
    except BigctlError as error:
        notes.append(str(error))
    return known


_GROUPS = ("recipe", "model", "data")


def _of_settings(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    config: Mapping[str, Any] = {}
    with contextlib.suppress(KeyError, TypeError, ValueError):
        config = saved.values(settings["config"], where=where)
    groups = {name: found if isinstance(found := config.get(name), Mapping) else {} for name in _GROUPS}
    kinds = {name: group.get("kind") for name, group in groups.items()}
    kinds["data"] = groups["data"].get("name") or kinds["data"]
    features = settings.get("features") or {}
    classes = (features.get("target") or {}).get("names") or features.get("classes") or []
    told = {"threshold": settings.get("decision"), "plugins": settings.get("plugins") or []}
    named = {"kind": features.get("kind"), "classes": classes, "bigctl": settings.get("bigctl")}
    return {**kinds, **named, **told}


def taken_by(known: Mapping[str, Any]) -> list[str]:
    """Commands that take an export, of which this is known."""
    answer = answering(known["format"], known["kind"], known["recipe"])
    return [f"bigctl {name}" for name in (*answer, "eval", "compare", "report", "verify", "info")]


def answering(form: str, kind: str | None, recipe: object) -> tuple[str, ...]:
    """Commands that a model answers with.

    Args:
        form: the format of the export.
        kind: of the examples; None where that cannot be known.
        recipe: that it was trained by.
    """
    if form == "encrypted":
        return ("predict", "generate", "serve")
    if kind == "stream":
        return ("generate", "serve") if form in _WRITE else ()
    answers = recipe is not None and form in _ANSWER and run_info.purpose_of(recipe) == "predict"
    return ("predict", "serve") if answers else ()
