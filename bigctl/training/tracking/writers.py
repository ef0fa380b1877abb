"""Where metrics go: `metrics.jsonl`, TensorBoard events, the console."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from bigctl.errors import TrainingFailed
from bigctl.files import append_regular, read_regular, write_text
from bigctl.formatting import plain
from bigctl.runs.metrics_file import step_of_line
from bigctl.terminal import escape, escaped, unescaped

log = logging.getLogger("bigctl.train")


class Writer(Protocol):
    def write(self, step: int, values: dict[str, Any]) -> None: ...
    def cut(self, step: int) -> None:
        """Take back what came after a step: training has gone back there."""

    def close(self) -> None: ...


class JsonLines:
    """`metrics.jsonl`: one object a line, in step order. Opening it for a resumed run cuts back what came later."""

    def __init__(self, path: Path, *, step: int):
        self._path = path
        self._open(step)

    def _open(self, step: int) -> None:
        try:
            self._continue(step)
        except OSError as error:
            raise TrainingFailed(f"cannot be written: {error.strerror}", where=str(self._path)) from error

    def _continue(self, step: int) -> None:
        if os.path.lexists(self._path):
            lines = read_regular(self._path).split(b"\n")
            damaged = sum(step_of_line(line) == float("inf") for line in lines[:-1])  # a crash cuts the last one short
            if damaged:
                log.warning("%s: %d damaged line%s left out", self._path, damaged, " is" if damaged == 1 else "s are")
            write_text(self._path, "".join(f"{line.decode()}\n" for line in lines if step_of_line(line) <= step))
        self._stream = io.TextIOWrapper(append_regular(self._path), encoding="utf-8")

    def cut(self, step: int) -> None:
        self._stream.close()
        self._open(step)

    def write(self, step: int, values: dict[str, Any]) -> None:
        if not os.fstat(self._stream.fileno()).st_nlink:
            raise self._gone()
        self._stream.write(json.dumps(plain({"step": step, **values})) + "\n")

    def flush(self) -> None:
        """Onto the disk: whatever a checkpoint has counted must not be lost.

        Raises:
            TrainingFailed: if the file is not there any more, as where somebody has removed or moved the run.
        """
        try:
            there = os.path.samestat(os.fstat(self._stream.fileno()), os.stat(self._path))
        except FileNotFoundError:
            there = False
        if not there:
            raise self._gone()
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def _gone(self) -> TrainingFailed:
        message = "has been removed or moved while the run was trained, and perhaps the whole run with it"
        return TrainingFailed(message, where=str(self._path), hint="nothing more is written there; begin the run anew")

    def close(self) -> None:
        self._stream.close()


class TensorBoard:
    """Event files for TensorBoard; events after `step`, of a run that was cut off, are marked to be dropped."""

    def __init__(self, folder: Path, *, step: int):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def cut(self, step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        start = SessionLog(status=SessionLog.START)  # TensorBoard then drops what has this step or a later one
        self._writer.file_writer.add_event(Event(session_log=start), step + 1)

    def write(self, step: int, values: dict[str, Any]) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        found = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
            if isinstance(value, (int, float)) and math.isfinite(value) and name != "epoch"
        ]
        self._writer.file_writer.add_summary(Summary(value=found), step)  # one event for all

    def close(self) -> None:
        self._writer.close()


class Console:
    """Progress on stderr: a live line on a terminal, elsewhere one plain line at a time cadence.

    Args:
        total: length of training [steps].
        quiet: print nothing.
        every: seconds between plain lines.
    """

    def __init__(self, total: int, *, quiet: bool = False, every: float = 10.0):
        self.total = total
        self.quiet = quiet
        self.every = every
        self._last = time.monotonic()
        self._progress: Any = None
        self._values: dict[str, float] = {}
        self._step = self._printed = 0
        if not quiet and sys.stderr.isatty():
            self._progress = self._live()

    def _live(self) -> Any:
        from rich.console import Console as Terminal
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        columns = (
            TextColumn("step {task.completed}/{task.total}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=None, table_column=Column(ratio=1, max_width=30)),
            TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[numbers]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
        )
        progress = Progress(*columns, console=Terminal(file=unescaped(sys.stderr)), refresh_per_second=4)
        progress.start()  # which puts itself before standard error: what others print comes above the line
        escape("stderr")
        self._task = progress.add_task("train", total=self.total, numbers="compiling ...")
        return progress

    def write(self, step: int, values: dict[str, Any]) -> None:
        self._values.update({k: v for k, v in values.items() if isinstance(v, (int, float))})
        self._step = step
        if self._progress is not None:
            self._progress.update(self._task, completed=step, numbers=self._line())
        elif time.monotonic() - self._last >= self.every:
            self._print()

    def cut(self, step: int) -> None:
        self._step = self._printed = min(self._printed, step)

    def _print(self) -> None:
        if not self.quiet and self._step > self._printed:
            self._last, self._printed = time.monotonic(), self._step
            self._tell(f"step {self._step}/{self.total}  {self._line()}")

    def say(self, text: str) -> None:
        """A sentence of its own, above the live line."""
        if self.quiet:
            return
        if self._progress is not None:
            self._progress.console.print(escaped(text), markup=False, highlight=False)
        else:
            self._tell(text)

    def _tell(self, line: str) -> None:
        try:
            print(line, file=sys.stderr, flush=True)
        except OSError:  # whoever read it has gone, as `2>&1 | head` does: no reason to stop training
            self.quiet = True

    def _line(self) -> str:
        shown = []
        for name, label, pattern in _CONSOLE:
            if name in self._values:
                shown.append(f"{label} {self._values[name]:{pattern}}")
        return "  ".join(shown)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        else:
            self._print()


_CONSOLE = (
    ("epoch", "epoch", ".2f"),
    ("train/loss", "loss", ".4f"),
    ("train/padding", "padding", ".0%"),
    ("val/loss", "val loss", ".4f"),
    ("val/accuracy", "val acc", ".4f"),
    ("perf/examples_per_s", "examples/s", ",.0f"),
    ("perf/tokens_per_s", "tokens/s", ",.0f"),
    ("perf/mfu", "MFU", ".1%"),
)
