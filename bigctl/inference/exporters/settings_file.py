"""`bigctl.json` beside an exported model: with what its run turns examples into inputs, and outputs into records."""

from __future__ import annotations

from dataclasses import asdict
from importlib import metadata
from typing import Any

from bigctl.inference.predictor import Predictor
from bigctl.runs.directory import SETTINGS, SUMS
from bigctl.runs.redaction import without_folders

__all__ = ["KEPT", "SUMS", "kept"]

KEPT = SETTINGS
"""The file."""


def kept(trained: Predictor) -> dict[str, Any]:
    """What is kept beside an exported model, as JSON."""
    columns = trained.known_columns if trained.features.kind == "table" else None
    record = trained.run.record()
    return {
        "schema": 1,
        "bigctl": metadata.version("bigctl"),
        "step": trained.step,
        "config": without_folders(trained.run.read_config()),
        "plugins": record.get("plugins") or [],
        "features": trained.features.to_json(),
        "data": {"fingerprint": record["data"].get("fingerprint")},
        "columns": None if columns is None else sorted(columns),
        "decision": trained.task.decision(),
        "confidence": None if trained.confidence is None else asdict(trained.confidence),
    }
