"""The command line. This file is the first of it that is read: Ctrl-C is answered in one line from here on."""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sys import UnraisableHookArgs
    from typing import NoReturn


def _leave(number: int = 0, frame: object = None) -> NoReturn:
    os.write(2, b"bigctl: interrupted\n")
    os._exit(130)


class Interrupts:
    """Ctrl-C in a command that has begun: KeyboardInterrupt, by which whatever is open is closed.

    `came` tells of it where that became another exception, as out of the definition of a class. Where none can be
    raised, as out of a callback of the garbage collector, the process ends on the spot.
    """

    def __init__(self) -> None:
        self.came = False

    def listen(self) -> None:
        signal.signal(signal.SIGINT, self._raise)
        sys.unraisablehook = self._unraisable

    def _raise(self, number: int, frame: object) -> NoReturn:
        self.came = True
        raise KeyboardInterrupt

    @staticmethod
    def _unraisable(args: UnraisableHookArgs) -> None:
        if args.exc_type is KeyboardInterrupt:
            _leave()
        sys.__unraisablehook__(args)


INTERRUPTS = Interrupts()

_SCRIPTS = ("bigctl", os.path.join("bigctl", "__main__.py"))

INTERRUPTED = (
    f"/{sys.argv[0] if sys.argv else ''}".endswith(tuple(f"/{script}" for script in _SCRIPTS))
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
)
"""Whether this process is a command that has not begun: nothing is lost if it ends on the spot, and an exception out of
the middle of an import would be shown in full."""
if INTERRUPTED:
    try:
        signal.signal(signal.SIGINT, _leave)
    except ValueError:  # this is another thread than the main one
        INTERRUPTED = False
