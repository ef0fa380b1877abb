"""A sweep while it runs, on stderr: a table on a terminal, elsewhere one plain line an event. Free of jax.

24/32 trials, 2 running, 1 failed  1:20 left  best val/accuracy 0.9737 (#9)
 #  status    parameters       curve         val/accuracy  done  time
24  running   lr=0.003 seed=0  ▁▂▄▆▇▇██            0.9561   60%  0:04
 9  complete  lr=0.001 seed=1  ▁▃▅▆▇█████▇█      * 0.9737        0:07
... and 22 more
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from bigctl.formatting import clock, number
from bigctl.sweeps.trials import COMPLETE, ENDED, STOPPED, WAITING, State, Study
from bigctl.sweeps.view.scene import Scene, TrialProgress
from bigctl.sweeps.view.table_view import Frame
from bigctl.terminal import escape, is_live, tell, unescaped

if TYPE_CHECKING:
    from rich.live import Live

EVERY = 0.5
"""Time between two redraws of the table [s]."""


class LiveView:
    """Shows a sweep on stderr while it runs; never writes to stdout, never fails.

    Args:
        study: as it is before anything is started: trials that have ended by then are not reported.
        quiet: show nothing.
    """

    def __init__(self, study: Study, *, quiet: bool = False):
        self.quiet = quiet
        self._reported = {name: (state.status, state.attempts) for name, state in study.states.items()}
        self._known: dict[str, TrialProgress] = {}
        self._since: dict[tuple[str, int], float] = {}
        self._jobs = 1
        self._refreshed = -math.inf
        self._scene: Scene | None = None
        self._live: Live | None = None
        if not quiet and is_live():
            from rich.console import Console
            from rich.live import Live

            console = Console(file=unescaped(sys.stderr))
            self._live = Live(console=console, auto_refresh=False, redirect_stdout=False)
            self._live.start()
            escape("stderr")

    def update(self, study: Study, progress: Mapping[str, TrialProgress], *, planned: int = 0) -> None:
        """Show the sweep as it is now. May be called often: the table is redrawn every half second.

        Args:
            study: as the ledger tells it.
            progress: of the trials that run now, by identity.
            planned: how many trials there will be, as far as is known.
        """
        if self.quiet:
            return
        now = time.monotonic()
        self._known.update(progress)
        attempts = [(name, study.states[name].attempts) for name in progress if name in study.states]
        self._since = {key: self._since.get(key, now) for key in attempts}
        self._jobs = max(self._jobs, len(progress))
        running = {name: now - since for (name, _), since in self._since.items()}
        self._scene = Scene(study, max(planned, len(study.states)), dict(self._known), running, self._jobs)
        if self._live is None:
            for line in self._events(self._scene):
                self.say(line)
        elif now - self._refreshed >= EVERY:
            self._refreshed = now
            self._draw(self._scene)

    def _draw(self, scene: Scene) -> None:
        assert self._live is not None
        try:
            self._live.update(Frame(scene), refresh=True)
        except OSError:
            self.quiet = True

    def say(self, text: str) -> None:
        """Print a sentence above the table."""
        self.quiet = self.quiet or not tell(text, self._live)

    def close(self) -> None:
        """Stop; the last table stays on the screen."""
        if self._live is not None:
            if self._scene is not None and not self.quiet:
                self._draw(self._scene)
            try:
                self._live.stop()
            except OSError:
                self.quiet = True
            self._live = None

    def _events(self, scene: Scene) -> Iterator[str]:
        """One line for each event since the last update; a short trial may start and end between two of them."""
        best = scene.best
        for name, state in scene.study.states.items():
            status, attempts = self._reported.get(name, (WAITING, 0))
            self._reported[name] = (state.status, state.attempts)
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
    """How a trial ended, with its value or the cause of its end, on one line."""
    done = sum(s.status in ENDED for s in scene.states)
    word = "finished" if state.status == COMPLETE else state.status
    line = f"trial {state.trial.number} {word} ({done}/{scene.total}): {state.trial.label}"
    if state.status == STOPPED:
        return line + (f", at step {state.step:,}" if state.step else "")
    if state.status != COMPLETE:
        return f"{line}: {' '.join(state.message.split()) or 'no message was recorded'}"
    score = state.score(scene.study.metric)
    line += f"  {scene.study.metric} {number(score)}  in {clock(state.seconds)}"
    if best is None:
        return line
    if best is state:
        return f"{line}  best so far"
    return f"{line}  best so far {number(best.score(scene.study.metric))} of trial {best.trial.number}"
