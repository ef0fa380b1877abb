"""`metrics.jsonl` and its like, one JSON object with its `step` a line, as a crash may have left them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bigctl.files import read_regular
from bigctl.runs import untrusted


def step_of_line(line: bytes) -> float:
    """The step of a line; infinity for one that is damaged, or cut short by a crash."""
    try:
        step = untrusted.mapping(line, {"step": untrusted.COUNT}).get("step")
    except ValueError:
        return float("inf")
    return float("inf") if step is None else step


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a `metrics.jsonl`, with their numbers. Raises OSError if it is there and cannot be read."""
    return read_counted(path)[0]


def read_counted(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The same, and how many lines are damaged."""
    try:
        content = read_regular(path)
    except FileNotFoundError:
        return [], 0
    found = list(untrusted.metrics_lines(content))
    whole = [line for line in found if line is not None]
    return whole, len(found) - len(whole)
