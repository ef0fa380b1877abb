"""The curves of a run as `metrics.jsonl` has them, however the run ended. Free of jax."""

from __future__ import annotations

import json
import math
import re
from array import array
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bigctl.files import read_regular
from bigctl.runs import untrusted

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


def read_history(path: Path, *, start: int = 0) -> History:
    """The curves in a `metrics.jsonl` from some byte on; a line that is torn or damaged is passed over.

    A last line without its end is left for the next time: it may be under way.
    """
    try:
        content = read_regular(path, start=start)
    except OSError:
        return History()
    whole = content.rfind(b"\n") + 1
    history = History(end=start + whole)
    found: dict[str, tuple[list[float], list[float]]] = {}
    for line in content[:whole].split(b"\n"):
        if not line:
            continue
        values = untrusted.metrics_line(line)
        if values is None:
            history.damaged += 1
            continue
        for name, value in values.items():
            if name not in _HIDDEN:
                steps, numbers = found.setdefault(name, ([], []))
                steps.append(values["step"])
                numbers.append(float("nan") if value is None else value)
    history.curves = {name: Curve(np.array(s, np.float64), np.array(v, np.float64)) for name, (s, v) in found.items()}
    return history


def read_one(path: Path, metric: str) -> Curve:
    """One curve of a `metrics.jsonl`. A sweep has a million lines: matching them takes half as long as parsing."""
    try:
        lines = read_regular(path).split(b"\n")
    except OSError:
        lines = []
    name = json.dumps(metric).encode()
    match = re.compile(rb'\{"step": (\d{1,15}),.*?%s: ([^,}]+)[,}]' % re.escape(name)).match
    steps, values = array("d"), array("d")
    for line in lines:
        if name in line and (found := match(line)):
            try:
                value = float("nan") if found[2] == b"null" else float(found[2])
            except ValueError:
                continue
            steps.append(float(found[1]))
            values.append(value if math.isfinite(value) else float("nan"))
    return Curve(np.array(steps), np.array(values))
