"""Flags and printing that several commands share. Nothing heavy at import."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """`key=value ...`, and where presets and components of the user's own come from."""
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="group=option or key=value, in Hydra's syntax"
    )
    add_sources(parser)


def add_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config-dir", action="append", type=Path, default=[], metavar="DIR", help="folder with presets of your own"
    )
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="MODULE", help="module with components of your own"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object on stdout, also of an error, and nothing else there"
    )


def add_gates(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--require", action="append", default=[], metavar="CONDITION",
        help="exit with 4 unless a metric is as it must be, such as 'val/accuracy>=0.97'; may be given again",
    )  # fmt: skip
    parser.add_argument(
        "--junit", type=Path, metavar="FILE", help="write a JUnit report, with a test case for each gate"
    )


def exit_code(verdicts: Iterable[Any]) -> int:
    """4 if a gate was missed, each told in a line on stderr."""
    missed = [verdict for verdict in verdicts if not verdict.passed]
    for verdict in missed:
        print(f"bigctl: {verdict}", file=sys.stderr)
    return 4 if missed else 0


def print_passed(verdicts: Iterable[Any]) -> None:
    for verdict in verdicts:
        if verdict.passed:
            print(f"  passed: {verdict}")


def composed(options: argparse.Namespace, *, partial: bool = False) -> Any:
    from bigctl.config import compose

    return compose.compose(options.overrides, config_dirs=options.config_dir, plugins=options.plugin, partial=partial)


def print_json(value: Any) -> None:
    from bigctl.files import plain

    print(json.dumps(plain(value), indent=1, ensure_ascii=False, default=str))


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns of text; a terminal that is too narrow cuts the last one."""
    import shutil

    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *rows]) for i in range(len(header))]
    room = shutil.get_terminal_size((120, 24)).columns if sys.stdout.isatty() else 10_000
    for row in [list(header), *rows]:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        print(line if len(line) <= room else line[: room - 3] + "...")


def age(timestamp: float) -> str:
    """Seconds since then, in the largest unit that fits."""
    seconds = max(0.0, time.time() - timestamp)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def size(count: float) -> str:
    """Bytes, in the largest binary unit that fits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError
