"""Several processes that train one run together: how they find each other, agree, and end together.

`jax.distributed` connects them; its coordination service, in process 0, also holds the few short texts by which they
agree. Process 0 leads: it alone holds the lock, writes and speaks. All see the same run directory. Free of jax until
`join`.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from bigctl import errors
from bigctl.errors import BigctlError, Stuck, TrainingFailed
from bigctl.parallel.cluster import ELASTIC, ClusterInfo, read_cluster_info

T = TypeVar("T")

HEARTBEAT = 30
"""Silence after which a process counts as lost [s]."""
POLL = 0.5  # s between looks at what the others have said
_GRACE = 10.0  # s for the others to hear that this process ends, and for this one to end by itself after another
_SLICE = 2_000  # ms of one wait: between two of them Python handles signals
_LOST = re.compile(r"gloo|nccl|coordination|connection (reset|closed|refused)|socket closed|heartbeat|barrier", re.I)


# -------------------------------------------------------------------------------------------------------- one of many


class SingleProcess:
    """The one process of a run, which leads and never waits."""

    index, count, leads = 0, 1, True

    def first(
        self,
        function: Callable[[], T],
        *,
        pack: Callable[[T], Any] = lambda value: value,
        unpack: Callable[[Any], T] = lambda value: value,
    ) -> T:
        """What the function gives in the first process, in all of them: packed there as JSON, unpacked in the others.

        Errors are those of all too. All processes must come here, in the same order.
        """
        return function()

    def in_turn(self, function: Callable[[], T]) -> T:
        """Each process's own result, the first process before all others; over when all have theirs."""
        return function()

    def barrier(self, name: str) -> None:
        """Until all processes are here."""

    def failed(self, error: Exception) -> Exception:
        """That this process ends by an error, said to the others; gives what the user is to be told."""
        return error

    def end(self, error: BigctlError) -> None:
        """Say why, and end the process at once, from any thread."""
        _say_plainly(f"{error.message}\n        run the same command again: it goes on from the last checkpoint")
        _end(error.exit_code)


SINGLE_PROCESS = SingleProcess()


