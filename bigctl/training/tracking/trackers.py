"""Weights & Biases and MLflow beside `metrics.jsonl`: off by default, and never able to stop or slow a run.

Each service is spoken to by a process of its own (`training.tracker_process`), which is given lines of JSON through a
pipe that never blocks. Whatever the service does, crash, hang, print, or have no network, happens there: the run warns
once and goes on. At the end it waits a bounded time for what is still on its way.

    train.trackers=[wandb]    WANDB_API_KEY, WANDB_MODE, WANDB_ENTITY, WANDB_BASE_URL ... as for any W&B run
    train.trackers=[mlflow]   MLFLOW_TRACKING_URI, MLFLOW_TRACKING_TOKEN ... as for any MLflow run
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import math
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigctl.config import schema
from bigctl.errors import ConfigError, Preempted, RunError
from bigctl.terminal import escaped
from bigctl.training.tracking import callbacks
from bigctl.training.tracking.callbacks import Listener
from bigctl.training.tracking.tracker_process import WAITING

if TYPE_CHECKING:
    from bigctl.runs.directory import RunDirectory

log = logging.getLogger("bigctl.train")

PATIENCE = 10.0
"""How long the end of a run waits for its trackers, all together [s]; one that has to make way waits less."""
PATIENCE_PREEMPTED = 3.0


def check(names: Sequence[str]) -> None:
    """Raise ConfigError for a tracker whose package is not installed."""
    for name in names:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # a folder of that name, as W&B makes them, is no package
            hint = f"pip install 'bigctl[{name}]', or leave it out of train.trackers"
            raise ConfigError(f"needs the package {name}, which is not installed", where="train.trackers", hint=hint)


@contextlib.contextmanager
def tracking(run: RunDirectory, config: schema.Config) -> Iterator[list[Listener]]:
    """The trackers and callbacks that a configuration asks for, until the run has ended in one way or another.

    What they call the run is kept in its run.json, so that a resumed run goes on there too.
    """
    names = list(dict.fromkeys(config.train.trackers)) if run.writes else []
    trackers = [_start(name, run, config) for name in names]
    status, patience = "failed", PATIENCE
    try:
        yield [*trackers, *(callbacks.chosen(run.path, config) if run.writes else [])]
        status = "complete"
    except Preempted:
        status, patience = "preempted", PATIENCE_PREEMPTED
        raise
    finally:
        finish(trackers, status, patience)


def _start(name: str, run: RunDirectory, config: schema.Config) -> Tracker:
    known = dict(run.record().get("trackers") or {}) if run.exists else {}
    before = dict(known.get(name) or {})
    key = str(before.get("key") or secrets.token_hex(4))

    def keep(found: Mapping[str, Any]) -> None:
        with contextlib.suppress(RunError):  # the record is in trouble: whoever needs it will say so
            now = dict(run.record().get("trackers") or {}) if run.exists else {}
            run.update_record(trackers={**now, name: {**dict(now.get(name) or {}), **found}})

    keep({"key": key})
    project = config.train.tracker_project
    parameters = {dotted: value for dotted, _, value in schema.walk_config(config)}
    start = {
        "service": name, "key": key, "known": bool(before), "project": project, "name": run.path.resolve().name,
        "group": group_of(run.path), "folder": str(run.path.resolve()), "parameters": parameters,
    }  # fmt: skip
    return Tracker(start, keep)


def group_of(path: Path) -> str | None:
    """The sweep that a run is a trial of, as its folder tells: sweeps/NAME/trials/ID."""
    trials = path.resolve().parent
    return trials.parent.name if trials.name == "trials" and (trials.parent / "ledger.jsonl").exists() else None


class Tracker:
    """A `writers.Writer` that hands on to a process which speaks to one service. Raises nothing.

    Args:
        start: what the process is told first, see `tracker_process`.
        keep: called with what the service calls the run, once that is known.
    """

    def __init__(self, start: Mapping[str, Any], keep: Callable[[Mapping[str, Any]], None]):
        self.name = str(start["service"])
        self.lost = False
        """Whether it was given up."""
        self._folder, self._keep = str(start["folder"]), keep
        self._queue: deque[bytes] = deque()
        self._left_out = False
        self._told = b""
        self._process: subprocess.Popen[bytes] | None = None
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "bigctl.training.tracking.tracker_process"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0, env=environment,
                start_new_session=True,  # Ctrl-C is for the run, which then tells its trackers
            )  # fmt: skip
            for stream in (self._process.stdin, self._process.stdout):
                os.set_blocking(stream.fileno(), False)  # type: ignore[union-attr]
        except OSError as error:
            self._give_up(f"cannot be started: {error.strerror}")
        self._send(start)

    def write(self, step: int, values: dict[str, Any]) -> None:
        self._send({"step": step, "time": round(time.time(), 3), "values": _numbers(values)})

    def result(self, step: int, metrics: Mapping[str, Any]) -> None:
        """The test split's scores, once the run is over."""
        values = {name: value for name, value in _numbers(metrics).items() if name.startswith("test/")}
        if values:
            self._send({"step": step, "time": round(time.time(), 3), "values": values, "result": True})

    def saved(self, step: int) -> None:
        """The services are told of metrics alone."""

    def cut(self, step: int) -> None:
        self._send({"cut": step})

    def end(self, status: str) -> None:
        """Say how the run ended; `finish` then waits for what is still on its way."""
        self._send({"end": status})

    def close(self) -> None:
        finish([self], "complete", PATIENCE)

    def _send(self, line: Mapping[str, Any]) -> None:
        if self.lost:
            return
        if len(self._queue) < WAITING or "end" in line:
            self._queue.append(json.dumps(line, default=str).encode() + b"\n")
        else:
            self._late()
        self.pump()

    def pump(self) -> None:
        """Hand on what the pipe takes, and hear what the process says; never waits."""
        if self.lost or self._process is None:
            return
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            while self._queue:
                sent = os.write(self._process.stdin.fileno(), self._queue[0])
                if sent < len(self._queue[0]):
                    self._queue[0] = self._queue[0][sent:]
                else:
                    self._queue.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._queue.clear()  # it has ended; why, it says below
        try:
            while part := os.read(self._process.stdout.fileno(), 1 << 16):
                self._told += part
            ended = True
        except BlockingIOError:
            ended = False
        *lines, self._told = self._told.split(b"\n")
        for line in lines:
            self._hear(json.loads(line))
        if ended and not self.lost and self._process is not None:
            self._give_up("its process ended before the run did")

    def _hear(self, told: Mapping[str, Any]) -> None:
        if "error" in told:
            self._give_up(str(told["error"]))
        elif "done" in told:
            self._stop()
        elif "late" in told:
            self._late()
        else:
            said = {key: without_secrets(str(value)) for key, value in told.items() if value is not None}
            self._keep(said)
            log.info("%s: %s", self.name, " ".join(f"{key} {value}" for key, value in said.items()))

    def _late(self) -> None:
        if not self._left_out:
            self._left_out = True
            log.warning("%s does not keep up: some of the metrics are left out there", self.name)

    @property
    def busy(self) -> bool:
        return self._process is not None

    def abandon(self) -> None:
        """End the process, however far it has come."""
        if self.busy:
            rest = f"; `wandb sync {self._folder}/wandb/*run-*` sends what is missing" if self.name == "wandb" else ""
            self._give_up(f"did not finish in time{rest}")

    def _give_up(self, reason: str) -> None:
        self.lost = True
        self._queue.clear()
        self._stop(kill=True)
        log.warning("%s: %s; the run itself is not affected", self.name, without_secrets(" ".join(reason.split())))

    def _stop(self, *, kill: bool = False) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if kill:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                stream.close()  # type: ignore[union-attr]
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1.0)


def finish(trackers: Sequence[Tracker], status: str, patience: float) -> None:
    """Tell all trackers how the run ended and wait for them, together no longer than `patience` seconds."""
    deadline = time.monotonic() + patience
    for tracker in trackers:
        tracker.end(status)
    while any(tracker.busy for tracker in trackers) and time.monotonic() < deadline:
        for tracker in trackers:
            tracker.pump()
        time.sleep(0.01)
    for tracker in trackers:
        tracker.abandon()


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)


def without_secrets(text: str) -> str:
    """A message of a service with nothing in it that the environment calls a secret, nor passwords in addresses."""
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= 6:
            text = text.replace(value, "***")
    return escaped(re.sub(r"//[^/@\s]+@", "//***@", text))[:500]
