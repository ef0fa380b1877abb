"""Check that a run or an export is intact: every byte of its checkpoints or its model, and its other files."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigctl import formatting
from bigctl.cli import common, exported, render
from bigctl.runs import directory, exports
from bigctl.runs.directory import RunDirectory
from bigctl.runs.exports import Export
from bigctl.runs.verify_export import ExportReport, verify_export

if TYPE_CHECKING:
    from bigctl.runs.verify import Report

EXAMPLES = """\
examples:
  bigctl verify cnn_cls
  bigctl verify runs/* --json
  bigctl verify cnn_cls --deep                     also load every array
  bigctl verify runs/cnn_cls runs/cnn_cls/onnx     an export too, and whether its run is still the one it was made from
  bigctl verify sealed --passphrase-file secret.txt

exit codes: 0 intact, 1 something is damaged, 2 there is no such run
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run directory, a name under runs/, or the folder of an export"
    )
    parser.add_argument("--deep", action="store_true", help="also load every array and compare its shape; takes longer")
    common.add_exported(parser)
    common.add_json(parser)


def run(options: argparse.Namespace) -> int:
    from bigctl.runs import verify

    load: Callable[[Path, Mapping[str, Any]], int] | None = None
    if options.deep:
        from bigctl.engine.load_arrays import load_arrays

        load = load_arrays

    found = [exports.find(name, options.source) or _locate(name) for name in options.runs]  # all, before any is read
    exported.require_source(options, found)
    secret = exported.passphrase_if_given(options, found)
    reports = []
    for each in found:
        reports.append(_verified(each, secret) if isinstance(each, Export) else verify.verify(each, load=load))
        if not options.json:
            print("\n".join(text(reports[-1])), flush=True)
    ok = all(report.ok for report in reports)
    if options.json:
        render.print_json({"ok": ok, "runs": [report.to_json() for report in reports]})
    return 0 if ok else 1


def _verified(export: Export, secret: str | None) -> Report:
    """What is found in an export; of an encrypted one within, where there is a passphrase."""
    report = verify_export(export)
    if not export.sealed or secret is None or not report.ok:
        return report
    from bigctl.errors import RunError
    from bigctl.inference.exporters import sealed

    try:
        with sealed.opened(export.path, secret) as clear:
            inner = verify_export(replace(export, path=clear, near=export.path))
            return replace(inner, notes=[*report.notes[:-1], *inner.notes])
    except RunError as error:
        if error.message.startswith("the passphrase"):
            raise
        report.problems.append(f"{error.where} {error.message}")
        return report


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
    if isinstance(report, ExportReport) and report.files:
        files = f"{report.files} file{'s' * (report.files != 1)} as their digests say"
        if report.format == "encrypted":
            files = "damaged" if report.problems else "its beginning and its length are right"
        lines.append(f"  {report.format or 'export'}, {files}, {formatting.size(report.bytes)}")
    for found in report.checkpoints:
        facts = f"{found.files} files, {formatting.size(found.bytes)}"
        facts += f", {found.arrays} arrays loaded" if found.arrays is not None else ""
        lines.append(f"  step {found.step:<9,} {'DAMAGED ' + found.problem if found.problem else 'ok  ' + facts}")
    lines += [f"  DAMAGED {problem}" for problem in report.problems]
    return lines + [f"  note: {note}" for note in report.notes]
