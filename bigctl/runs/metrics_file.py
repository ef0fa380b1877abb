"""`metrics.jsonl` and its like, one JSON object with its `step` a line, as a crash may have left them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bigctl.files import read_regular
from bigctl.runs import untrusted


def step_of_line(line: bytes) -> float:
    """The step of a line; infinity for one that is damaged, or cut short by a crash."""
    found = untrusted.step_line(line)
    return float("inf") if found is None else found["step"]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines with everything on them; none if there is no file. Raises OSError if it cannot be read."""
    try:
        content = read_regular(path)
    except FileNotFoundError:
        return []
    return [line for line in map(untrusted.step_line, content.split(b"\n")) if line is not None]


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
