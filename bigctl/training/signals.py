"""Asked to stop, by a signal or a time limit: end the step, save, and exit. A second signal exits at once, and so does
Ctrl-C while a command only starts."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Protocol

from bigctl.parallel import host_memory

TOGETHER = 0.2  # s; `timeout` and wrappers that pass signals on send one request twice, to the process and to its group
REASONS = {
    signal.SIGINT: "Ctrl-C",
    signal.SIGTERM: "SIGTERM",
    signal.SIGUSR1: "SIGUSR1",  # what `sbatch --signal=USR1@90` sends before the time of a job is over
    signal.SIGHUP: "SIGHUP",  # the terminal or the connection has gone
}
URGENT = (signal.SIGTERM, signal.SIGINT)
"""A second one of these ends the process. The others announce an end: a SIGTERM that follows is the first request."""


class Stop(Protocol):
    """What training asks between two steps, and at its end."""

    @property
    def exit_code(self) -> int | None:
        """What to exit with, once asked to stop; None until then."""

    @property
    def reason(self) -> str:
        """What asked, for people; empty while nothing did."""

    def reached(self, steps: int) -> bool:
        """Whether training ends here, so many steps after its start."""

    def room(self, steps: int, limit: int) -> int:
        """How many of the next `limit` steps may be taken."""

    def listen(self, told: Callable[[str], None]) -> None:
        """Call this when a signal asks to stop, at once and from another thread, with what asked."""


class TimedStop(Stop, Protocol):
    """A `Stop` that a time limit can be given to."""

    def at(self, deadline: float, reason: str) -> None:
        """Ask to stop at a time of `time.monotonic` [s], with exit code 75."""

    def orderly(self) -> None:
        """From here on there is something to save: also Ctrl-C is a request."""


class StopRequest:
    """While entered, the first signal is noted in `exit_code` (Ctrl-C 130, others 75), a second ends the process.

    A thread reads them, so memory is kept from here on where it is not yet (`host_memory.keep_memory`).

    Args:
        leave: what a command says that is ended by Ctrl-C while it starts, as long as it imports and prepares data.
            None where Ctrl-C is a request from the beginning, as in a process that is not ours to end.

    Attributes:
        reason: what asked, for people; empty while nothing did.
        closing: what is to be done before such an end, by whatever is open.
    """

    def __init__(self, leave: Callable[[], None] | None = None) -> None:
        self.reason = ""
        self.closing: Callable[[], None] | None = None
        self._leave = leave
        self._exit_code: int | None = None
        self._deadline: tuple[float, str] | None = None
        self._told: Callable[[str], None] = lambda reason: None
        self._wakeup: tuple[int, int] | None = None
        self._previous: dict[int, object] = {}

    @property
    def exit_code(self) -> int | None:
        """What to exit with, once asked to stop; None until then."""
        if self._exit_code is None and self._deadline is not None and time.monotonic() >= self._deadline[0]:
            self.exit_code, self.reason = 75, self._deadline[1]
        return self._exit_code

    @exit_code.setter
    def exit_code(self, code: int | None) -> None:
        self._exit_code = code

    def reached(self, steps: int) -> bool:
        """Whether training ends here, so many steps after its start."""
        return self.exit_code is not None

    def room(self, steps: int, limit: int) -> int:
        """How many of the next `limit` steps may be taken."""
        return limit

    def at(self, deadline: float, reason: str) -> None:
        """Ask to stop at a time of `time.monotonic` [s], with exit code 75."""
        self._deadline = (deadline, reason)

    def orderly(self) -> None:
        """From here on there is something to save: also Ctrl-C is a request."""
        self._leave = None

    def listen(self, told: Callable[[str], None]) -> None:
        """Call this when a signal asks to stop, at once and from another thread, with what asked."""
        self._told = told

    def __enter__(self) -> StopRequest:
        host_memory.keep_memory()  # before its thread, which is the first one of a command that trains
        if threading.current_thread() is threading.main_thread():
            reader, writer = os.pipe()
            os.set_blocking(writer, False)
            self._wakeup = (signal.set_wakeup_fd(writer, warn_on_full_buffer=False), writer)
            threading.Thread(target=self._watch, args=(reader,), name="signals", daemon=True).start()
            for number in REASONS:
                if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue  # under nohup
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if self._wakeup is not None:
            before, writer = self._wakeup
            signal.set_wakeup_fd(before)
            os.close(writer)  # which ends the thread

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _leave_dead_terminal()
        while number == signal.SIGINT and self._leave is not None:  # the thread ends the process
            time.sleep(0.01)
        if self.exit_code is None:
            self.reason = REASONS[signal.Signals(number)]
            self.exit_code = 130 if number == signal.SIGINT else 75

    def _watch(self, reader: int) -> None:
        """Tell of the first signal, and end the process at the second urgent one, or at Ctrl-C while it starts.

        Handlers wait while the main thread compiles or computes; this thread reads the numbers of signals as they
        arrive."""
        first: float | None = None
        told = False
        with open(reader, "rb", buffering=0) as stream:
            while number := stream.read(1):
                now = time.monotonic()
                if number[0] == signal.SIGINT and (leave := self._leave) is not None:
                    for each in (leave, self.closing):
                        with contextlib.suppress(Exception):
                            if each is not None:
                                each()
                    os._exit(130)
                if number[0] in REASONS and not told:
                    told = True
                    with contextlib.suppress(Exception):  # a terminal that is gone
                        self._told(REASONS[signal.Signals(number[0])])
                if number[0] not in URGENT:
                    continue
                if first is not None and now - first >= TOGETHER:
                    os._exit(130 if number[0] == signal.SIGINT else 143)
                first = now if first is None else first


def _leave_dead_terminal() -> None:
    """Output to a terminal that has gone would fail, and the run with it: from now on it goes nowhere."""
    for stream in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(stream).st_mode) and not os.isatty(stream):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