class ProcessGroup(SingleProcess):
    """This process among others, connected."""

    def __init__(self, where: ClusterInfo, client: Any):
        self.index, self.count, self.leads = where.index, where.count, where.index == 0
        self.client = client
        self.code: int | None = None
        self.leaving = threading.Event()
        self._calls = 0
        self._threads: list[threading.Thread] = []
        self.watch(self._watch)

    def first(
        self,
        function: Callable[[], T],
        *,
        pack: Callable[[T], Any] = lambda value: value,
        unpack: Callable[[Any], T] = lambda value: value,
    ) -> T:
        self._calls += 1
        name = f"bigctl/first/{self._calls}"
        if not self.leads:
            found = json.loads(self.get(name))
            if "error" in found:
                raise _error(**found["error"])
            return unpack(found["value"])
        try:
            value = function()
            self.put(name, json.dumps({"value": pack(value)}))
        except Exception as error:
            self.put(name, json.dumps({"error": _told(error)}))
            raise
        return value

    def in_turn(self, function: Callable[[], T]) -> T:
        own: list[T] = []
        self.first(lambda: own.append(function()))
        if not self.leads:
            own.append(function())
        self.barrier(f"in turn {self._calls}")
        return own[0]

    def barrier(self, name: str) -> None:
        self.put(f"bigctl/barrier/{name}/{self.index}", "here")
        for index in range(self.count):
            self.get(f"bigctl/barrier/{name}/{index}")

    def failed(self, error: Exception) -> Exception:
        # A collective that breaks off, or a save that needed the others: either may be the first to notice.
        if (type(error) is TrainingFailed or not isinstance(error, BigctlError)) and _LOST.search(str(error)):
            error = Stuck(_UNREACHABLE, hint=_AGAIN)
            if not self.leads:  # the first says it as any error; it may also be the one that is gone
                _say_lost(self)
        self.code = error.exit_code if isinstance(error, BigctlError) else 1
        with contextlib.suppress(Exception):
            self.put(f"bigctl/ended/{self.index}", str(self.code))
        return error

    def put(self, name: str, value: str) -> None:
        self.client.key_value_set(name, value)

    def say(self, folder: str, value: str) -> None:
        """A text of this process, in place of the one before; `below` gives those of all."""
        self.client.key_value_set(f"{folder}/{self.index}", value, allow_overwrite=True)

    def get(self, name: str) -> str:
        """A text, once one of the processes has put it there; without end, as only a lost process ends the wait."""
        while True:
            try:
                return str(self.client.blocking_key_value_get(name, _SLICE))
            except Exception as error:
                if "DEADLINE_EXCEEDED" not in str(error) or self.leaving.is_set():
                    raise

    def below(self, folder: str) -> dict[str, str]:
        """What is there by now: {last part of the name: text}."""
        return {name.rsplit("/", 1)[1]: value for name, value in self.client.key_value_dir_get(folder)}

    def watch(self, function: Callable[[], None]) -> None:
        """Run it in a thread of its own, which has to end soon after `leaving` is set: before the client does."""
        thread = threading.Thread(target=function, name="processes", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _watch(self) -> None:
        """End with the others: one that has failed has left this one waiting for it."""
        with contextlib.suppress(Exception):  # the service is gone, and `_aborted` has the word
            while self.code is None and not self.leaving.wait(POLL):
                codes = [int(code) for name, code in self.below("bigctl/ended").items() if int(name) != self.index]
                if codes:
                    time.sleep(_GRACE / 2)  # most errors are those of all
                    _end(codes[0] if self.code is None else self.code)

    def end(self, error: BigctlError) -> None:
        self.code = error.exit_code
        _say_plainly(f"process {self.index} of {self.count}: {error.message}\n        {_AGAIN}")
        told = threading.Thread(target=self.failed, args=(error,), daemon=True)
        told.start()  # the service may be what does not answer
        told.join(1)
        time.sleep(_GRACE / 2)  # the others have to say it too, and the first process holds what they read
        _end(self.code)

    def leave(self) -> None:
        """At the exit of the process. Without the others there is no orderly end, only a quick one."""
        import jax

        self.leaving.set()
        if self.code is None:
            for thread in self._threads:
                thread.join()
            with contextlib.suppress(Exception):
                jax.distributed.shutdown()
            return
        with contextlib.suppress(Exception):  # the first process holds what the others are to read
            self.client.wait_at_barrier("bigctl/left", int(_GRACE * 1000))
        _end(self.code)


_group: ProcessGroup | None = None
_UNREACHABLE = "another process of the run has ended, or cannot be reached"
_AGAIN = (
    "those that are there go on from the last checkpoint"
    if os.environ.get(ELASTIC)
    else "start all processes again: they go on from the last checkpoint"
)


def current() -> SingleProcess:
    """This process among those it has joined; alone before."""
    return _group or SINGLE_PROCESS


def join(timeout: int) -> SingleProcess:
    """Connect with the other processes, if there are any. Nothing may have touched a device before.

    Args:
        timeout: how long to wait for them [s].

    Raises:
        Stuck: if they do not come.
    """
    global _group, _missing
    where = read_cluster_info()
    if where is None:
        return SINGLE_PROCESS
    if _group is not None:
        return _group
    _silence_libraries()
    import jax
    from jax._src import distributed  # where the client is; orbax takes it from there too

    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM for itself
    _missing = f"process {where.index} of {where.count}: not all came within {timeout} s to {where.address}"
    _at_abort()
    try:
        jax.distributed.initialize(
            where.address,
            where.count,
            where.index,
            local_device_ids=where.devices,
            cluster_detection_method="deactivate",
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=HEARTBEAT,
        )
    except Exception as error:
        raise Stuck(f"{_missing}: {str(error)[:200]}", hint=_START) from error
    _group = ProcessGroup(where, distributed.global_state.client)
    atexit.register(_group.leave)
    return _group


_missing = ""
_START = "start all of them, with the same address; mesh.wait is how long they wait for each other"


# ------------------------------------------------------------------------------------------------------------ endings


def silence_process() -> None:
    """A process that follows prints nothing: what there is to say process 0 says."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for the life of the process
    sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


_stderr = 2


def _silence_libraries() -> None:
    """What libraries below Python write by themselves goes nowhere: gloo greets its peers on stdout, and where a
    process is lost jax's client prints stack traces. BIGCTL_TRACEBACK=1 shows all that, on stderr."""
    global _stderr
    if _stderr != 2:
        return
    streams = [os.dup(1), os.dup(2)]
    _stderr = streams[1]
    for name, number, kept in (("stdout", 1, streams[0]), ("stderr", 2, streams[1])):
        stream = getattr(sys, name)
        with contextlib.suppress(OSError, AttributeError, ValueError):
            stream.flush()
            if stream.fileno() == number:
                own = open(kept, "w", encoding=stream.encoding, buffering=1, closefd=False)  # noqa: SIM115
                setattr(sys, name, own)
    shown = streams[1] if os.environ.get("BIGCTL_TRACEBACK") else os.open(os.devnull, os.O_WRONLY)
    os.dup2(shown, 1)
    os.dup2(shown, 2)


def _at_abort() -> None:
    """jax's client aborts the process when another one is lost or does not come, and knows no other way: end as any
    failed run does."""
    global _handler
    _handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(_aborted)
    library = ctypes.CDLL(None)
    library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    library.signal.restype = ctypes.c_void_p
    library.signal(signal.SIGABRT, ctypes.cast(_handler, ctypes.c_void_p))


_handler: Any = None


def _aborted(number: int) -> None:
    if _group is not None and _group.code is not None:  # it was failing already, and has said why
        os._exit(_group.code)
    if _group is not None:
        _say_lost(_group)
    else:
        _say_plainly(f"{_missing}\n        {_START}")
    os._exit(Stuck.exit_code)


def _say_lost(group: ProcessGroup) -> None:
    _say_plainly(f"process {group.index} of {group.count}: {_UNREACHABLE}\n        {_AGAIN}")


def _say_plainly(text: str) -> None:
    """A line on stderr, also by a process that is mute."""
    with contextlib.suppress(OSError):
        os.write(_stderr, f"bigctl: {text}\n".encode())


def _end(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


def _told(error: Exception) -> dict[str, Any]:
    """What the others need to raise the same, see `_error`."""
    said: dict[str, Any] = {"kind": type(error).__name__, "message": str(error), "code": 1}
    if isinstance(error, BigctlError):
        said |= {"message": error.message, "code": error.exit_code}
    return {**said, **{key: getattr(error, key, None) for key in ("where", "hint")}}


def _error(kind: str, message: str, code: int, where: str | None, hint: str | None) -> BigctlError:
    cls = getattr(errors, kind, TrainingFailed)
    if cls is errors.Preempted:
        return errors.Preempted(message, exit_code=code, where=where, hint=hint)
    return cls(message, where=where, hint=hint)  # type: ignore[no-any-return]
