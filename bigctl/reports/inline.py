"""How training goes, in a notebook: a bar, the last numbers, and the curves of the loss so far."""

from __future__ import annotations

import html
import math
import re
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from bigctl.reports.plots import SPLITS
from bigctl.reports.thinning import thin

_WIDTH, _HEIGHT = 420, 110
"""Of the picture with the curves [pixels]."""
_EVERY = 0.5
"""Between two pictures [s]."""
_POINTS = 200


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, which can show HTML."""
    shell = sys.modules.get("IPython")
    found = shell.get_ipython() if shell is not None else None
    return found is not None and type(found).__name__ == "ZMQInteractiveShell"


class Progress:
    """A `Listener` that shows itself in a notebook. It never stops a run: what cannot be shown is left out.

    Args:
        total: length of training [steps].
        name: of the run.
        show: puts HTML on the screen, in place of what it put there before; None for the notebook's own.
    """

    def __init__(self, total: int, name: str, show: Callable[[str], None] | None = None):
        self.total, self.name = total, name
        self._show = _screen() if show is None else show
        self._began = time.monotonic()
        self._shown = -math.inf
        self._first: int | None = None
        self._step = 0
        self._latest: dict[str, float] = {}
        self._losses: dict[str, list[tuple[int, float]]] = {}
        self._draw("compiling ...")

    def write(self, step: int, values: dict[str, Any]) -> None:
        self._first = step if self._first is None else self._first
        self._step = step
        numbers = {name: float(v) for name, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}
        self._latest |= numbers
        for split in SPLITS:
            if (loss := numbers.get(f"{split}/loss")) is not None:
                self._losses.setdefault(split, []).append((step, loss))
        if time.monotonic() - self._shown >= _EVERY or step >= self.total:
            self._draw(self._left())

    def saved(self, step: int) -> None:
        """Nothing is shown of checkpoints."""

    def cut(self, step: int) -> None:
        self._step = min(self._step, step)
        self._losses = {split: [p for p in points if p[0] <= step] for split, points in self._losses.items()}

    def result(self, step: int, metrics: Mapping[str, Any]) -> None:
        self._step = step
        numbers = {name: v for name, v in metrics.items() if isinstance(v, int | float) and math.isfinite(v)}
        tests = {name: float(value) for name, value in numbers.items() if name.startswith("test/")}
        self._latest |= dict([*tests.items()][:2])
        self._draw(f"done in {time.monotonic() - self._began:.1f} s")

    def _left(self) -> str:
        made = self._step - (self._first or 0)
        if made <= 0 or self._step >= self.total:
            return ""
        seconds = (time.monotonic() - self._began) / made * (self.total - self._step)
        return f"{seconds:.0f} s left" if seconds < 120 else f"{seconds / 60:.0f} min left"

    def _draw(self, remark: str) -> None:
        self._shown = time.monotonic()
        told = [f"step {self._step:,}/{self.total:,}"]
        wanted = ("train/loss", "val/loss", "val/accuracy", "test/accuracy", "test/loss")
        told += [f"{name} {self._latest[name]:.4g}" for name in wanted if name in self._latest]
        line = html.escape(" · ".join([*told, *([remark] if remark else [])]))
        share = 100 * min(1.0, self._step / max(1, self.total))
        bar = (
            '<div style="background:#8883;border-radius:3px;height:6px;max-width:420px">'
            f'<div style="background:{SPLITS["train"]};border-radius:3px;height:6px;width:{share:.1f}%"></div></div>'
        )
        try:
            self._show(f"<div><b>{html.escape(self.name)}</b><br>{bar}<small>{line}</small><br>{self._curves()}</div>")
        except Exception:  # a front end that has gone is no reason to stop training
            self._show = _nowhere

    def _curves(self) -> str:
        """The losses as a small picture; nothing before there are two points."""
        drawn = {split: points for split, points in self._losses.items() if len(points) > 1}
        if not drawn:
            return ""
        values = [loss for points in drawn.values() for _, loss in points]
        low, high = min(values), max(values)
        end = max(self.total, *(points[-1][0] for points in drawn.values()))
        lines = []
        for split, points in drawn.items():
            import numpy as np

            kept = [points[place] for place in thin(np.array([loss for _, loss in points]), _POINTS)]
            path = " ".join(
                f"{step / end * _WIDTH:.1f},{4 + (high - loss) / ((high - low) or 1) * (_HEIGHT - 8):.1f}"
                for step, loss in kept
            )
            lines.append(f'<polyline points="{path}" fill="none" stroke="{SPLITS[split]}" stroke-width="1.5"/>')
        names = " ".join(f'<span style="color:{SPLITS[split]}">{split}</span>' for split in drawn)
        label = f"loss from {values[0]:.4g}, between {low:.4g} and {high:.4g}"
        return (
            f'<svg role="img" aria-label="{label}" width="{_WIDTH}" height="{_HEIGHT}" style="max-width:100%">'
            f"{''.join(lines)}</svg><br><small>loss, {low:.4g} to {high:.4g}: {names}</small>"
        )


def _nowhere(content: str) -> None:
    """Shows nothing."""


def _screen() -> Callable[[str], None]:
    """One place in the output of the cell that is being run."""
    from IPython.display import display

    handle = display(_bundle(""), display_id=True, raw=True)
    return _nowhere if handle is None else lambda content: handle.update(_bundle(content), raw=True)


def _bundle(content: str) -> dict[str, str]:
    """HTML, and what a front end without it shows."""
    return {"text/html": content, "text/plain": " ".join(re.sub(r"<[^>]*>", " ", content).split())}
