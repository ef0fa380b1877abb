"""A plan for people: tables on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from bigctl.formatting import padded, parameters, size
from bigctl.parallel import accelerators

Rows = Sequence[Sequence[str]]
PARTS = ("parameters", "optimizer", "other_state", "batch", "gradients", "activations", "temporaries")


def show(plan: dict[str, Any]) -> None:
    """Print a plan, as `Plan.to_json` tells it."""
    if sys.stdout.isatty():
        _show_tables(plan)
    else:
        print("\n".join(lines(plan)))


def lines(plan: dict[str, Any]) -> list[str]:
    """The plan as plain lines."""
    found = list(head(plan))
    for title, header, rows in sections(plan):
        found += table_lines(title, header, rows)
    return [*found, *tail(plan)]


def table_lines(title: str, header: Sequence[str], rows: Rows) -> list[str]:
    """A table as plain lines."""
    table = [list(header), *rows] if header else [list(row) for row in rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))] if table else []
    return [title] + [
        "  " + "  ".join(padded(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
    ]


def head(plan: dict[str, Any]) -> Iterator[str]:
    """What was planned, and how it was found."""
    mesh = " x ".join(f"{axis} {n}" for axis, n in plan["mesh"].items() if n > 1) or "one device"
    parts = f" in {plan['accumulate']} parts" if plan["accumulate"] > 1 else ""
    count = parameters(plan["parameters"], plan["active_parameters"])
    yield f"{plan['recipe']}: model {plan['model']}, {count}, {plan['precision']}"
    yield f"on {plan['machine']} ({mesh}), batches of {plan['batch_size']:,}{parts}"
    yield from (f"note: {note}" for note in plan["notes"])


def sections(plan: dict[str, Any]) -> Iterator[tuple[str, Sequence[str], Rows]]:
    """Title, header and rows of each table."""
    yield memory_section(plan["memory"])
    largest = [(each["path"], each["part"], each["what"], size(each["bytes"])) for each in plan["memory"]["largest"]]
    yield "largest arrays on a device", ("path", "of", "what", "bytes"), largest[:8]
    kinds = ", ".join(f"{kind} {count / plan['flops_per_step']:.0%}" for kind, count in plan["flops_by"].items())
    compute = [("a step", f"{plan['flops_per_step']:.4g} FLOPs ({kinds})")] if plan["flops_per_step"] else []
    each = "token" if plan["flops_per_token"] else "example"
    compute.append((f"a {each}", f"{plan[f'flops_per_{each}']:.4g} FLOPs"))
    compute.append(("a device", f"{plan['flops_per_device']:.4g} FLOPs a step"))
    yield "compute", (), compute
    sent = [
        (each["kind"], "+".join(each["axes"]) or "-", each["dtype"], f"{each['count']:,.0f}", size(each["bytes"]))
        for each in plan["collectives"][:8]
    ]
    if sent:
        yield "sent by each device in a step", ("collective", "axes", "type", "times", "bytes"), sent
    yield "time of a step, by roofline", (), list(_time(plan))


def memory_section(memory: dict[str, Any]) -> tuple[str, Sequence[str], Rows]:
    """Memory by what it is for."""
    peak = memory["peak_bytes"] or 1
    rows = []
    for part in PARTS:
        count = memory.get(f"{part}_bytes", 0)
        rows.append((part.replace("_", " "), size(count), f"{count / peak:.0%}"))
    rows.append(("peak", size(memory["peak_bytes"]), ""))
    if memory["available_bytes"]:
        left = memory["headroom_bytes"]
        told = size(left) if left >= 0 else f"none: {size(-left)} too much"
        rows.append(("headroom", told, f"of {size(memory['available_bytes'])}"))
    return "memory per device", (), rows


def _time(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    time = plan["step_seconds"]
    yield "range", f"{seconds(time['low'])} to {seconds(time['high'])}, bound by {time['binds']}"
    yield "at the peak", ", ".join(f"{term} {seconds(value)}" for term, value in time["terms"].items())
    for name, what in (("tokens_per_s", "tokens/s"), ("examples_per_s", "examples/s")):
        if plan[name]:
            yield what, f"{plan[name]['low']:,.0f} to {plan[name]['high']:,.0f}"
            break
    if plan["mfu"]:
        yield "MFU", f"{plan['mfu']['low']:.0%} to {plan['mfu']['high']:.0%}"


def tail(plan: dict[str, Any]) -> list[str]:
    found = []
    if plan["kernels"]:
        found.append("kernels: " + ", ".join(f"{what} by {kernel}" for what, kernel in plan["kernels"].items()))
    if plan["compiler_options"]:
        found.append(f"compiler: {accelerators.told(plan['compiler_options'])}")
    return found + [f"look at: {line}" for line in plan["stands_out"]]


def seconds(value: float) -> str:
    """A time in the unit that suits it."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e6:.3g} us"


def _show_tables(plan: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for line in head(plan):
        console.print(Text(line))
    for title, header, rows in sections(plan):
        table = Table(
            title=title, title_justify="left", title_style="bold", show_header=bool(header), box=None, pad_edge=False
        )
        for name in header or [""] * len(rows[0]):
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        console.print()
        console.print(table)
    for line in tail(plan):
        console.print(Text(line))
