"""The curves of one run as figures; what is one number, or one number throughout, is told as such."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bigctl.config import schema
from bigctl.reports.history import Curve
from bigctl.reports.plots import PALETTE, POINTS, SPLITS, Figure, numbers, shown, spans, text
from bigctl.reports.thinning import thin
from bigctl.runs.pace import CLOCK

CLIENTS, EPSILON = "train/clients", "privacy/epsilon"
_USAGE = {
    "CPU": (("perf/cpu_percent",), "percent, 100 is one core"),
    "Memory": (("perf/memory_mib",), "MiB, resident"),
    "Device memory": (("perf/device_memory_mib", "perf/device_memory_peak_mib"), "MiB, of the fullest device"),
}


def grouped(found: Mapping[str, Curve]) -> dict[str, dict[str, Curve]]:
    """Metric -> its curves on all splits by their names: losses and scores first, what steers training last. Those of
    `perf/` are left out, see `rates` and `usage`."""
    groups: dict[str, dict[str, Curve]] = {}
    for name, curve in found.items():
        split, _, metric = name.partition("/")
        if split != "perf":
            groups.setdefault(metric if split in SPLITS else name, {})[name] = curve
    first = {"loss": 0, "accuracy": 1, "perplexity": 2}

    def place(name: str) -> tuple[int, bool, int, str]:
        return (first.get(name, 3), not any(n.startswith("val/") for n in groups[name]), -len(groups[name]), name)

    return {name: groups[name] for name in sorted(groups, key=place)}


def figures(found: Mapping[str, Curve], selected: int | None = None, *, live: bool = False) -> list[Figure]:
    """One figure a metric that is more than a number, see `constants`.

    Args:
        selected: the step of the selected checkpoint, which is marked.
        live: whether points are still to come.
    """
    clients = found.get(CLIENTS)
    silent = frozenset(clients.steps[clients.values == 0].tolist()) if clients is not None else frozenset()
    return [
        _figure(name, members, selected, silent)
        for name, members in grouped(found).items()
        if not all(_flat(curve, live=live) for curve in members.values())
    ]


def constants(found: Mapping[str, Curve], *, live: bool = False) -> list[tuple[str, str, str]]:
    """(metric, value, remark) of those without a curve: one point, or the same value throughout."""
    rows = []
    for members in grouped(found).values():
        if all(_flat(curve, live=live) for curve in members.values()):
            for name, curve in members.items():
                count = len(curve.values)
                at = f"at step {shown(curve.steps[-1])}" if count == 1 else f"the same at {count:,} steps"
                rows.append((name, shown(curve.values[-1]), at))
    return rows


def _flat(curve: Curve, *, live: bool) -> bool:
    if len(curve.values) < 2:
        return True
    return not live and (bool(np.all(curve.values == curve.values[0])) or not np.isfinite(curve.values).any())


def rates(found: Mapping[str, Curve]) -> list[Figure]:
    """How fast it went: one figure a metric of `perf/` that is not of `usage`."""
    others = {CLOCK, *(name for names, _ in _USAGE.values() for name in names)}
    return [
        _figure(name.removeprefix("perf/").replace("_per_s", "/s"), {name: curve})
        for name, curve in found.items()
        if name.startswith("perf/") and name not in others
    ]


def usage(found: Mapping[str, Curve]) -> list[Figure]:
    """What the process took of its machine: CPU, memory, and memory of the devices where they tell it."""
    drawn = []
    for title, (names, unit) in _USAGE.items():
        members = {name: found[name] for name in names if name in found}
        if not members:
            continue
        figure = _figure(title, members)
        figure.layout["yaxis"] = {"title": {"text": unit}, "rangemode": "tozero"}
        for trace, colour in zip(figure.data, (PALETTE[5], PALETTE[3]), strict=False):
            trace["line"]["color"] = colour
        drawn.append(figure)
    return drawn


def _figure(
    title: str, members: Mapping[str, Curve], selected: int | None = None, silent: frozenset[int] = frozenset()
) -> Figure:
    data, sentences = [], []
    order = list(SPLITS)
    for name in sorted(members, key=lambda n: order.index(s) if (s := n.partition("/")[0]) in order else 9):
        curve, split = members[name], name.partition("/")[0]
        kept = thin(curve.values, POINTS)
        few = len(kept) <= 60
        data.append({
            "type": "scatter", "mode": "lines+markers" if few else "lines", "name": text(name), "meta": name,
            "x": numbers(curve.steps[kept]), "y": numbers(curve.values[kept]),
            "line": {"width": 2, "color": SPLITS.get(split, PALETTE[0])}, "marker": {"size": 5},
            "hovertemplate": "%{y:.5g}",
        })  # fmt: skip
        sentences.append(sentence(name, curve, silent))
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": "step"}},
        "hovermode": "x unified",
        "showlegend": len(data) > 1,
    }
    if all(len(curve.steps) < 2 for curve in members.values()):  # around one point an axis has no natural ends
        layout["yaxis"] = {"rangemode": "tozero"}
        layout["xaxis"]["rangemode"] = "tozero"
    if selected is not None:
        layout["shapes"] = [{
            "type": "line", "x0": selected, "x1": selected, "yref": "paper", "y0": 0, "y1": 1,
            "line": {"width": 1, "dash": "dot", "color": "muted"},
        }]  # fmt: skip
        layout["annotations"] = [{
            "x": selected, "xref": "x", "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False,
            "text": "selected", "font": {"size": 11, "color": "muted"},
        }]  # fmt: skip
        layout["legend"] = {"y": 1.09}  # above that word
    values = np.concatenate([curve.values for curve in members.values()])
    return Figure(title, " ".join(sentences), data, layout, log=spans(values))


def sentence(name: str, curve: Curve, silent: frozenset[int] = frozenset()) -> str:
    """Where a curve ends, and its best value where it is known which that is, else between which values it stayed.

    Args:
        silent: steps of federated training at which no client answered, and nothing is known of the clients.
    """
    finite = np.flatnonzero(np.isfinite(curve.values))
    if not len(finite):
        return f"{name} has no finite value."
    values, steps = curve.values[finite], curve.steps[finite]
    missing = set(curve.steps[~np.isfinite(curve.values)].tolist())
    gaps, unanswered = len(missing - silent), len(missing & silent)
    tail = f"; {gaps:,} values are not finite" if gaps else ""
    tail += f"; at {unanswered:,} of the steps no client answered." if unanswered else "."
    ends = f"{name} ends at {shown(values[-1])}"
    if values.min() == values.max():
        return f"{name} is {shown(values[-1])} at {_steps(steps)}{tail}"
    towards = direction(name)
    if towards is None:
        return f"{ends}, between {shown(values.min())} and {shown(values.max())}{tail}"
    best = int(values.argmax() if towards == "max" else values.argmin())
    if values[best] == values[-1]:
        return f"{ends}, its best value{tail}"
    return f"{ends}; its best is {shown(values[best])} at step {shown(steps[best])}{tail}"


def direction(name: str) -> str | None:
    """Whether a curve's best value is its "max" or "min"; None where none is, as of a price that only grows."""
    return None if name == EPSILON else schema.known_direction(name)


def _steps(steps: np.ndarray) -> str:
    return f"step {shown(steps[0])}" if len(steps) == 1 else f"all {len(steps):,} steps"
