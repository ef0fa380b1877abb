"""The live table of a sweep: as many trials as fit the terminal, running ones first. Free of jax."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from bigctl.formatting import clock, number
from bigctl.sweeps.trials import COMPLETE, ENDED, FAILED, PRUNED, RUNNING, STOPPED, WAITING, State
from bigctl.sweeps.view.scene import Scene
from bigctl.terminal import escaped

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

BLOCKS, PLAIN_BLOCKS = "▁▂▃▄▅▆▇█", "_.-=*#"


def sparkline(values: Sequence[float], width: int, blocks: str = BLOCKS) -> str:
    """A curve as blocks, the whole of it in at most `width` characters; what is not finite is a blank."""
    if len(values) > width:  # each character is the mean of its part of the curve
        edges = [round(i * len(values) / width) for i in range(width + 1)]
        parts = [[v for v in values[a:b] if math.isfinite(v)] for a, b in zip(edges, edges[1:], strict=False)]
        values = [sum(part) / len(part) if part else math.nan for part in parts]
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return " " * len(values)
    low, high = min(finite), max(finite)
    scale = (len(blocks) - 1) / (high - low) if high > low and math.isfinite(high - low) else 0.0
    return "".join(blocks[round((v - low) * scale)] if math.isfinite(v) else " " for v in values)


class Frame:
    """A scene as a renderable of rich, laid out for the size that the terminal has when it is drawn."""

    def __init__(self, scene: Scene):
        self.scene = scene

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield from frame(self.scene, width=console.width, height=console.height, ascii_only=options.ascii_only)


_STYLES = {RUNNING: "cyan", COMPLETE: "", FAILED: "red", PRUNED: "yellow", STOPPED: "yellow", WAITING: "dim"}
_SPARK, _GAP, _LABEL, _CAUSE = 12, 2, 16, 30
_DROPPED = ("place", "done", "curve", "time", "status", "value")
"""Columns that a narrow terminal goes without, the first first, until the parameters have room."""


def frame(scene: Scene, *, width: int, height: int, ascii_only: bool = False) -> list[RenderableType]:
    """The lines of the live table, as rich's renderables: a headline, as many trials as fit, how many do not.

    Args:
        width, height: of the terminal [characters]; nothing is wider, nor are there more lines than `height - 1`.
    """
    from rich.table import Table
    from rich.text import Text

    ranked = sorted(scene.states, key=scene.rank)
    unseen = max(0, scene.total - len(ranked))  # not proposed yet
    room = max(1, height - 3)
    if len(ranked) + (unseen > 0) > room:
        room = max(1, room - 1)
    shown, rest = ranked[:room], max(0, len(ranked) - room) + unseen
    lines: list[RenderableType] = [Text(_headline(scene), no_wrap=True, overflow="ellipsis", style="bold")]
    cells = [_cells(scene, state, PLAIN_BLOCKS if ascii_only else BLOCKS) for state in shown]
    names = ["#", "status", "parameters", "curve", "value", "done", "time", "place"]
    heads = dict(zip(names, names, strict=True)) | {"value": scene.study.metric[-14:] or "value", "place": ""}
    widths = {n: max(len(row[n]) for row in [heads, *cells]) for n in names}
    for name in _DROPPED:
        if not any(row[name] for row in cells) or _left_over(widths, names, width) < min(_LABEL, widths["parameters"]):
            names.remove(name)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), show_edge=False, header_style="dim")
    for name in names:
        right = name in ("#", "value", "done", "time")
        fixed = max(1, min(widths[name], _left_over(widths, names, width))) if name == "parameters" else widths[name]
        table.add_column(
            heads[name], justify="right" if right else "left", no_wrap=True, overflow="ellipsis", width=fixed
        )
    for state, row in zip(shown, cells, strict=True):
        style = "bold green" if state is scene.best else _STYLES[scene.status(state)]
        table.add_row(*(Text(row[name]) for name in names), style=style)
    if shown:
        lines.append(table)
    if rest:
        lines.append(Text(f"... and {rest:,} more", no_wrap=True, overflow="ellipsis", style="dim"))
    return lines


def _left_over(widths: Mapping[str, int], names: Sequence[str], width: int) -> int:
    """Characters for the parameters when the other columns have theirs."""
    return width - sum(widths[name] for name in names if name != "parameters") - _GAP * len(names)


def _cells(scene: Scene, state: State, blocks: str) -> dict[str, str]:
    progress, running = scene.of(state), scene.status(state) == RUNNING
    score = progress.value if running else state.score(scene.study.metric)
    return {
        "#": str(state.trial.number),
        "status": scene.status(state),
        "parameters": escaped(state.trial.label),
        "curve": sparkline(progress.curve, _SPARK, blocks),
        "value": ("* " if state is scene.best else "") + (number(score) if score is not None else ""),
        "done": f"{progress.share:.0%}" if running and progress.total_steps else "",
        "time": clock(scene.seconds(state)) if scene.seconds(state) else "",
        "place": progress.place if running else _short(state.message),
    }


def _short(message: str) -> str:
    line = escaped(" ".join(message.split()))
    return line if len(line) <= _CAUSE else line[: _CAUSE - 3].rstrip() + "..."


def _headline(scene: Scene) -> str:
    counts = Counter(scene.status(state) for state in scene.states)
    done = sum(counts[status] for status in ENDED)
    told = [f"{counts[status]} {status}" for status in (RUNNING, FAILED, PRUNED) if counts[status]]
    parts = [", ".join([f"{done}/{scene.total} trials", *told])]
    if scene.left is not None and done < scene.total:
        parts.append(f"{clock(scene.left)} left")
    if (best := scene.best) is not None:
        metric = scene.study.metric
        parts.append(f"best {metric} {number(best.score(metric))} (#{best.trial.number})")
    return "  ".join(parts)
