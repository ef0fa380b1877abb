"""`metrics.jsonl` and its like, one JSON object with its `step` a line, as a crash may have left them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def step_of_line(line: bytes) -> float:
    """The step of a line; infinity for one that is damaged, or cut short by a crash."""
    try:
        return int(json.loads(line.decode())["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a `metrics.jsonl`."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if step_of_line(line) < float("inf")]
