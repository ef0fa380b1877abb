"""What several commands print. Nothing heavy at import."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from bigctl import terminal

if TYPE_CHECKING:
    from bigctl.runs.gates import Verdict


def print_json(value: object) -> None:
    print(json_text(value, indent=1))


def json_text(value: object, indent: int | None = None) -> str:
    """JSON that standard output can write and a terminal can only show."""
    from bigctl.formatting import plain

    ascii_only = not terminal.writes_unicode(sys.stdout)
    text = json.dumps(plain(value), indent=indent, ensure_ascii=ascii_only, default=str)
    return terminal.json_escaped(text)


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns of text; lines that do not fit the terminal are cut."""
    rows = [[terminal.one_line(str(cell)) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *rows]) for i in range(len(header))]
    room = shutil.get_terminal_size((120, 24)).columns if sys.stdout.isatty() else 10_000
    for row in [list(header), *rows]:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        print(line if len(line) <= room else line[: room - 3] + "...")


def print_passed(verdicts: Iterable[Verdict]) -> None:
    for verdict in verdicts:
        if verdict.passed:
            print(f"  passed: {verdict}")


def print_metrics(metrics: Mapping[str, float]) -> None:
    """One metric a line, sorted by name, values aligned."""
    width = max(16, *map(len, metrics)) if metrics else 0
    for name, value in sorted(metrics.items()):
        print(f"  {name:<{width}} {value:.4f}")


def print_confusion(confusion: Sequence[Sequence[int]], classes: Sequence[str], most: int = 20) -> None:
    """The whole matrix for up to `most` classes, else the pairs that are confused most often."""
    classes = [terminal.one_line(name) for name in classes]
    if len(classes) <= most:
        width = max(len(str(n)) for row in confusion for n in row)
        width = max(width, *(len(c[:12]) for c in classes))
        print("confusion (rows: true class, columns: predicted)")
        print(" " * 14 + " ".join(c[:12].rjust(width) for c in classes))
        for name, row in zip(classes, confusion, strict=True):
            print("  " + name[:12].ljust(12) + " ".join(str(n).rjust(width) for n in row))
        return
    pairs = [(n, classes[t], classes[p]) for t, row in enumerate(confusion) for p, n in enumerate(row) if t != p and n]
    print("confused most often (true -> predicted)")
    for n, true, predicted in sorted(pairs, reverse=True)[:10]:
        print(f"  {n:>6}  {true} -> {predicted}")
