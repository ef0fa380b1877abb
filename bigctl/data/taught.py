"""Where the logits of teachers are kept, see `engine.distil`: a folder for each data set that they were asked of."""

from __future__ import annotations

import json
from pathlib import Path

from bigctl.cache_root import cache_root


def root() -> Path:
    return cache_root() / "teacher"


def folder(fingerprint: str) -> Path:
    """That of the data with a fingerprint."""
    return root() / fingerprint[:32]


def folder_of(prepared: Path) -> Path | None:
    """That of a prepared data set; None for one that is damaged or half made."""
    try:
        return folder(str(json.loads((prepared / "meta.json").read_text(encoding="utf-8"))["fingerprint"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
