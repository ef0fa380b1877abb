"""Processes that were asked to stop, all or one of them, stop after the same step.

Whoever is asked tells the others. From then on each says how far it has promised to go, and none promises more; the
farthest of these is where all stop, so that no one waits on a device for a step that another never takes. Nothing is
exchanged while no one is asked.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable

from bigctl.parallel.distributed import POLL, ProcessGroup
from bigctl.training.signals import Stop


class SharedStop:
    """The stop request of all processes; to the loop it is what a `StopRequest` is to a single one.

    Attributes:
        reason: what asked, for people.
        exit_code: once all have agreed; None until then.
    """

    def __init__(self, own: Stop, group: ProcessGroup):
        self.own, self.group = own, group
        self.reason = ""
        self.exit_code: int | None = None
        self._last = 0
        self._promised = 0
        self._lock = threading.Lock()
        self._asked = False
        self._agreed = threading.Event()
        group.watch(self._watch)

    def reached(self, steps: int) -> bool:
        """Whether training ends here, so many steps after its start; else the next step is promised."""
        return self.room(steps, 1) == 0

    def room(self, steps: int, limit: int) -> int:
        """How many of the next `limit` steps may be taken, which are promised."""
        with self._lock:
            if not self._asked:
                self._promised = max(self._promised, steps + limit)
                return limit
        while not self._agreed.wait(POLL):  # in slices, for a second signal
            pass
        return max(0, min(limit, self._last - steps))

    def listen(self, told: Callable[[str], None]) -> None:
        """Call this when a signal asks this process to stop."""
        self.own.listen(told)

    def _watch(self) -> None:
        with contextlib.suppress(Exception):  # the others are lost, which ends this process soon
            while not (said := self.group.below("bigctl/stop/request")):
                if self.own.exit_code is not None:
                    with contextlib.suppress(Exception):  # another was asked at the same time, and was first
                        asked = {"code": self.own.exit_code, "reason": self.own.reason}
                        self.group.put("bigctl/stop/request/first", json.dumps(asked))
                elif self.group.leaving.wait(POLL):
                    return
            with self._lock:
                self._asked = True
            self.group.put(f"bigctl/stop/promised/{self.group.index}", str(self._promised))
            everyone = range(self.group.count)
            self._last = max(int(self.group.get(f"bigctl/stop/promised/{index}")) for index in everyone)
            first = json.loads(said["first"])
            self.exit_code, self.reason = first["code"], first["reason"]
            self._agreed.set()
