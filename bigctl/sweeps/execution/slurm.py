"""Trials as SLURM jobs, submitted through submitit. Free of jax.

A job runs the command of the trial on a node that sees the same folders. SIGTERM, and SIGUSR1 a minute before its time
limit, are passed on: the trial saves and exits with code 75, and the sweep submits it again. SLURM itself does not
requeue jobs (`--no-requeue`). Whether a job still exists is asked of `squeue`; accounting is not needed.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from bigctl.errors import ConfigError, TrainingFailed
from bigctl.files import append_regular

if TYPE_CHECKING:
    from submitit.core.core import Job as SubmittedJob
    from submitit.slurm.slurm import SlurmExecutor

WHERE = "--slurm"
NUMBERS = {"gpus": "gpus_per_node", "cpus": "cpus_per_task", "cpus_per_gpu": "cpus_per_gpu"}
TEXTS = {
    name: name
    for name in (
        "partition", "account", "qos", "constraint", "gres", "nodelist", "exclude", "exclusive", "mem_per_gpu",
        "mem_per_cpu", "comment", "dependency", "mail_type", "mail_user", "wckey",
    )
}  # fmt: skip
MORE = ("reservation", "licenses", "nice", "clusters")
"""Parameters of sbatch that submitit has no name for."""
PARAMETERS = ("time", "mem", *NUMBERS, *TEXTS, *MORE)
WARNING = 60
"""How long before its time limit a job is told to save [s]."""
LOOK, LAG = 10.0, 10.0
"""Time between two queries of the cluster; how long the end of a job may take to appear in the shared folder [s]."""
_ENDS = {"TIMEOUT": 75, "PREEMPTED": 75, "NODE_FAIL": 75, "BOOT_FAIL": 75, "REVOKED": 75, "DEADLINE": 75,
         "CANCELLED": -signal.SIGTERM, "OUT_OF_MEMORY": -signal.SIGKILL}  # fmt: skip


def parse(text: str) -> dict[str, str]:
    """The parameters in "partition=gpu,time=60". Raises ConfigError."""
    found = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals or not value.strip():
            raise ConfigError(
                f"cannot read {part!r}", where=WHERE, hint="such as partition=gpu,time=60,gpus=1,mem=16GB"
            )
        found[name.strip().replace("-", "_")] = value.strip()
    return found


def submission(parameters: Mapping[str, str]) -> dict[str, Any]:
    """The parameters by submitit's names.

    Raises:
        ConfigError: for one that does not exist, or is no number, time or size.
    """
    given: dict[str, Any] = {"time": None, "wckey": None, "stderr_to_stdout": True}
    more: dict[str, Any] = {"signal": f"USR1@{WARNING}", "no-requeue": True}
    for name, value in parameters.items():
        if name == "time":
            _fits(name, value, r"\d+|(\d+-)?\d+(:\d+){0,2}", "minutes, or such as 2:30:00 or 1-12:00:00")
            given["time"] = int(value) if value.isdecimal() else value
        elif name == "mem":
            _fits(name, value, r"\d+([KMGT]B?)?", "such as 16GB")
            given["mem"] = value
        elif name in NUMBERS:
            _fits(name, value, r"\d+", "a whole number")
            given[NUMBERS[name]] = int(value)
        elif name in TEXTS:
            given[TEXTS[name]] = True if value == "true" else value
        elif name in MORE:
            more[name] = value
        else:
            close = difflib.get_close_matches(name, PARAMETERS, n=2)
            hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(PARAMETERS)}"
            raise ConfigError(f"there is no parameter {name!r}", where=WHERE, hint=hint)
    return {**given, "additional_parameters": more}


def _fits(name: str, value: str, pattern: str, rule: str) -> None:
    if not re.fullmatch(pattern, value):
        raise ConfigError(f"{name} cannot be {value!r}", where=WHERE, hint=f"give {rule}")


class Slurm:
    """An executor (see `sweeps.local`) whose jobs are SLURM's.

    Args:
        parameters: of a job, by the names in PARAMETERS.
        slots: how many jobs are submitted at once, including those that wait in the queue.

    Raises:
        ConfigError: for parameters that do not exist, where submitit is not installed, or this is no cluster.
    """

    look = 0.1  # jobs tell of their ends through files that many machines share

    def __init__(self, parameters: Mapping[str, str], slots: int):
        self.slots = slots
        self.parameters = submission(parameters)
        if importlib.util.find_spec("submitit") is None:
            hint = "pip install 'bigctl[slurm]'"
            raise ConfigError("needs the package submitit, which is not installed", where=WHERE, hint=hint)
        for program in ("sbatch", "srun", "squeue", "scancel"):
            if shutil.which(program) is None:
                hint = "run this on a login node of the cluster, or leave --slurm out to train on this machine"
                raise ConfigError(f"there is no {program} on PATH", where=WHERE, hint=hint)
        self._queue = Queue()

    def rest(self) -> None:
        """Nothing is kept between jobs."""

    def executor(self, folder: Path, name: str) -> SlurmExecutor:
        """An executor of submitit, which keeps scripts, pickles and output in a folder that all nodes see."""
        from submitit.slurm.slurm import SlurmExecutor

        found = SlurmExecutor(folder=folder, python=f"{shlex.quote(sys.executable)} -P")
        try:
            found.update_parameters(job_name=name, **self.parameters)
        except ValueError as error:
            raise ConfigError(f"submitit refuses them: {str(error).splitlines()[0]}", where=WHERE) from error
        return found

    def start(self, command: Sequence[str], *, folder: Path, log: Path, avoid: Collection[str] = ()) -> SlurmJob:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        work = Command(tuple(command), str(folder.resolve()), str(log.resolve()))
        executor = self.executor(log.resolve().parent / "slurm", f"bigctl-{log.stem}")
        try:
            job = executor.submit(work)
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            said = [line.strip() for line in str(error).splitlines() if line.strip()]
            hint = f"the parameters of {WHERE} may not fit this cluster"
            raise TrainingFailed(
                f"sbatch rejects the job: {said[-1] if said else error!r}", where=WHERE, hint=hint
            ) from error
        return SlurmJob(job, self._queue)


@dataclass
class Queue:
    """The user's jobs in SLURM's queue, queried all at once and at most every few seconds."""

    states: dict[str, str] | None = None
    """{job: state}; None while the cluster does not answer."""
    _asked: float = field(default=float("-inf"))

    def state(self, job: str, *, now: bool = False) -> str | None:
        """PENDING, RUNNING, ...; "" for a job that no longer exists, None if unknown."""
        if now or time.monotonic() - self._asked >= LOOK:
            self._asked = time.monotonic()
            answer = _ask("squeue", "--noheader", f"--user={os.getuid()}", "--format=%i %T")
            lines = (line.split() for line in (answer or "").splitlines())
            self.states = None if answer is None else {words[0]: words[1] for words in lines if len(words) > 1}
        return None if self.states is None else self.states.get(job, "")


class SlurmJob:
    """A submitted job."""

    def __init__(self, job: SubmittedJob[int], queue: Queue):
        self._job, self._queue = job, queue
        self.place = f"slurm {job.job_id}"
        self._code: int | None = None
        self._submitted = time.monotonic()
        self._gone: float | None = None
        self._cancelled = False

    def poll(self) -> int | None:
        if self._code is None:
            self._code = self._result()
        if self._code is None and time.monotonic() - self._submitted > LAG:
            if self._queue.state(self._job.job_id) == "":
                self._gone = self._gone or time.monotonic()
                if time.monotonic() - self._gone >= LAG:
                    self._code = 75 if self._cancelled else self._end()
            else:
                self._gone = None
        return self._code

    def _result(self) -> int | None:
        """The exit code that the job has written; None if there is none (yet)."""
        if not self._job.paths.result_pickle.exists():
            return None
        from submitit.core.utils import FailedJobError, UncompletedJobError

        try:
            return int(self._job.result())
        except (FailedJobError, UncompletedJobError):
            return 1  # the cause is in its log

    def _end(self) -> int:
        """The exit code of a job that did not write it, from accounting if there is any."""
        answer = _ask(
            "sacct", "--noheader", "--allocations", "--parsable2", "--format=State", f"--jobs={self._job.job_id}"
        )
        state = (answer or "").strip().splitlines()[-1:] or [""]
        return _ENDS.get(state[0].split(" ")[0].rstrip("+"), 1)

    def terminate(self) -> None:
        """Ask a running job to save and exit; cancel a waiting one."""
        if self._queue.state(self._job.job_id, now=True) in ("PENDING", "CONFIGURING"):
            self._cancelled = True
            _ask("scancel", self._job.job_id)
        else:
            _ask("scancel", "--signal=TERM", self._job.job_id)

    def kill(self) -> None:
        _ask("scancel", "--signal=KILL", "--full", self._job.job_id)
        _ask("scancel", self._job.job_id)


def _ask(*command: str) -> str | None:
    """The output of a command of the cluster; None if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


@dataclass(frozen=True)
class Command:
    """Runs a command in a folder, with its output in a log; returns its exit code, negative for a signal. Pickled, and
    executed on the node."""

    command: tuple[str, ...]
    folder: str
    log: str

    def __call__(self) -> int:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SUBMITIT_")}
        with append_regular(Path(self.log)) as stream:
            process = subprocess.Popen(
                self.command, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=stream,
                stderr=subprocess.STDOUT,
            )  # fmt: skip

            def pass_on(number: int, frame: FrameType | None) -> None:
                process.send_signal(signal.SIGTERM if number == signal.SIGTERM else signal.SIGUSR1)

            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
                signal.signal(number, pass_on)
            return process.wait()
