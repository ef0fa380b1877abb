"""A profiler trace of a few steps, and the names of what is slow in it."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax

from bigctl.training.programs import LARGEST_LOOP
from bigctl.training.state import TrainState

STEPS = 20


class Profiler:
    """Traces `STEPS` steps from `start` on, into a folder for TensorBoard or Perfetto."""

    def __init__(self, folder: Path, *, start: int):
        self.folder, self.start, self.until = folder, start, start + STEPS
        self._tracing = False
        self._done = False

    def before_dispatch(self, step: int, state: TrainState) -> int:
        """Begin or end the trace where it is time; gives how many steps may follow before the next change.

        `state` is waited for then, so that just the steps in between are in the trace.
        """
        if not self._tracing and not self._done and step >= self.start:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self.folder))
            self._tracing = True
        elif self._tracing and step >= self.until:
            jax.block_until_ready(state)
            self._stop()
        if self._done:
            return LARGEST_LOOP
        return max(1, (self.until if self._tracing else self.start) - step)

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
