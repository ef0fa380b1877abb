"""The command line. This file is the first of it that is read: Ctrl-C is answered in one line from here on."""

from __future__ import annotations

import os
import signal
import sys
import threading


def _leave(number: int, frame: object) -> None:
    os.write(2, b"bigctl: interrupted\n")
    os._exit(130)


_SCRIPTS = ("bigctl", os.path.join("bigctl", "__main__.py"))

INTERRUPTED = (
    f"/{sys.argv[0] if sys.argv else ''}".endswith(tuple(f"/{script}" for script in _SCRIPTS))
    and threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
)
"""Whether this process is a command that has not begun: nothing is lost if it ends on the spot, and an exception out of
the middle of an import would be shown in full."""
if INTERRUPTED:
    signal.signal(signal.SIGINT, _leave)
