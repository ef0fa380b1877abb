"""How far a run is and how long it still takes, from what it has written. Free of jax."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bigctl.files import read_regular
from bigctl.formatting import clock
from bigctl.runs import untrusted
from bigctl.runs.directory import RunDirectory

CLOCK = "perf/elapsed_s"
"""Of a log line: the time since the first step of its process."""
_TAIL = 1 << 15
"""Of metrics.jsonl [bytes]: the last hundred lines or so."""


@dataclass(frozen=True)
class Pace:
    """Where a running run is.

    Attributes:
        step, total: updates that are logged, and of how many.
        remaining: until the last one [s]; None while nothing tells.
    """

    step: int
    total: int
    remaining: float | None = None

    @property
    def said(self) -> str:
        left = "" if self.remaining is None or self.step >= self.total else f", about {clock(self.remaining)} left"
        return f"step {self.step:,} of {self.total:,}{left}"

    def to_json(self) -> dict[str, Any]:
        return {"step": self.step, "total": self.total, "remaining": self.remaining, "said": self.said}


def of_run(run: RunDirectory, record: Mapping[str, Any], now: float | None = None) -> Pace | None:
    """The pace of a run that is being trained; None before it has said how long it will be.

    By the clock in the last log lines of its process, evaluations and checkpoints among them; a run of an earlier
    version has none: by the time since its start, compiling included.

    Args:
        record: its run.json.
        now: the time of day [seconds since the epoch].
    """
    total = record.get("steps")
    if not isinstance(total, int) or total <= 0:
        return None
    now = time.time() if now is None else now
    lines, written = [], now
    with contextlib.suppress(OSError):
        found = map(untrusted.metrics_line, read_regular(run.metrics, start=-_TAIL).split(b"\n"))
        lines = [line for line in found if line is not None]
        written = run.metrics.stat().st_mtime
    begun = (record.get("starts") or [{}])[-1]
    first = int(begun.get("step") or 0)
    step = int(lines[-1]["step"]) if lines else first
    marks = _marks(lines)
    if len(marks) < 2 and isinstance(begun.get("time"), int | float):
        marks = [(first, float(begun["time"])), (step, written)]
    if len(marks) < 2 or marks[-1][0] <= marks[0][0]:
        return Pace(step, total)
    rate = max(0.0, marks[-1][1] - marks[0][1]) / (marks[-1][0] - marks[0][0])
    return Pace(step, total, max(0.0, (total - step) * rate - max(0.0, now - written)))


def _marks(lines: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """(step, clock) of the log lines of the last process."""
    marks: list[tuple[float, float]] = []
    for line in lines:
        if (elapsed := line.get(CLOCK)) is None:
            continue
        if marks and (elapsed < marks[-1][1] or line["step"] <= marks[-1][0]):
            marks = []  # another process, or training went back
        marks.append((line["step"], elapsed))
    return marks
