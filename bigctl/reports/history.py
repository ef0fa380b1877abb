"""The curves of a run as `metrics.jsonl` has them, however the run ended. Free of jax."""

from __future__ import annotations

import json
import re
from array import array
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

_HIDDEN = ("step", "epoch")


@dataclass
class Curve:
    """One metric over the steps; NaN where it was not finite."""

    steps: np.ndarray
    values: np.ndarray


@dataclass
class History:
    """All curves of a run.

    Attributes:
        curves: by the metric's name, in the order of their first appearance.
        end: how many bytes of the file have been read, up to the end of its last whole line.
        damaged: lines that could not be read.
    """

    curves: dict[str, Curve] = field(default_factory=dict)
    end: int = 0
    damaged: int = 0


def read(path: Path, *, start: int = 0) -> History:
    """The curves in a `metrics.jsonl` from some byte on; a line that is torn or damaged is passed over.

    A last line without its end is left for the next time: it may be under way.
    """
    try:
        with path.open("rb") as stream:
            stream.seek(start)
            content = stream.read()
    except OSError:
        return History()
    whole = content.rfind(b"\n") + 1
    history = History(end=start + whole)
    found: dict[str, tuple[list[float], list[float]]] = {}
    for line in content[:whole].split(b"\n"):
        if not line:
            continue
        try:
            values = json.loads(line)
            step = int(values["step"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            history.damaged += 1
            continue
        for name, value in values.items():
            if name not in _HIDDEN and (number := _number(value)) is not None:
                steps, numbers = found.setdefault(name, ([], []))
                steps.append(step)
                numbers.append(number)
    history.curves = {name: Curve(np.array(s, np.float64), np.array(v, np.float64)) for name, (s, v) in found.items()}
    return history


def read_one(path: Path, metric: str) -> Curve:
    """One curve of a `metrics.jsonl`. A sweep has a million lines: matching them takes half as long as parsing."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        lines = []
    name = json.dumps(metric).encode()
    match = re.compile(rb'\{"step": (\d+),.*?%s: ([^,}]+)[,}]' % re.escape(name)).match
    steps, values = array("d"), array("d")
    for line in lines:
        if name in line and (found := match(line)):
            try:
                value = float("nan") if found[2] == b"null" else float(found[2])
            except ValueError:
                continue
            steps.append(float(found[1]))
            values.append(value)
    return Curve(np.array(steps), np.array(values))


def _number(value: object) -> float | None:
    """NaN for null, which is what a number that is not finite was written as; None for what is no number."""
    if value is None:
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return float("nan")
    return number if np.isfinite(number) else float("nan")
