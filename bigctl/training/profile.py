"""A profiler trace of a few steps, and the names of what is slow in it."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax

STEPS = 20


class Profiler:
    """Traces the steps from `start` on, `STEPS` of them, into a folder for TensorBoard or Perfetto."""

    def __init__(self, folder: Path, *, start: int):
        self.folder, self.start = folder, start
        self._tracing = False
        self._done = False

    def before_step(self, step: int) -> None:
        if not self._tracing and not self._done and step >= self.start:
            jax.profiler.start_trace(str(self.folder))
            self._tracing, self._until = True, step + STEPS
        elif self._tracing and step >= self._until:
            self._stop()

    def close(self) -> list[str]:
        """End the trace; gives the slowest operations, one line each."""
        if self._tracing:
            self._stop()
        return slowest(self.folder) if self._done else []

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._tracing, self._done = False, True


def slowest(folder: Path, most: int = 10) -> list[str]:
    """The operations of the newest trace below `folder` that took longest in sum, as "share  ms  name"."""
    traces = sorted(folder.rglob("*.trace.json.gz"), key=lambda p: p.stat().st_mtime)
    if not traces:
        return []
    with gzip.open(traces[-1], "rt", encoding="utf-8") as stream:
        events: list[dict[str, Any]] = json.load(stream)["traceEvents"]
    threads = {
        (e["pid"], e["tid"]): e["args"]["name"] for e in events if e.get("ph") == "M" and e.get("name") == "thread_name"
    }
    totals: dict[str, float] = defaultdict(float)
    for event in events:
        thread = threads.get((event.get("pid"), event.get("tid")), "")
        if event.get("ph") == "X" and _computes(thread) and "hlo_op" in event.get("args", {}):
            totals[_kind(event["name"])] += event.get("dur", 0.0)
    everything = sum(totals.values())
    ranked = sorted(totals.items(), key=lambda item: -item[1])[:most]
    return [f"{time / everything:5.1%}  {time / 1000:8.2f} ms  {name}" for name, time in ranked] if everything else []


def _computes(thread: str) -> bool:
    return "XLA" in thread or "Eigen" in thread or "Stream" in thread or "pjrt" in thread.lower()


def _kind(name: str) -> str:
    """An operation's name without its number: loop_fusion.12 -> loop_fusion."""
    return name.rsplit(".", 1)[0] if name.rsplit(".", 1)[-1].isdigit() else name
