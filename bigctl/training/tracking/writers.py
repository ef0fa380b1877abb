"""Where metrics go: `metrics.jsonl`, TensorBoard events; the console has a file of its own."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
import time
from pathlib import Path
from typing import Any, Protocol

from bigctl import imports
from bigctl.errors import TrainingFailed
from bigctl.files import append_regular, read_regular, write_text
from bigctl.formatting import plain
from bigctl.runs.metrics_file import step_of_line

log = logging.getLogger("bigctl.train")

_FLUSH = 5.0  # s between two flushes of events, at least


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
        self._stream.flush()  # whoever looks on sees it; that it is on the disk is what a checkpoint asks for

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


def events_writer() -> Any:
    """The class of tensorboardX that writes events.

    Not its `SummaryWriter`, whose events are pickled from one thread to another: where 16 small trainings share a
    process, that took 2 of its 11 seconds.
    """
    with imports.kept(), imports.without("torch"):  # a second's import where it is installed, and not needed here
        from tensorboardX.event_file_writer import EventsWriter
    return EventsWriter


class TensorBoard:
    """Event files for TensorBoard; events after `step`, of a run that was cut off, are marked to be dropped."""

    def __init__(self, folder: Path, *, step: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = events_writer()(str(folder / "events"))
        self._failed = False
        self._flushed = -math.inf
        self._folder = folder
        if step:
            self.cut(step)

    def cut(self, step: int) -> None:
        from tensorboardX.proto.event_pb2 import SessionLog

        # TensorBoard then drops what has this step or a later one.
        self._add(step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: dict[str, Any]) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        found = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
            if isinstance(value, (int, float)) and math.isfinite(value) and name != "epoch"
        ]
        self._add(step, summary=Summary(value=found))  # one event for all

    def _add(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        if self._failed:
            return
        try:
            self._writer.write_event(Event(wall_time=time.time(), step=step, **content))
            if time.monotonic() - self._flushed > _FLUSH:
                self._writer.flush()
                self._flushed = time.monotonic()
        except OSError as error:  # all of it is in metrics.jsonl too
            log.warning("%s: %s; no more events are written", self._folder, error.strerror)
            self._failed = True

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._writer.close()
