"""`bigctl.json` beside an exported model: with what its run turns examples into inputs, and outputs into records."""

from __future__ import annotations

from dataclasses import asdict
from importlib import metadata
from typing import Any

from bigctl.inference.predictor import Predictor
from bigctl.runs.redaction import without_folders

KEPT, SUMS = "bigctl.json", "SHA256SUMS"
"""The file, and the list of digests of all files."""


def kept(trained: Predictor) -> dict[str, Any]:
    """What is kept beside an exported model, as JSON."""
    columns = trained.known_columns if trained.features.kind == "table" else None
    return {
        "schema": 1,
        "bigctl": metadata.version("bigctl"),
        "step": trained.step,
        "config": without_folders(trained.run.read_config()),
        "plugins": trained.run.record().get("plugins") or [],
        "features": trained.features.to_json(),
        "columns": None if columns is None else sorted(columns),
        "decision": trained.task.decision(),
        "confidence": None if trained.confidence is None else asdict(trained.confidence),
    }
