"""The end of one packed trial before its time, which the others go on without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bigctl.training.signals import StopRequest

PRUNE = "prune"
"""A file of this name in a run directory asks a packed trial to stop; it holds the reason."""


class TrialStop:
    """The stop request of one trial: that of the process, or the file `prune` in its run directory."""

    def __init__(self, process: StopRequest, run: Path):
        self._process, self._file = process, run / PRUNE
        self._pruned: str | None = None

    @property
    def exit_code(self) -> int | None:
        if self._pruned is None and self._file.exists():
            self._pruned = self._file.read_text(encoding="utf-8").strip() or "pruned"
        return 75 if self._pruned is not None else self._process.exit_code

    @property
    def reason(self) -> str:
        return self._process.reason if self._pruned is None else self._pruned

    def reached(self, steps: int) -> bool:
        return self.exit_code is not None or self._process.reached(steps)

    def room(self, steps: int, limit: int) -> int:
        return limit

    def at(self, deadline: float, reason: str) -> None:
        self._process.at(deadline, reason)

    def orderly(self) -> None:
        self._process.orderly()

    def listen(self, told: Callable[[str], None]) -> None:
        """A trial says nothing: the sweep does."""
