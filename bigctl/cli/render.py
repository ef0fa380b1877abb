"""What several commands print. Nothing heavy at import."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bigctl import terminal
from bigctl.formatting import columns, cut, padded

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
    widths = [max(columns(row[i]) for row in [list(header), *rows]) for i in range(len(header))]
    room = shutil.get_terminal_size((120, 24)).columns if sys.stdout.isatty() else 10_000
    for row in [list(header), *rows]:
        print(cut("  ".join(padded(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip(), room))


def print_wrapped(line: str, indent: int = 0) -> None:
    """A line; on a terminal that it does not fit it goes on in the next one, indented, between two words.

    Args:
        indent: columns before what goes on, where they leave room for it; 0 for two more than the line has.
    """
    print(terminal.wrapped(line, sys.stdout, indent))


def print_passed(verdicts: Iterable[Verdict]) -> None:
    for verdict in verdicts:
        if verdict.passed:
            print(f"  passed: {verdict}")


def print_metrics(metrics: Mapping[str, float], intervals: Mapping[str, Sequence[float]] | None = None) -> None:
    """One metric a line, sorted by name, values aligned, with its interval where there is one."""
    width = max(16, *map(columns, metrics)) if metrics else 0
    for name, value in sorted(metrics.items()):
        ends = (intervals or {}).get(name)
        print(f"  {padded(name, width)} {value:.4f}" + (f"  {ends[0]:.4f} to {ends[1]:.4f}" if ends else ""))


def print_confusion(confusion: Sequence[Sequence[int]], classes: Sequence[str], most: int = 20) -> None:
    """The whole matrix for up to `most` classes, else the pairs that are confused most often."""
    classes = [terminal.one_line(name) for name in classes]
    if len(classes) <= most:
        short = [cut(name, 12, "") for name in classes]
        width = max(len(str(n)) for row in confusion for n in row)
        width = max(width, *map(columns, short))
        print_wrapped("confusion (rows: true class, columns: predicted)")
        print(" " * 14 + " ".join(" " * (width - columns(name)) + name for name in short))
        for name, row in zip(short, confusion, strict=True):
            print("  " + padded(name, 12) + " ".join(str(n).rjust(width) for n in row))
        return
    pairs = [(n, classes[t], classes[p]) for t, row in enumerate(confusion) for p, n in enumerate(row) if t != p and n]
    print("confused most often (true -> predicted)")
    for n, true, predicted in sorted(pairs, reverse=True)[:10]:
        print(f"  {n:>6}  {true} -> {predicted}")


def print_documents(packing: dict[str, Any], first: list[tuple[int, str]]) -> None:
    """How long documents are, what packing makes of them, and how the first ones begin."""
    header = ("split", "documents", "tokens: min", "median", "95%", "max", "cut", "of one token", "windows", "padding")
    rows = []
    for split, part in packing.items():
        counts = (part["documents"], *part["tokens"].values(), part["cut"], part["single"], part["windows"])
        rows.append([split, *(f"{count:,}" for count in counts), f"{part['padding']:.2%}"])
    print_table(header, rows)
    print("first documents")
    wide = max(len(f"{tokens:,}") for tokens, _ in first)
    for tokens, text in first:
        print(f"  {tokens:>{wide},} tokens  {text}")


def print_texts(splits: dict[str, Any], texts: list[tuple[str, list[str]]]) -> None:
    """How long texts are, and the first ones of each class."""
    from bigctl.data.preview import one_line

    spread = ("min", "median", "p95", "max")
    tokens = "tokens" in next(iter(splits.values()))
    header = ["split", "characters: min", "median", "95%", "max"]
    header += ["tokens: min", "median", "95%", "max", "cut", "unknown"] if tokens else []
    rows = []
    for split, part in splits.items():
        row = [split, *(f"{part['characters'][name]:,}" for name in spread)]
        if tokens:
            row += [f"{part['tokens'][name]:,}" for name in spread]
            row += [f"{part['cut']:.1%}", f"{part['unknown']:.2%}"]
        rows.append(row)
    print_table(header, rows)
    print("first texts")
    names = [one_line(name, 20) for name, _ in texts]
    wide = max(map(columns, names))
    room = max(20, shutil.get_terminal_size((120, 24)).columns - wide - 4)
    for name, (_, first) in zip(names, texts, strict=True):
        for text in first:
            print(f"  {padded(name, wide)}  {one_line(text, room)}")
