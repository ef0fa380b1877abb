"""One process a job on this machine, each pinned to its own device or cores before it starts.

Jobs are sessions of their own: Ctrl-C reaches the sweep alone, which then asks them to save and exit. If the sweep
itself is killed they continue to their end, and the next start of the sweep finds them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bigctl.errors import ConfigError, TrainingFailed
from bigctl.files import append_regular
from bigctl.sweeps.execution import forking
from bigctl.sweeps.execution.forking import Forked, Nursery, Where, alike, fits, may_stay

MEMORY_A_JOB = 2 * 2**30
"""What `--jobs auto` assumes a job needs at least [bytes]."""
_affinity = threading.Lock()


class Job(Protocol):
    """A process that was started: where it runs, and how it ended."""

    place: str

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs or waits to run."""

    def terminate(self) -> None:
        """Ask it to save and exit."""

    def kill(self) -> None: ...


class Executor(Protocol):
    """Where jobs run, how many at once, and how often it may be asked for the end of one [s]."""

    slots: int
    look: float

    def start(self, command: Sequence[str], *, folder: Path, log: Path, avoid: Collection[str] = ()) -> Job:
        """Run a command in a folder, if possible in none of the places to avoid; its output is appended to the log.
        Raises TrainingFailed if it cannot be started."""

    def rest(self) -> None:
        """No job runs, and none will for a while: nothing is kept for the next one."""


@dataclass(frozen=True)
class Slot:
    """A part of the machine: cores by number, and the number of a GPU with the share of its memory."""

    cores: tuple[int, ...]
    gpu: str | None = None
    share: float = 1.0

    @property
    def place(self) -> str:
        if self.gpu is not None:
            return f"gpu {self.gpu}"
        return "cores " + _ranges(self.cores) if self.cores else "this machine"

    def environment(self) -> dict[str, str]:
        found = dict(os.environ)
        if self.gpu is not None:
            found["CUDA_VISIBLE_DEVICES"] = self.gpu
            if self.share < 1:  # jax takes 75 % of a GPU's memory otherwise
                found["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 * self.share:.3f}"
        return found


class Local:
    """Processes on this machine.

    Args:
        jobs: how many at once; None for as many as it has GPUs, or else cores and memory for; one where a TPU computes.
        most: no more than so many are of use, where neither `jobs` nor GPUs decide.
        numbers: keys that trials may differ in to be trained one after another by one process, see `forking`.
        look: seam for tests: gives (cores, GPUs) of the machine.

    Raises:
        ConfigError: for too many jobs.
    """

    look = 0.01

    def __init__(
        self,
        jobs: int | None = None,
        *,
        most: int | None = None,
        numbers: Collection[str] = (),
        look: Callable[[], tuple[list[int], list[str]]] | None = None,
    ):
        self._jobs = jobs
        self._cores, self._gpus = (look or machine)()
        self._memory = _memory()
        self._all = Slot(tuple(self._cores))
        self._free: list[Slot] = []
        self._nursery: Nursery | None = None
        self._stayed: list[tuple[_Process, Forked]] = []
        self.settle(most=most, numbers=numbers)

    def settle(self, *, most: int | None = None, numbers: Collection[str] = ()) -> None:
        """What was not known when this object was made, see there; before the first job. Raises ConfigError."""
        before = self._free[0] if self._nursery is not None else None
        self.slots = self._jobs or len(self._gpus) or _processes(len(self._cores), self._memory, most)
        if self.slots > 8 * max(len(self._cores), len(self._gpus)):
            raise ConfigError(
                f"{self.slots} jobs on {len(self._cores)} cores", where="--jobs", hint="give fewer, or --jobs auto"
            )
        self._free = divide(self.slots, self._cores, self._gpus)
        self._numbers = numbers
        if before is not None and len(before.cores) != len(self._free[0].cores):
            self.close()  # see `_begin`

    def expect(self) -> None:
        """Jobs of ours will be started soon: what they need is imported while the caller finds out what they are."""
        if self._nursery is None and forking.possible():
            with contextlib.suppress(OSError):
                self._nursery = _begin(self._free[0])

    def close(self) -> None:
        """Let go of the processes that no job runs in."""
        self.rest()
        if self._nursery is not None:
            self._nursery.close()
            self._nursery = None

    def start(self, command: Sequence[str], *, folder: Path, log: Path, avoid: Collection[str] = ()) -> Job:
        slot = next((slot for slot in self._free if slot.place not in avoid), self._free[0])
        self._free.remove(slot)
        try:
            return _Process(command, slot, folder, log, self._left, self._forked)
        except OSError as error:
            self._free.insert(0, slot)
            raise TrainingFailed(f"cannot be started: {error.strerror}", where=str(log)) from error

    def alone(self, command: Sequence[str], *, folder: Path, log: Path) -> Job:
        """Run a command with all of the machine, as a shell does, beside no job but others like it. Raises OSError."""
        return _Process(command, self._all, folder, log, lambda process, forked: None, self._forked)

    @property
    def alone_at_once(self) -> int:
        """How many commands may run `alone` beside each other: one, where each would take the device for itself."""
        return 1 if self._gpus or has_tpu() else self.slots

    def rest(self) -> None:
        """End the processes that have stayed for another trial, so that what they hold is free."""
        for _, process in self._stayed:
            process.close(wait=_PATIENCE)
        self._stayed.clear()

    def _left(self, process: _Process, forked: Forked | None) -> None:
        """A job has ended; its process may have stayed."""
        self._free.append(process.slot)
        if forked is not None:
            self._stayed.append((process, forked))

    def _forked(self, command: Sequence[str], slot: Slot, folder: Path, log: int) -> Forked | None:
        """The command in a process that has imported everything, or done its like; None where that cannot be."""
        stayed = next((each for each in self._stayed if each[0].slot == slot), None)
        where = Where(folder, slot.environment(), slot.cores)
        if stayed is not None:
            self._stayed.remove(stayed)
            if alike(stayed[0].command, command, self._numbers):
                with contextlib.suppress(OSError):  # it was killed meanwhile
                    return stayed[1].again(command, where, log)
            stayed[1].close(wait=_PATIENCE)
        if not fits(command):
            return None
        for _ in range(2):  # one that was killed is replaced
            if self._nursery is None:
                self._nursery = _begin(slot)
            try:
                return self._nursery.start(command, where, log, stays=may_stay(command, self._numbers))
            except OSError:
                self._nursery.close()
                self._nursery = None
        return None


def _begin(slot: Slot) -> Nursery:
    with pinned(slot.cores):  # libraries that it imports make as many threads as it has cores
        return Nursery()


_PATIENCE = 10.0
"""How long is waited for a process that is told to end, and has nothing to do [s]."""


class _Process:
    def __init__(
        self,
        command: Sequence[str],
        slot: Slot,
        folder: Path,
        log: Path,
        left: Callable[[_Process, Forked | None], None],
        fork: Callable[[Sequence[str], Slot, Path, int], Forked | None],
    ):
        self.place, self.slot, self.command = slot.place, slot, command
        self._left: Callable[[_Process, Forked | None], None] | None = left
        self._process: Forked | subprocess.Popen[bytes]
        self._plain = lambda: _started(command, slot, folder, log)
        with append_regular(log) as stream:
            self._process = fork(command, slot, folder, stream.fileno()) or self._plain()

    def poll(self) -> int | None:
        try:
            code = self._process.poll()
        except OSError:  # it was never forked
            self._process = self._plain()
            code = None
        if code is not None and self._left is not None:
            stayed = isinstance(self._process, Forked) and self._process.stayed
            self._left(self, self._process if stayed else None)  # type: ignore[arg-type]
            self._left = None
        return code

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self.poll() is not None:
            return
        if isinstance(self._process, Forked):
            with contextlib.suppress(OSError):  # `poll` sees that it was never forked
                self._process.born()
        if self._process.pid is not None:
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:  # one that is being forked may not have its session yet
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._process.pid, number)


def _started(command: Sequence[str], slot: Slot, folder: Path, log: Path) -> subprocess.Popen[bytes]:
    with append_regular(log) as stream, pinned(slot.cores):
        return subprocess.Popen(
            list(command), cwd=folder, env=slot.environment(), start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
        )  # fmt: skip


@contextlib.contextmanager
def pinned(cores: Sequence[int]):  # type: ignore[no-untyped-def]
    """Processes that this thread starts meanwhile run on these cores alone: they inherit its affinity. Where the
    system has no affinity, nothing happens."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        yield
        return
    with _affinity:
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)


def divide(jobs: int, cores: Sequence[int], gpus: Sequence[str]) -> list[Slot]:
    """Divide the machine equally: every job has the same number of cores, because results on one core and on two differ
    in the last bits. GPUs and cores are shared where there are fewer than jobs."""
    each = max(1, len(cores) // jobs)
    parts = [tuple(cores[(i * each + k) % len(cores)] for k in range(each)) if cores else () for i in range(jobs)]
    if not gpus:
        return [Slot(part) for part in parts]
    shared = math.ceil(jobs / len(gpus))
    return [Slot(part, gpus[i % len(gpus)], 1 / shared) for i, part in enumerate(parts)]


def machine() -> tuple[list[int], list[str]]:
    """(the cores that this process may use, the numbers of the GPUs), found without jax."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = sorted(affinity(0)) if affinity else list(range(os.cpu_count() or 1))
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    if (os.environ.get("JAX_PLATFORMS") or "cuda").split(",")[0] not in ("cuda", "gpu"):
        return cores, []
    if asked is not None:
        return cores, [name for name in asked.split(",") if name and name != "-1"]
    found = [device.name.removeprefix("nvidia") for device in Path("/dev").glob("nvidia[0-9]*")]
    return cores, sorted((name for name in found if name.isdecimal()), key=int)


def _processes(cores: int, memory: int, most: int | None) -> int:
    """How many jobs at once this machine is for where it has no GPU."""
    if has_tpu():
        return 1
    return max(1, min(cores, memory // MEMORY_A_JOB, most or cores))


def has_tpu(devices: Path = Path("/dev")) -> bool:
    """Whether jax would compute on a TPU, whose chips belong to one process at a time; found without jax."""
    if (os.environ.get("JAX_PLATFORMS") or "tpu").split(",")[0] != "tpu" or importlib.util.find_spec("libtpu") is None:
        return False  # without libtpu, /dev/vfio may be of any device
    return any(devices.glob("accel[0-9]*")) or any(devices.glob("vfio/[0-9]*"))


def _memory() -> int:
    """Memory that is available [bytes]."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 8 * 2**30


def _ranges(numbers: Sequence[int]) -> str:
    """ "0-3,6" for [0, 1, 2, 3, 6]."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
