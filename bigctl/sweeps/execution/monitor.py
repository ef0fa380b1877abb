"""A trial seen from outside, through its run directory: how far it is, and how it ended. Free of jax.

What a run says of itself may be cut short at any moment, and the folder may be gone; a look never raises.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigctl.errors import BigctlError
from bigctl.runs import directory, listing
from bigctl.runs.directory import RunDirectory
from bigctl.sweeps.trials import COMPLETE, FAILED, STOPPED

PRUNE = "prune"
"""A file of this name in a run directory asks a packed trial to stop; it holds the reason."""


@dataclass
class Watch:
    """The metrics of a run as they come; only what is new is read at each look.

    Attributes:
        step: the last one logged.
        curves: {metric: {step: value}}.
    """

    run: Path
    step: int | None = None
    curves: dict[str, dict[int, float]] = field(default_factory=dict)
    _offset: int = 0
    _record: dict[str, Any] | None = None

    def look(self) -> bool:
        """Read what is new; whether there was anything."""
        file = self.run / "metrics.jsonl"
        try:
            size = file.stat().st_size
            if size == self._offset:
                return False
            if size < self._offset:  # a resumed run has cut back what came after its checkpoint
                self.curves, self.step, self._offset = {}, None, 0
            with file.open("rb") as stream:
                stream.seek(self._offset)
                text = stream.read(size - self._offset)
        except OSError:
            return False
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                self._take(json.loads(line))
        return bool(whole)

    def _take(self, line: dict[str, Any]) -> None:
        self.step = int(line["step"])
        for name, value in line.items():
            if name.startswith(("train/", "val/")) and (value is None or isinstance(value, (int, float))):
                self.curves.setdefault(name, {})[self.step] = math.nan if value is None else float(value)

    @property
    def steps(self) -> int | None:
        """Length of the training, once the run has begun."""
        found = self._begun().get("steps")
        return found if isinstance(found, int) else None

    @property
    def selection(self) -> tuple[str, str] | None:
        """(metric, "max" or "min") that selects the run's best checkpoint, once the run has begun."""
        found = self._begun().get("selection")
        return (str(found["metric"]), str(found["mode"])) if isinstance(found, dict) and len(found) == 2 else None

    def _begun(self) -> dict[str, Any]:
        if self._record is None and (self.run / "run.json").exists():
            with contextlib.suppress(BigctlError):
                record = RunDirectory(self.run).record()
                self._record = record if "steps" in record else None
        return self._record or {}


@dataclass(frozen=True)
class Ending:
    """How a run stands when no process works on it: a status of `sweeps.trials` and what the ledger keeps of it."""

    status: str
    metrics: dict[str, float] = field(default_factory=dict)
    step: int | None = None
    message: str = ""
    selected_by: str = ""
    seconds: float | None = None


def ending(run: Path) -> Ending:
    """What the run directory tells of a run that nobody works on: complete, failed, or to be gone on with."""
    held = RunDirectory(run)
    try:
        status = held.status()
        if status == directory.COMPLETE:
            summary = held.summary()
            metrics = {k: float(v) for k, v in summary["metrics"].items() if isinstance(v, (int, float))}
            return Ending(
                COMPLETE, metrics, int(summary["step"]), selected_by=str(summary.get("selected_by") or ""),
                seconds=float(summary["timings"]["wall"]),
            )  # fmt: skip
        if status in (directory.FAILED, directory.DIVERGED):
            return Ending(FAILED, step=reached(run), message=str(held.record().get("message") or status))
    except (BigctlError, KeyError, TypeError, ValueError) as error:
        if (run / "summary.json").exists():
            return Ending(FAILED, message=f"what it has written cannot be read: {error}")
    return Ending(STOPPED, step=reached(run))


def reached(run: Path) -> int | None:
    """The step of the newest checkpoint that can be gone on from."""
    saved = [c.step for c in listing.checkpoints(RunDirectory(run), sizes=False) if c.committed]
    return max(saved, default=None)


def cause(code: int, log: Path) -> str:
    """Why a process ended that has left nothing in its run directory, in one line: what it said last."""
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"killed by {name}" + (", perhaps for want of memory" if code == -signal.SIGKILL else "")
    with contextlib.suppress(OSError), log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - 20_000))
        lines = [line.rstrip() for line in stream.read().decode("utf-8", "replace").splitlines() if line.strip()]
        for number in reversed(range(len(lines))):
            if lines[number].startswith("bigctl: "):  # what is wrong, and in the next line what to do
                said = lines[number].removeprefix("bigctl: ")
                hint = next((line.strip() for line in lines[number + 1 : number + 2] if line.startswith(" " * 8)), "")
                return f"{said} ({hint})" if hint else said
        if lines:
            return lines[-1].strip()[:300]
    return f"exit code {code}"
