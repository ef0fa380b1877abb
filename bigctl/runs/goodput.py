"""Where the wall time of a run went, over all of its starts: a ledger that a kill cannot take back. Free of jax.

`goodput.json` has one entry a start. The process that trains replaces it again and again, after a two-hundredth of its
own time, so that what a kill leaves out is below one in a hundred of what was counted.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bigctl.errors import BigctlError
from bigctl.files import temporary_name
from bigctl.formatting import clock
from bigctl.runs import untrusted
from bigctl.runs.directory import RunDirectory

PARTS = ("start-up", "compiling", "data", "steps", "evaluation", "saving", "finish")
"""What a start spends its time on: before the loop; what each program takes to compile; waiting for batches; training;
scores and samples; checkpoints; what comes after the last step."""
SHAPE: untrusted.Shape = {
    "starts": [{"begun": untrusted.TIME, "first": untrusted.COUNT, "last": untrusted.COUNT, "parts": {str: float}}]
}
Spent = Callable[[], tuple[Mapping[str, float], int]]
"""Gives the parts without "start-up" and "steps" [s], and the last step, as they are by now."""
_OFTEN, _SELDOM = 0.1, 10.0  # s


@dataclass(frozen=True)
class Goodput:
    """The wall time of a run.

    Attributes:
        starts: how many.
        wall: of all of them, from process to process [s].
        parts: what it is made of, by `PARTS` [s]; they add up to it.
        lost: of the steps, those that a later start made again [s].
    """

    starts: int
    wall: float
    parts: Mapping[str, float]
    lost: float

    @property
    def share(self) -> float:
        """Of the time, that of steps which counted."""
        return max(0.0, self.parts["steps"] - self.lost) / self.wall if self.wall else 0.0

    @property
    def said(self) -> str:
        starts = "one start" if self.starts == 1 else f"{self.starts} starts"
        parts = [f"{name} {clock(spent)}" for name, spent in self.parts.items() if spent >= 0.5]
        lost = [f"of the steps lost to restarts {clock(self.lost)}"] if self.lost >= 0.5 else []
        return f"{self.share:.0%} of {clock(self.wall)} in {starts}: {', '.join([*parts, *lost])}"

    def to_json(self) -> dict[str, Any]:
        return {
            "share": self.share, "starts": self.starts, "wall": self.wall, "parts": dict(self.parts), "lost": self.lost,
            "said": self.said,
        }  # fmt: skip


def of_run(run: RunDirectory) -> Goodput | None:
    """Of a run in any state; None where nothing is known, as of one of an earlier version."""
    starts = _read(run)
    if not starts:
        return None
    parts = {name: sum(float(start["parts"].get(name) or 0) for start in starts) for name in PARTS}
    lost = 0.0
    for start, following in zip(starts, starts[1:], strict=False):
        made = start["last"] - start["first"]
        if made > 0 and following["first"] < start["last"]:
            again = min(made, start["last"] - following["first"])
            lost += float(start["parts"].get("steps") or 0) * again / made
    return Goodput(len(starts), sum(parts.values()), parts, lost)


def _read(run: RunDirectory) -> list[dict[str, Any]]:
    try:
        starts = untrusted.read(run.goodput, SHAPE).get("starts") or []
    except (OSError, ValueError, BigctlError):
        return []
    whole = [s for s in starts if s and None not in (s.get("first"), s.get("last"), s.get("parts"))]
    return [{**s, "parts": {name: max(0.0, float(part or 0)) for name, part in s["parts"].items()}} for s in whole]


class Ledger:
    """The ledger of one start, which is written until it is closed.

    Args:
        run: where it is kept.
        began: when the process was started, by `time.monotonic` [s].
        first: the step it begins with.
        spent: what it has come to.
    """

    def __init__(self, run: RunDirectory, began: float, first: int, spent: Spent):
        self._run, self._began, self._spent, self._before = run, began, spent, _read(run)
        self._start_up = time.monotonic() - began
        for left in run.path.glob(f".{run.goodput.name}.*.tmp"):  # by a start that was killed
            with contextlib.suppress(OSError):
                left.unlink()
        self._entry = {"begun": time.time() - self._start_up, "first": first, "last": first, "parts": {}}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="goodput", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Training has ended; what follows is added by `finished`."""
        self._closed.set()
        self._thread.join()
        self._write()

    def _keep(self) -> None:
        while not self._closed.wait(min(_SELDOM, max(_OFTEN, (time.monotonic() - self._began) / 200))):
            self._write()

    def _write(self) -> None:
        parts, last = self._spent()
        known = self._start_up + sum(parts.values())
        steps = max(0.0, time.monotonic() - self._began - known)
        self._entry |= {"last": last, "parts": {"start-up": self._start_up, **parts, "steps": steps}}
        _replace(self._run, [*self._before, self._entry])


@contextlib.contextmanager
def kept(run: RunDirectory, began: float, first: int, spent: Spent) -> Iterator[None]:
    """A `Ledger` while a fit goes on, where this process is the one that writes."""
    if not run.writes:
        yield
        return
    ledger = Ledger(run, began, first, spent)
    try:
        yield
    finally:
        ledger.close()


def finished(run: RunDirectory, began: float) -> None:
    """Add what the last start has taken since it was closed."""
    if starts := _read(run):
        parts = starts[-1]["parts"]
        rest = time.monotonic() - began - sum(float(spent) for spent in parts.values())
        _replace(run, [*starts[:-1], {**starts[-1], "parts": {**parts, "finish": max(0.0, rest)}}])


def _replace(run: RunDirectory, starts: list[dict[str, Any]]) -> None:
    """Without waiting for the disk, and without a word where it is full: nothing depends on it."""
    rounded = [{**s, "parts": {name: round(float(spent), 3) for name, spent in s["parts"].items()}} for s in starts]
    temporary = temporary_name(run.goodput)
    try:
        temporary.write_text(json.dumps({"starts": rounded}))
        temporary.replace(run.goodput)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
