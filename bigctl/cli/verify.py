"""Check that a run is intact: every byte of its checkpoints, and its other files."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigctl import formatting
from bigctl.cli import common, render
from bigctl.runs import directory
from bigctl.runs.directory import RunDirectory

if TYPE_CHECKING:
    from bigctl.runs.verify import Report

EXAMPLES = """\
examples:
  bigctl verify cnn_cls
  bigctl verify runs/* --json
  bigctl verify cnn_cls --deep                     also load every array

exit codes: 0 intact, 1 something is damaged, 2 there is no such run
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run directory, or a name under runs/")
    parser.add_argument("--deep", action="store_true", help="also load every array and compare its shape; takes longer")
    common.add_json(parser)


def run(options: argparse.Namespace) -> int:
    from bigctl.runs import verify

    load: Callable[[Path, Mapping[str, Any]], int] | None = None
    if options.deep:
        from bigctl.engine.load_arrays import load_arrays

        load = load_arrays

    runs = [_locate(name) for name in options.runs]  # all, before any is read
    reports = []
    for found in runs:
        reports.append(verify.verify(found, load=load))
        if not options.json:
            print("\n".join(text(reports[-1])), flush=True)
    ok = all(report.ok for report in reports)
    if options.json:
        render.print_json({"ok": ok, "runs": [report.to_json() for report in reports]})
    return 0 if ok else 1


def _locate(name: str) -> RunDirectory:
    """The run of that name; also one that has checkpoints but no run.json any more."""
    for path in (Path(name), directory.ROOT / name):
        if (path / "checkpoints").is_dir():
            return RunDirectory(path)
    return directory.locate(name)


def text(report: Report) -> list[str]:
    """The report as text: a line for the run, for each checkpoint, and for each problem or note."""
    damaged = len(report.problems) + sum(bool(found.problem) for found in report.checkpoints)
    verdict = f"damaged in {damaged} place{'s' * (damaged > 1)}" if damaged else "all is well"
    lines = [f"{report.run}: {verdict}"]
    for found in report.checkpoints:
        facts = f"{found.files} files, {formatting.size(found.bytes)}"
        facts += f", {found.arrays} arrays loaded" if found.arrays is not None else ""
        lines.append(f"  step {found.step:<9,} {'DAMAGED ' + found.problem if found.problem else 'ok  ' + facts}")
    lines += [f"  DAMAGED {problem}" for problem in report.problems]
    return lines + [f"  note: {note}" for note in report.notes]
