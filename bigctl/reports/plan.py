"""The page of `bigctl plan`: what a step takes on a machine, as pictures and tables; or the ranking of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bigctl.engine import plan_text
from bigctl.formatting import size
from bigctl.reports import page
from bigctl.reports.plots import PALETTE, Figure, number, one_bar, text

_GIB = 2**30
_ARRAYS = 8


def plan_page(plan: Mapping[str, Any], command: str) -> str:
    """One plan, as `Plan.to_json` tells it.

    Args:
        plan: the plan.
        command: that made it.
    """
    figures = {"memory": _memory(plan["memory"])}
    figures["arrays"] = _arrays(plan["memory"]["largest"][:_ARRAYS])
    figures["time"] = _time(plan["step_seconds"])
    if plan["collectives"]:
        figures["sent"] = _sent(plan["collectives"])
    return page.render(
        "plan.html",
        figures,
        title=f"{plan['recipe']} on {plan['machine']}",
        told=list(plan_text.head(dict(plan))),
        look=plan["stands_out"],
        tables=list(plan_text.sections(dict(plan))),
        kernels=plan["kernels"],
        command=command,
    )


def search_page(target: str, tried: Sequence[Mapping[str, Any]], command: str) -> str:
    """The points of a search, the best first, as `Tried.to_json` tells them."""
    built = [each for each in tried if each.get("examples_per_s")]
    rows = [_point(place, each) for place, each in enumerate(tried, 1)]
    header = ("", "keys", "a step", "bound by", "examples/s", "peak a device", "")
    return page.render(
        "plan.html",
        {"ranking": _ranking(built)} if built else {},
        title=f"Meshes and batches for {target}",
        told=[f"{len(tried)} points, each compiled for {target}; those that fit first, the quickest first among them"],
        look=[],
        tables=[("ranking", header, rows)],
        kernels={},
        command=command,
    )


def _point(place: int, tried: Mapping[str, Any]) -> Sequence[str]:
    if not tried.get("step_seconds"):
        return (str(place), tried["overrides"], "", "", "", "", str(tried["refused"]))
    time = tried["step_seconds"]
    span = f"{plan_text.seconds(time['low'])} to {plan_text.seconds(time['high'])}"
    fits = "" if tried["fits"] else "does not fit"
    rate = f"{tried['examples_per_s']:,.0f}"
    return (str(place), tried["overrides"], span, time["binds"], rate, size(tried["peak_bytes"]), fits)


# ------------------------------------------------------------------------------------------------------------ pictures


def _unit(most: float) -> tuple[str, float]:
    """The unit in which a number of bytes reads well, and its size."""
    for name, factor in (("GiB", _GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if most >= factor:
            return name, factor
    return "bytes", 1


def _memory(memory: Mapping[str, Any]) -> Figure:
    """What a device holds when it holds most, as one bar, with what it has where that is not far away."""
    peak, available = memory["peak_bytes"], memory["available_bytes"]
    unit, factor = _unit(peak)
    counts = {part.replace("_", " "): memory.get(f"{part}_bytes", 0) for part in plan_text.PARTS}
    counts = {name: count for name, count in counts.items() if count > 0}
    told = [f"{name} {size(count)}" for name, count in counts.items()]
    hover = {name: f"{name}: {size(count)}, {count / peak:.0%}" for name, count in counts.items()}
    data, layout = one_bar({name: count / factor for name, count in counts.items()}, hover, unit)
    caption = f"{size(peak)} at most: {', '.join(told)}."
    if available:
        headroom = memory["headroom_bytes"]
        caption += f" The device has {size(available)}: "
        caption += f"{size(headroom)} are left." if headroom >= 0 else f"{size(-headroom)} too little."
        if peak > available / 4:
            end, line = available / factor, {"dash": "dot", "width": 2, "color": PALETTE[7]}
            layout["shapes"] = [{"type": "line", "x0": end, "x1": end, "yref": "paper", "y0": 0, "y1": 1, "line": line}]
    return Figure("Memory of a device", caption, data, layout, height=220, wide=True)


def _arrays(largest: Sequence[Mapping[str, Any]]) -> Figure:
    unit, factor = _unit(max((each["bytes"] for each in largest), default=1))
    names = [text(f"{each['path']} {each['what']}", 60) for each in largest]
    data = [
        {
            "type": "bar", "orientation": "h", "y": list(range(len(largest))),
            "x": [number(each["bytes"] / factor) for each in largest],
            "marker": {"color": PALETTE[0]}, "text": names, "textposition": "auto", "insidetextanchor": "start",
            "customdata": [text(f"{each['part']}: {each['path']}, {each['what']}", 120) for each in largest],
            "hovertemplate": "%{customdata}<extra></extra>",
        }
    ]  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": unit}}, "yaxis": {"autorange": "reversed", "visible": False},
        "hovermode": "closest", "bargap": 0.15,
    }  # fmt: skip
    first = largest[0] if largest else None
    told = f"The largest is {first['path']} ({first['what']}, {size(first['bytes'])})." if first else "None."
    return Figure("Largest arrays", told, data, layout, height=60 + 34 * max(1, len(largest)), wide=True)


def _time(time: Mapping[str, Any]) -> Figure:
    terms = {name: value * 1e3 for name, value in time["terms"].items()}
    data = [
        {
            "type": "bar", "x": list(terms), "y": [number(value) for value in terms.values()],
            "marker": {"color": [PALETTE[1 if name == time["binds"] else 0] for name in terms]},
            "hovertemplate": "%{x}: %{y:.4g} ms<extra></extra>",
        }
    ]  # fmt: skip
    layout = {"yaxis": {"title": {"text": "ms at the peak"}, "rangemode": "tozero"}, "hovermode": "closest"}
    span = f"{plan_text.seconds(time['low'])} to {plan_text.seconds(time['high'])}"
    return Figure("Time of a step", f"{span} by roofline, bound by {time['binds']}.", data, layout)


def _sent(collectives: Sequence[Mapping[str, Any]]) -> Figure:
    unit, factor = _unit(max(each["bytes"] for each in collectives))
    sums: dict[tuple[str, str], float] = {}
    for each in collectives:
        key = f"{each['kind']} {each['dtype']}", "+".join(each["axes"]) or "-"
        sums[key] = sums.get(key, 0.0) + each["bytes"]
    kinds, axes = (list(dict.fromkeys(names)) for names in zip(*sums, strict=True))
    data = [
        {
            "type": "bar", "name": kind, "x": axes, "marker": {"color": PALETTE[place % len(PALETTE)]},
            "y": [number(sums.get((kind, axis), 0.0) / factor) for axis in axes],
            "hovertemplate": f"{kind} over %{{x}}: %{{y:.4g}} {unit}<extra></extra>",
        }
        for place, kind in enumerate(kinds)
    ]  # fmt: skip
    layout = {
        "barmode": "stack", "showlegend": True, "hovermode": "closest", "yaxis": {"title": {"text": unit}},
        "xaxis": {"title": {"text": "axis of the mesh"}, "type": "category"},
    }  # fmt: skip
    whole = sum(each["bytes"] for each in collectives)
    return Figure("Sent by each device", f"{size(whole)} a step, by kind and axis of the mesh.", data, layout)


def _ranking(built: Sequence[Mapping[str, Any]]) -> Figure:
    """Speed against memory: what lies high and to the left is better."""
    unit, factor = _unit(max(each["peak_bytes"] for each in built))
    data = []
    for fits, colour, name in ((True, PALETTE[2], "fits"), (False, PALETTE[7], "does not fit")):
        points = [each for each in built if each["fits"] is fits]
        if points:
            data.append(
                {
                    "type": "scatter", "mode": "markers", "name": name, "marker": {"color": colour, "size": 11},
                    "x": [number(each["peak_bytes"] / factor) for each in points],
                    "y": [number(each["examples_per_s"]) for each in points],
                    "customdata": [text(each["overrides"], 90) for each in points],
                    "hovertemplate": "%{customdata}<br>%{y:,.0f} examples/s, %{x:.3g} " + unit + "<extra></extra>",
                }
            )  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": f"peak of a device [{unit}]"}, "rangemode": "tozero"}, "hovermode": "closest",
        "yaxis": {"title": {"text": "examples/s"}, "rangemode": "tozero"}, "showlegend": True,
    }  # fmt: skip
    best = built[0]
    told = f"First: {best['overrides']}, {best['examples_per_s']:,.0f} examples/s at {size(best['peak_bytes'])}."
    return Figure("Speed and memory", told, data, layout, height=340, wide=True)
