"""Asked to stop: SIGTERM and Ctrl-C end the step, save, and exit; a second one exits at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType

TOGETHER = 0.2  # s; `timeout` and wrappers that pass signals on send one request twice, to the process and to its group


class StopRequest:
    """While entered, the first SIGTERM or SIGINT is noted in `exit_code` (75 or 130), the second ends the process."""

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._first = 0.0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.exit_code is not None and time.monotonic() - self._first < TOGETHER:
            return
        if self.exit_code is not None:
            os._exit(130 if number == signal.SIGINT else 143)
        self._first = time.monotonic()
        self.exit_code = 130 if number == signal.SIGINT else 75
