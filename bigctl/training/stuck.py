"""A run that is stuck says so, and which of its processes it waits for.

The main thread tells when a step is on its way and what else it does; a thread of its own looks whether that goes on.
Several processes tell each other how far they are, through the service that connects them. Where one does not come, all
wait for it, so all notice at the same time: those that are farthest behind are named, with the place in the code where
they stand, and the run ends. One that says it does something else than steps, such as compiling, is waited for as long
as that may take. No clock is compared with that of another process: each counts for itself how long it has
seen nothing new.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bigctl.parallel.distributed import POLL, ProcessGroup, SingleProcess

STEPS = ""
"""The activity that is training; others are named, such as "evaluating"."""
LEAST = 120.0
"""Without `train.step_timeout`: nothing is called stuck before that [s]."""
TIMES_MEDIAN, TIMES_LONGEST = 20.0, 5.0
"""Without it: how many times as long as usual, and as the longest of late, a step has to take."""
FIRST = 3600.0
"""What is done for the first time, as compiling or a first evaluation, may take that long [s]."""
_KNOWN = 5  # steps before the usual length of one is known
_LOOK = 2.0  # s between two looks at most: all are to say who it is before the first of them ends
_SILENT = 3.0  # s without a word, and three times what lies between two words, make a process silent


@dataclass
class Pace:
    """How long things take in this process [s].

    Args:
        timeout: `train.step_timeout`; None to go by what steps have taken.
    """

    timeout: float | None
    _steps: deque[float] = field(default_factory=lambda: deque(maxlen=200))
    _longest: dict[str, float] = field(default_factory=dict)

    def took(self, activity: str, seconds: float) -> None:
        if activity == STEPS:
            self._steps.append(seconds)
        else:
            self._longest[activity] = max(seconds, self._longest.get(activity, 0.0))

    def limit(self, activity: str) -> float | None:
        """How long it may take; None where nothing can be said."""
        if activity != STEPS:
            known = self._longest.get(activity)
            if known is None:
                return FIRST
            return max(LEAST, 10 * known) if self.timeout is None else self.timeout + known
        if self.timeout is not None:
            return self.timeout
        steps = list(self._steps)  # the main thread adds to them
        if len(steps) < _KNOWN:
            return None
        return max(LEAST, TIMES_MEDIAN * statistics.median(steps), TIMES_LONGEST * max(steps))


@dataclass
class Word:
    """What a process has said last: how often it has spoken, the step it is at, what it does, the place in the code
    once it seems stuck, and whether what it does is no step and may still take a while; `since` is when it was heard,
    by the clock of who heard it."""

    count: int
    step: int
    activity: str
    place: str = ""
    busy: bool = False
    since: float = 0.0


class StuckWatch:
    """Looks whether a fit goes on, until it is closed.

    Args:
        group: the processes that train together.
        timeout: `train.step_timeout` [s]; None for one by what steps have taken.
        step: where the fit begins.
        warn: a sentence for the user, where nothing is ended: of a single process without a timeout.
        end: (sentence, stack of the main thread): the run ends here, in this process; does not come back.
    """

    def __init__(
        self,
        group: SingleProcess,
        timeout: float | None,
        step: int,
        *,
        warn: Callable[[str], None],
        end: Callable[[str, str], None],
    ):
        self.group, self.pace, self._warn, self._end = group, Pace(timeout), warn, end
        self._step, self._activity, self._since, self._beats = step, STEPS, time.monotonic(), 0
        self._told_of = -1
        self._heard = time.monotonic()
        self._others = {index: Word(-1, step, STEPS, since=self._heard) for index in range(group.count)}
        self._main = threading.current_thread().ident
        self._closed = threading.Event()
        # what asks the others may itself have to wait, if they hang: then it is the first process that does not answer
        if isinstance(group, ProcessGroup):
            group.watch(self._exchange)
        threading.Thread(target=self._look, name="stuck", daemon=True).start()

    # ------------------------------------------------------------------------------------ what the main thread tells

    def stepped(self, step: int) -> None:
        """So many steps are on their way."""
        if self._activity == STEPS:
            self.pace.took(STEPS, time.monotonic() - self._since)
        self._beat(step, self._activity)

    def doing(self, what: str) -> None:
        """What goes on from here on; empty for steps."""
        if self._activity != STEPS:
            self.pace.took(self._activity, time.monotonic() - self._since)
        self._beat(self._step, what)

    def close(self) -> None:
        self._closed.set()

    def _beat(self, step: int, activity: str) -> None:
        self._step, self._activity, self._since = step, activity, time.monotonic()
        self._beats += 1

    # ----------------------------------------------------------------------------------------------- what is looked at

    @property
    def _interval(self) -> float:
        """Between two looks [s]: often enough for the limit, seldom enough for hundreds of processes."""
        return min(10.0, max(POLL, (self.pace.timeout or LEAST) / 12))

    def _stands(self) -> float:
        """How long the main thread has told nothing new [s]."""
        return time.monotonic() - self._since

    def _place(self) -> str:
        """Where the main thread is, the innermost call first."""
        frame = sys._current_frames().get(self._main or -1)
        stack = reversed(traceback.extract_stack(frame)[-4:])
        return " < ".join(f"{f.name} ({'/'.join(Path(f.filename).parts[-2:])}:{f.lineno})" for f in stack)

    def _stack(self) -> str:
        return "".join(traceback.format_stack(sys._current_frames().get(self._main or -1)))

    def _exchange(self) -> None:
        """Say how far this process is, and hear the others."""
        assert isinstance(self.group, ProcessGroup)
        while not self._closed.is_set() and not self.group.leaving.wait(self._interval):
            with contextlib.suppress(
                Exception
            ):  # the service did not answer; should it have gone, this process ends soon
                self._say_and_hear(self.group)

    def _say_and_hear(self, group: ProcessGroup) -> None:
        limit = self.pace.limit(self._activity)
        late = limit is not None and self._stands() > limit / 2
        busy = self._activity != STEPS and (limit is None or self._stands() <= limit)
        said = {"step": self._step, "activity": self._activity, "place": self._place() if late else "", "busy": busy}
        count = self._beats + int(time.monotonic() * 1000)  # never the same twice
        group.say("bigctl/pulse", json.dumps({**said, "count": count}))
        for index, text in group.below("bigctl/pulse").items():
            word, before = Word(**json.loads(text)), self._others[int(index)]
            word.since = before.since if before.count == word.count else time.monotonic()
            self._others[int(index)] = word
        self._heard = time.monotonic()

    def _look(self) -> None:
        while True:
            before = time.monotonic()
            if self._closed.wait(min(_LOOK, self._interval)):
                return
            pause = min(_SILENT, (self.pace.timeout or LEAST) / 2)
            if time.monotonic() - before > 2 * self._interval + pause:  # this process was stopped itself, or starved
                now = time.monotonic()
                self._since = self._heard = now
                for word in list(self._others.values()):
                    word.since = now
                continue
            limit, stands, step = self.pace.limit(self._activity), self._stands(), self._step
            if limit is None or stands <= limit or self._told_of == self._beats or self._others_busy():
                continue
            if self.group.count == 1 and self.pace.timeout is None:
                self._told_of = self._beats
                self._warn(
                    f"{self._past(step, stands)}: it stands in {self._place()}; train.step_timeout ends such a run"
                )
                continue
            beats, sentence = self._beats, self._sentence(stands)
            if beats == self._beats and not self._closed.is_set():
                self._end(sentence, self._stack())

    def _others_busy(self) -> bool:
        """Whether a process that is behind, and answers, is at something else than steps and not for too long yet."""
        now, quiet = time.monotonic(), max(_SILENT, 3 * self._interval)
        behind = [word for word in list(self._others.values()) if word.step < self._step]
        return any(word.busy and now - word.since <= quiet for word in behind)

    def _past(self, step: int, stands: float) -> str:
        doing = f", {self._activity}" if self._activity != STEPS else ""
        return f"nothing has come after step {step}{doing} for {stands:.0f} s"

    def _sentence(self, stands: float) -> str:
        """Who it is that the others wait for."""
        own = self._past(self._step, stands)
        if self.group.count == 1:
            return f"{own}: it stands in {self._place()}"
        now, quiet = time.monotonic(), max(_SILENT, 3 * self._interval)
        if now - self._heard > quiet and self.group.index != 0:
            return f"{own}: process 0 does not answer; it is stopped, or its machine cannot be reached"
        words = {index: word for index, word in self._others.items() if index != self.group.index}
        silent = sorted(index for index, word in words.items() if now - word.since > quiet)
        if silent:
            are = "does not answer; it is" if len(silent) == 1 else "do not answer; they are"
            return f"{own}: {_processes(silent)} {are} stopped, or the machine cannot be reached"
        words[self.group.index] = Word(0, self._step, self._activity, self._place())
        last = min(word.step for word in words.values())
        behind = sorted(index for index, word in words.items() if word.step == last)
        places = "; ".join(f"process {index} stands in {words[index].place or 'no known place'}" for index in behind)
        if len(behind) == len(words):
            return f"{own}: no process is behind the others; {places}"
        return f"{own}: {_processes(behind)} of {self.group.count} did not come past step {last}; {places}"


def _processes(indices: list[int]) -> str:
    return f"process {indices[0]}" if len(indices) == 1 else f"processes {', '.join(map(str, indices))}"
