"""The ledger of a sweep: `ledger.jsonl`, one event a line, append-only, each on disk before it takes effect.

Events, each with `event` and `time` [seconds since the epoch]:

    study   definition               at every start; the last one counts
    trial   id number overrides point seed fold run
    start   id attempt step place log
                                     a process was started for it, resuming from the step, with output in the log
    end     id status metrics step seconds message exit_code
    again   id                       a failed trial is to be started again
    test    id metrics               the test split was scored

Values that a line leaves out are those of earlier lines; unreadable lines are counted and skipped. Free of jax.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bigctl.errors import RunError
from bigctl.files import append_regular, read_regular
from bigctl.formatting import plain
from bigctl.runs import untrusted
from bigctl.sweeps.trials import RUNNING, STOPPED, WAITING, State, Study, Trial

NAME = "ledger.jsonl"
SCHEMA = 1
_LARGEST = 1e150
AXIS: untrusted.Shape = {
    "key": str, "values": [str], "low": float, "high": float, "log": bool, "integer": bool,
}  # fmt: skip
EVENT: untrusted.Shape = {
    "event": str, "time": untrusted.TIME, "id": str, "number": untrusted.COUNT, "overrides": [str],
    "point": {str: str}, "seed": int, "fold": int, "run": str, "attempt": untrusted.COUNT, "step": untrusted.COUNT,
    "place": str, "log": str, "status": str, "metrics": untrusted.NUMBERS, "seconds": float, "message": str,
    "exit_code": int,
    "definition": {
        "name": str, "recipe": str, "fixed": [str], "axes": [AXIS], "zipped": [[str]], "seeds": [int], "folds": [int],
        "metric": str, "mode": str, "argv": [str], "sweep": {str: object},
    },
}  # fmt: skip
"""Of a line."""


class Ledger:
    """The ledger of the sweep in a folder, to append to. Only the process that holds the folder may do so.

    Attributes:
        study: what it records, updated with every event.

    Raises:
        RunError: if it cannot be read or written.
    """

    def __init__(self, folder: Path):
        self.path = folder / NAME
        self.study = read_study(folder)
        try:
            self._stream = append_regular(self.path)
            if self._stream.tell() and not self._ends_whole():
                self._stream.write(b"\n")  # a crash has cut the last line short: the next event begins a new one
        except OSError as error:
            raise RunError(f"cannot be written: {error.strerror}", where=str(self.path)) from error

    def _ends_whole(self) -> bool:
        return read_regular(self.path, start=-1) == b"\n"

    def append(self, event: str, **values: object) -> None:
        """Write one event to disk. Raises RunError if it cannot be written."""
        line = plain({"event": event, "schema": SCHEMA, "time": round(time.time(), 3), **values})
        try:
            self._stream.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            hint = "free some space and run the same command again to continue"
            raise RunError(f"cannot be written: {error.strerror}", where=str(self.path), hint=hint) from error
        _apply(self.study, line)

    def clear(self) -> None:
        """Discard a study of which nothing was ever trained."""
        self._stream.truncate(0)
        self.study = Study(self.path.parent)

    def close(self) -> None:
        self._stream.close()


def read_study(folder: Path) -> Study:
    """The study that a ledger records; an empty one if there is no ledger yet.

    Raises:
        RunError: if the ledger is there and cannot be read.
    """
    study = Study(folder)
    try:
        lines = read_regular(folder / NAME).split(b"\n")
    except FileNotFoundError:
        return study
    except OSError as error:
        raise RunError(f"cannot be read: {error.strerror}", where=str(folder / NAME)) from error
    for line in filter(None, lines):
        try:
            _apply(study, untrusted.mapping(line, EVENT))
        except (ValueError, KeyError, TypeError):
            study.damaged += 1
    return study


def _apply(study: Study, line: dict[str, Any]) -> None:
    event = line["event"]
    if event == "study":
        definition = dict(line["definition"])
        for axis in definition.get("axes") or ():
            low, least = axis.get("low"), 0 if axis.get("log") else -_LARGEST
            if low is not None and not least < low <= axis["high"]:
                raise ValueError("an axis without extent, or with a logarithm of what has none")
        study.definition = definition
        return
    name = str(line["id"])
    if event == "trial":
        repeat = line.get("seed"), line.get("fold")
        trial = Trial(int(line["number"]), tuple(line["overrides"]), dict(line["point"]), *repeat)
        study.states.setdefault(name, State(trial, run=str(line.get("run", ""))))
        return
    if event == "test":
        study.test[name] = _usable(line["metrics"])
        return
    state = study.states[name]
    if event == "start":
        state.status, state.attempts = RUNNING, int(line["attempt"])
        state.step = line.get("step")
        state.log, state.place = str(line.get("log") or ""), str(line.get("place") or "")
    elif event == "again":
        state.status = WAITING
    elif event == "end":
        state.status = str(line["status"])
        state.metrics = _usable(line.get("metrics"))
        state.step, state.message = line.get("step"), str(line.get("message") or "")
        state.exit_code = line.get("exit_code")
        state.seconds += float(line.get("seconds") or 0.0)


def _usable(metrics: Mapping[str, float | None] | None) -> dict[str, float]:
    """Metrics that can be averaged: finite, and not so large that their squares are not."""
    return {name: value for name, value in (metrics or {}).items() if value is not None and abs(value) <= _LARGEST}


def unfinished(study: Study) -> Iterator[State]:
    """The trials that have not ended, in the order of their numbers."""
    found = (s for s in study.states.values() if s.status in (WAITING, RUNNING, STOPPED))
    yield from sorted(found, key=lambda s: s.trial.number)
