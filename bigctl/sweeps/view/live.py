"""A sweep while it runs, on stderr: a table on a terminal, elsewhere one plain line an event. Free of jax.

24/32 trials, 2 running, 1 failed  1:20 left  best val/accuracy 0.9737 (#9)
 #  status    parameters       curve         val/accuracy  done  time
24  running   lr=0.003 seed=0  ▁▂▄▆▇▇██            0.9561   60%  0:04
 9  complete  lr=0.001 seed=1  ▁▃▅▆▇█████▇█      * 0.9737        0:07
... and 22 more
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from bigctl.files import printable
from bigctl.sweeps.trials import COMPLETE, ENDED, FAILED, PRUNED, RUNNING, STOPPED, WAITING, State, Study
from bigctl.sweeps.view.table_view import Frame, clock, number

EVERY = 0.5
"""Between two paintings of the table [s]."""
_TELLING = 0.1  # share of a trial after which its start-up no longer misleads


class Seen(Protocol):
    """A run as its folder tells of it: `sweeps.watch.Watch`."""

    step: int | None
    curves: dict[str, dict[int, float]]

    @property
    def steps(self) -> int | None: ...


@dataclass(frozen=True)
class Progress:
    """How far a trial is.

    Attributes:
        step, total_steps: of its training; 0 while nothing is known.
        curve: values so far of the metric that trials are ranked by, or else of train/loss.
        value: the last one of that metric.
        place: where it runs: "cores 0-1", "gpu 1".
    """

    step: int = 0
    total_steps: int = 0
    curve: Sequence[float] = ()
    value: float | None = None
    place: str = ""

    @classmethod
    def of(cls, seen: Seen, place: str, metric: str) -> Progress:
        values = list((seen.curves.get(metric) or {}).values())
        curve = values or list((seen.curves.get("train/loss") or {}).values())
        return cls(seen.step or 0, seen.steps or 0, curve, values[-1] if values else None, place)

    @property
    def share(self) -> float:
        """What is done of it, from 0 to 1."""
        return min(1.0, self.step / self.total_steps) if self.total_steps else 0.0


@dataclass
class Scene:
    """All that is shown of a sweep at one moment.

    Attributes:
        total: how many trials it will have.
        progress: of the trials that are known to run or to have run, by identity.
        running: {identity: seconds since it was seen to start} of those that run now; one that the ledger calls
            running and that is not here was left behind by an earlier start of the sweep, and waits.
        jobs: how many run at once.
    """

    study: Study
    total: int
    progress: Mapping[str, Progress] = field(default_factory=dict)
    running: Mapping[str, float] = field(default_factory=dict)
    jobs: int = 1

    @property
    def states(self) -> list[State]:
        return list(self.study.states.values())

    def of(self, state: State) -> Progress:
        return self.progress.get(state.trial.id, Progress())

    def status(self, state: State) -> str:
        return WAITING if state.status == RUNNING and state.trial.id not in self.running else state.status

    def seconds(self, state: State) -> float:
        return state.seconds + self.running.get(state.trial.id, 0.0)

    @property
    def best(self) -> State | None:
        """The complete trial with the best value so far."""
        scored = [s for s in self.states if s.score(self.study.metric) is not None]
        return min(scored, key=self.rank, default=None)

    def rank(self, state: State) -> tuple[int, float, int]:
        """Sorts what is worth looking at first: what runs, then what is complete by its value, then the others."""
        score = state.score(self.study.metric)
        order = (RUNNING, COMPLETE, FAILED, PRUNED, STOPPED, WAITING).index(self.status(state))
        value = math.inf if score is None else -score if self.study.mode == "max" else score
        return order, value, state.trial.number

    @property
    def left(self) -> float | None:
        """Seconds to the end of the sweep, by the mean of the trials that have ended, before the first one by how
        far others are; None while nothing tells."""
        running = [s for s in self.states if self.status(s) == RUNNING]
        took = [s.seconds for s in self.states if s.status in ENDED and s.seconds > 0]
        took = took or [self.seconds(s) / self.of(s).share for s in running if self.of(s).share > _TELLING]
        if not took:
            return None
        todo = self.total - sum(s.status in ENDED for s in self.states)
        begun = sum(self.of(s).share for s in running)
        return max(0.0, todo - begun) * sum(took) / len(took) / max(1, self.jobs)


class _Converted(Mapping[str, Progress]):
    """Progress by identity, made of looks at runs when it is asked for."""

    def __init__(self, known: Mapping[str, Progress | tuple[Seen, str]], metric: str):
        self._known, self._metric = dict(known), metric

    def __getitem__(self, name: str) -> Progress:
        found = self._known[name]
        return found if isinstance(found, Progress) else Progress.of(*found, self._metric)

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


class LiveView:
    """Shows a sweep on stderr as it goes on; never writes to stdout, never fails.

    Args:
        study: as it is before anything is started: what has ended by then is no event; None takes the first update.
        total: how many trials the sweep will have, unless updates tell.
        quiet: show nothing.
    """

    def __init__(self, study: Study | None = None, *, total: int = 0, quiet: bool = False):
        self.total, self.quiet = total, quiet
        self._seen = {n: (s.status, s.attempts) for n, s in study.states.items()} if study is not None else None
        self._known: dict[str, Progress | tuple[Seen, str]] = {}
        self._since: dict[tuple[str, int], float] = {}
        self._jobs = 1
        self._painted = -math.inf
        self._scene: Scene | None = None
        self._live: Any = None
        if not quiet and sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
            from rich.console import Console
            from rich.live import Live

            console = Console(stderr=True)
            self._live = Live(console=console, auto_refresh=False, redirect_stdout=False)
            self._live.start()

    def update(
        self,
        study: Study,
        progress: Mapping[str, Progress | tuple[Seen, str]],
        *,
        planned: int | None = None,
        slots: int | None = None,
    ) -> None:
        """Show how things are now. May be called often: the table is painted every half second.

        Args:
            study: as the ledger tells it.
            progress: of what runs now, by identity; or a look at the run, and where it runs.
            planned: how many trials there will be.
            slots: how many may run at once.
        """
        if self.quiet:
            return
        if self._seen is None:
            self._seen = {n: (s.status, s.attempts - (n in progress)) for n, s in study.states.items()}
        now = time.monotonic()
        self._known.update(progress)
        attempts = [(name, study.states[name].attempts) for name in progress if name in study.states]
        self._since = {key: self._since.get(key, now) for key in attempts}
        self._jobs = slots or max(self._jobs, len(progress))
        self.total = max(self.total if planned is None else planned, len(study.states))
        running = {name: now - since for (name, _), since in self._since.items()}
        self._scene = Scene(study, self.total, _Converted(self._known, study.metric), running, self._jobs)
        if self._live is None:
            for line in self._events(self._scene):
                self._tell(line)
        elif now - self._painted >= EVERY:
            self._painted = now
            self._paint(self._scene)

    def _paint(self, scene: Scene) -> None:
        try:
            self._live.update(Frame(scene), refresh=True)
        except OSError:
            self.quiet = True

    def say(self, text: str) -> None:
        """A sentence of its own, above the table."""
        if self.quiet:
            return
        if self._live is None:
            self._tell(text)
            return
        try:
            self._live.console.print(printable(text), markup=False, highlight=False)
        except OSError:
            self.quiet = True

    def close(self) -> None:
        """The last table stays."""
        if self._live is not None:
            if self._scene is not None and not self.quiet:
                self._paint(self._scene)
            try:
                self._live.stop()
            except OSError:
                self.quiet = True
            self._live = None

    def _tell(self, line: str) -> None:
        try:
            print(printable(line), file=sys.stderr, flush=True)
        except OSError:  # whoever read it has gone, as `2>&1 | head` does: no reason to stop the sweep
            self.quiet = True

    def _events(self, scene: Scene) -> Iterator[str]:
        """What has happened since the last look, a line each; a short trial starts and ends within one."""
        best = scene.best
        assert self._seen is not None
        for name, state in scene.study.states.items():
            status, attempts = self._seen.get(name, (WAITING, 0))
            self._seen[name] = (state.status, state.attempts)
            if state.attempts > attempts:
                yield begun(scene, state)
            if state.status in (*ENDED, STOPPED) and (state.status != status or state.attempts > attempts):
                yield ended(scene, state, best)


# --------------------------------------------------------------------------------------------------------- plain lines


def begun(scene: Scene, state: State) -> str:
    word = "started" if state.attempts <= 1 else f"resumed at step {state.step:,}" if state.step else "started again"
    place = f" ({scene.of(state).place})" if scene.of(state).place else ""
    return f"trial {state.trial.number} {word}: {state.trial.label}{place}"


def ended(scene: Scene, state: State, best: State | None) -> str:
    """What became of a trial, with its value or the cause, on one line."""
    done = sum(s.status in ENDED for s in scene.states)
    word = "finished" if state.status == COMPLETE else state.status
    line = f"trial {state.trial.number} {word} ({done}/{scene.total}): {state.trial.label}"
    if state.status == STOPPED:
        return line + (f", at step {state.step:,}" if state.step else "")
    if state.status != COMPLETE:
        return f"{line}: {' '.join(state.message.split()) or 'for no reason it told'}"
    score = state.score(scene.study.metric)
    line += f"  {scene.study.metric} {number(score)}  in {clock(state.seconds)}"
    if best is None:
        return line
    if best is state:
        return f"{line}  best so far"
    return f"{line}  best so far {number(best.score(scene.study.metric))} of trial {best.trial.number}"
