"""A trial as its run directory tells of it: how far it is, and how it ended. Free of jax.

Files may be cut short at any moment, and the directory may be gone: monitoring never raises.
"""

from __future__ import annotations

import contextlib
import math
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigctl.errors import BigctlError
from bigctl.files import read_regular
from bigctl.runs import directory, listing
from bigctl.runs.directory import RunDirectory
from bigctl.runs.untrusted import metrics_lines
from bigctl.sweeps.trials import COMPLETE, FAILED, STOPPED, State, Study


@dataclass
class RunMonitor:
    """The metrics of a run while it is trained; each refresh reads only what is new.

    Attributes:
        step: the last one logged.
        curves: {metric: {step: value}}.
    """

    run: Path
    step: int | None = None
    curves: dict[str, dict[int, float]] = field(default_factory=dict)
    _offset: int = 0
    _record: dict[str, Any] | None = None

    def refresh(self) -> bool:
        """Read what is new; whether there was anything."""
        file = self.run / "metrics.jsonl"
        try:
            size = file.stat().st_size
            if size == self._offset:
                return False
            if size < self._offset:  # a resumed run has cut back what came after its checkpoint
                self.curves, self.step, self._offset = {}, None, 0
            text = read_regular(file, start=self._offset)
        except OSError:
            return False
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in metrics_lines(whole):
            if line is not None:
                self._take(line)
        return bool(whole)

    def _take(self, line: dict[str, Any]) -> None:
        self.step = int(line["step"])
        for name, value in line.items():
            if name.startswith(("train/", "val/")):
                self.curves.setdefault(name, {})[self.step] = math.nan if value is None else float(value)

    @property
    def steps(self) -> int | None:
        """Length of the training, once the run has begun."""
        found = self._started().get("steps")
        return found if isinstance(found, int) else None

    @property
    def selection(self) -> tuple[str, str] | None:
        """(metric, "max" or "min") that selects the run's best checkpoint, once the run has begun."""
        found = self._started().get("selection")
        return (str(found["metric"]), str(found["mode"])) if isinstance(found, dict) and len(found) == 2 else None

    def _started(self) -> dict[str, Any]:
        if self._record is None and (self.run / "run.json").exists():
            with contextlib.suppress(BigctlError):
                record = RunDirectory(self.run).record()
                self._record = record if "steps" in record else None
        return self._record or {}


class Monitors:
    """The monitor of each trial of a study, made when it is first asked for."""

    def __init__(self, study: Study):
        self._study = study
        self._found: dict[str, RunMonitor] = {}

    def of(self, state: State) -> RunMonitor:
        name = state.trial.id
        if name not in self._found:
            self._found[name] = RunMonitor(self._study.run(state))
            self._found[name].refresh()
        return self._found[name]


@dataclass(frozen=True)
class RunEnd:
    """The state of a run that no process works on: a status of `sweeps.trials` and what the ledger keeps of it."""

    status: str
    metrics: dict[str, float] = field(default_factory=dict)
    step: int | None = None
    message: str = ""
    selected_by: str = ""
    seconds: float | None = None


def read_end(run: Path) -> RunEnd:
    """How a run that no process works on ended: complete, failed, or stopped, so that it can be resumed."""
    held = RunDirectory(run)
    try:
        status = held.status()
        if status == directory.COMPLETE:
            summary = held.summary()
            metrics = {k: float(v) for k, v in summary["metrics"].items() if v is not None}
            return RunEnd(
                COMPLETE, metrics, int(summary["step"]), selected_by=str(summary.get("selected_by") or ""),
                seconds=float(summary["timings"]["wall"]),
            )  # fmt: skip
        if status in (directory.FAILED, directory.DIVERGED):
            return RunEnd(FAILED, step=last_checkpoint(run), message=str(held.record().get("message") or status))
    except (BigctlError, KeyError, TypeError, AttributeError) as error:
        if (run / "summary.json").exists():
            return RunEnd(FAILED, message=f"what it has written cannot be read: {error}")
    return RunEnd(STOPPED, step=last_checkpoint(run))


def last_checkpoint(run: Path) -> int | None:
    """The step of the newest checkpoint that the run can be resumed from."""
    saved = [c.step for c in listing.checkpoints(RunDirectory(run), sizes=False) if c.committed]
    return max(saved, default=None)


def exit_cause(code: int, log: Path) -> str:
    """Why a process ended that left nothing in its run directory, in one line: the last thing it printed."""
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"killed by {name}" + (", perhaps out of memory" if code == -signal.SIGKILL else "")
    with contextlib.suppress(OSError):
        text = read_regular(log, start=-20_000).decode("utf-8", "replace")
        lines = [line.rstrip() for line in text.splitlines() if line.strip()]
        for number in reversed(range(len(lines))):
            if lines[number].startswith("bigctl: "):  # the error, and in the next line the hint
                said = lines[number].removeprefix("bigctl: ")
                hint = next((line.strip() for line in lines[number + 1 : number + 2] if line.startswith(" " * 8)), "")
                return f"{said} ({hint})" if hint else said
        if lines:
            return lines[-1].strip()[:300]
    return f"exit code {code}"
