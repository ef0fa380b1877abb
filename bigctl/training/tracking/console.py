"""What is seen of a training on stderr: a live line on a terminal, and what stays above it; elsewhere plain lines."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

from bigctl.terminal import escape, is_live, tell, unescaped, writes_unicode
from bigctl.training.state import Progress
from bigctl.training.tracking import live_line
from bigctl.training.tracking.live_line import Pace, Standing

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

STOPPING = "stopping after this step, then saving; again ends at once, unsaved"
OVER = "training is over and saved, what came out is being written; once more ends at once"


class Console:
    """Progress on stderr.

    On a terminal a line that is drawn four times a second; elsewhere one plain line at a time cadence. A line for each
    evaluation stays, with the best so far. Never fails: where nobody reads any more, nothing is shown.

    Args:
        total: length of training [steps].
        step: where it begins, or goes on.
        metric: the name of what selects the best checkpoint.
        best: its best value before.
        quiet: print nothing.
        every: seconds between plain lines.
    """

    def __init__(
        self,
        total: int,
        *,
        step: int = 0,
        metric: str = "",
        best: float | None = None,
        quiet: bool = False,
        every: float = 10.0,
    ):
        self.total, self.metric, self.quiet, self.every = total, metric, quiet, every
        self._best = best
        self._values: dict[str, float] = {}
        self._step, self._pace = step, Pace(step)
        self._doing, self._since, self._stopping = "", time.monotonic(), False
        self._compiling = 0.0  # seconds that are over: they tell nothing of the steps to come
        self._last, self._told, self._closed = time.monotonic(), True, False
        self._live: Live | None = None
        if not quiet and is_live():
            self._live = self._start()

    def _start(self) -> Live:
        from rich.console import Console as Terminal
        from rich.live import Live

        colour = {"color_system": None} if os.environ.get("NO_COLOR") else {}
        terminal = Terminal(file=unescaped(sys.stderr), highlight=False, **colour)  # type: ignore[arg-type]
        live = Live(get_renderable=self._drawn, console=terminal, refresh_per_second=4, redirect_stdout=False)
        live.start()  # which puts itself before standard error: what others print comes above the line
        escape("stderr")
        return live

    # --------------------------------------------------------------------------------------------- what the loop tells

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Metrics of a step."""
        self._values.update({k: v for k, v in values.items() if isinstance(v, (int, float))})
        self._step = max(self._step, step)
        self._told = False
        if "train/loss" in values:
            self._pace.mark(step, self._clock())
        if self._live is None and time.monotonic() - self._last >= self.every:
            self._print()

    def stepped(self, step: int) -> None:
        """So many steps are on their way: none is waited for."""
        self._step = step

    def evaluated(self, progress: Progress) -> None:
        """An evaluation was written: a line of it stays. Of equal scores it says by what one is the best."""
        value, before, self._best = self._values.get(self.metric), self._best, progress.best
        if value is None or self.quiet:
            return
        best, loss = progress.best, self._values.get("val/loss")
        first = progress.best_step == progress.step
        tied = loss is not None and value == (before if first else best)
        parts = [f"step {progress.step}/{self.total}", f"{self.metric} {live_line.number(value)}"]
        said, end, by = "best so far", "", loss
        if not first and best is not None:
            said, end = f"(best {live_line.number(best)}, step {progress.best_step}", ")"
            by = progress.best_metrics.get("val/loss")
        width, reason = self._width(), ""
        if first or best is not None:
            reason = f", by val/loss {live_line.number(by)}" if tied and by is not None else ""
            if sum(map(len, parts)) + 2 * len(parts) + len(said + reason + end) > width:
                reason = ""
            parts.append(said + reason + end)
        more = [f"epoch {self._values['epoch']:.2f}"] if "epoch" in self._values else []
        if loss is not None and self.metric != "val/loss" and not (reason and first):
            more.append(f"val/loss {live_line.number(loss)}")
        each = {name.removeprefix("val/loss/"): value for name, value in self._values.items() if "val/loss/" in name}
        more += [f"{name} {live_line.number(value)}" for name, value in each.items()]  # of the corpora of a mixture
        for part in more:
            if sum(map(len, parts)) + 2 * len(parts) + len(part) <= width:
                parts.append(part)
        self.say("  ".join(parts))

    def doing(self, what: str) -> None:
        """What goes on from here on besides steps, such as "compiling"; empty for steps again."""
        before, since = self._doing, self._since
        self._doing, self._since = what, time.monotonic()
        seconds = self._since - since
        if before == "compiling" and self._live is None and seconds >= self.every:
            self.say(f"compiled in {seconds:.0f} s")
        if before == "compiling":
            self._compiling += seconds
            self._pace.mark(self._step, self._clock())

    def _clock(self) -> float:
        """Seconds of a clock that stands still while a program is compiled."""
        return (self._since if self._doing == "compiling" else time.monotonic()) - self._compiling

    def stopping(self, reason: str) -> None:
        """Somebody asked to stop. May be called from any thread."""
        self._stopping = not self._closed
        self.say(f"{reason}: {OVER if self._closed else STOPPING}")

    def cut(self, step: int) -> None:
        self._step = step
        self._pace.cut(step)
        self._told = True

    def say(self, text: str) -> None:
        """A sentence of its own, above the live line."""
        self.quiet = self.quiet or not tell(text, self._live)

    def close(self) -> None:
        """The last line has the last values."""
        self._doing, self._stopping, self._closed = "", False, True
        if self._live is not None:
            try:
                self._live.stop()
            except OSError:
                self.quiet = True
            self._live = None
        elif not self._told:
            self._print()

    # ------------------------------------------------------------------------------------------------- what is shown

    def _standing(self) -> Standing:
        now = time.monotonic()
        doing, seconds = self._doing, now - self._since
        if doing == "compiling":
            doing = f"compiling {seconds:.0f} s"
        elif doing:
            doing = f"{doing} {seconds:.0f} s" if seconds >= 1 else ""
        if self._stopping:
            doing = "stopping"
        eta = self._pace.remaining(self.total, self._clock())
        return Standing(self._step, self.total, eta, dict(self._values), self.metric, doing)

    def _drawn(self) -> Text:
        from rich.text import Text

        ascii_only = not writes_unicode(unescaped(sys.stderr))
        pieces = live_line.fitted(self._standing(), self._width(), ascii_only=ascii_only)
        return Text.assemble(*pieces, no_wrap=True, overflow="crop")

    def _width(self) -> int:
        """Columns that may be written to: what is typed, such as ^C, is echoed behind the line."""
        if self._live is None:
            return 10_000
        columns = self._live.console.width
        return columns - 3 if columns >= 40 else columns - 1

    def _print(self) -> None:
        if not self.quiet:
            self._last, self._told = time.monotonic(), True
            self.quiet = not tell(live_line.text(self._standing()))
