"""Write one self-contained HTML page about a run, a sweep or an export: open it from disk, send it, print it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

from bigctl.cli import common, exported, render

if TYPE_CHECKING:
    from bigctl.runs.exports import Export

EXAMPLES = """\
examples:
  bigctl report runs/cnn_cls                       runs/cnn_cls/report.html
  bigctl report cnn_cls --out page.html --samples 64
  bigctl report sweeps/lr                          leaderboard, parameters, curves of all trials
  bigctl report runs/cnn_cls/onnx                  scored in its own runtime; runs/cnn_cls/onnx-report.html
  bigctl report cnn_cls --png                      curves.png for Markdown (pip install 'bigctl[report]')
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN|SWEEP", help="a folder, or a name under runs/ or sweeps/; or an export")
    what = "file to write; default: report.html in its folder, of an export FOLDER-report.html beside it"
    parser.add_argument("--out", type=Path, metavar="FILE", help=what)
    parser.add_argument(
        "--samples", type=common.whole(), default=16, metavar="N",
        help="validation examples to predict, the worst mistakes first; 0 for none; default: 16",
    )  # fmt: skip
    parser.add_argument(
        "--png", nargs="?", type=Path, const=Path(), metavar="FILE",
        help="also draw the main curves into an image and print a Markdown line for it; default: curves.png beside it",
    )  # fmt: skip
    common.add_run_plugins(parser)
    common.add_exported(parser)
    common.add_json(parser)


def run(options: argparse.Namespace) -> int:
    from bigctl.errors import ConfigError, RunError
    from bigctl.files import write_text
    from bigctl.reports import find, png, run, sweep

    found = find.locate(options.run, options.source)
    exported.require_source(options, [found.export])
    if options.plugin and found.export is None:
        raise ConfigError("is for an export; no page imports what a run names", where="--plugin", hint="leave it out")
    beside = found.path.absolute() if found.path.name in ("", "..") else found.path
    own = found.path / "report.html" if found.export is None else beside.with_name(f"{beside.name}-report.html")
    out = options.out or own
    picture = None if options.png is None else options.png if options.png.name else out.with_name("curves.png")
    missing = None
    if picture is not None and (missing := png.missing()) is not None:
        picture = None
    secret = common.passphrase(options.passphrase_file, [str(found.path)])
    if found.export is not None:
        if options.png is not None:
            raise ConfigError("an export has no curves", where="--png", hint="leave it out, or draw those of the run")
        text = _of_export(found.export, options, secret)
    elif found.sweep:
        text = sweep.sweep_page(found.path, link=lambda trial: sweep.trial_link(trial, out.absolute().parent))
    else:
        text = run.run_page(found.run, samples=options.samples)
    try:
        write_text(out, text)
        if picture is not None:
            (png.of_sweep if found.sweep else png.of_run)(found.path, picture)
    except OSError as error:
        hint = "choose another place with --out FILE"
        raise RunError(f"cannot be written: {error.strerror}", where=str(error.filename or out), hint=hint) from error
    markdown = f"![{found.path.name}]({picture})" if picture is not None else None
    if options.json:
        pictures = {"png": picture and str(picture), "markdown": markdown} if options.png is not None else {}
        said = {"missing": str(missing)} if missing is not None else {}
        render.print_json({"run": str(found.path), "report": str(out), "bytes": len(text.encode()), **pictures, **said})
    else:
        print(out)
        if markdown is not None:
            print(markdown)
    if missing is not None:
        print(f"bigctl: {missing.where}: {missing.message}; the page is written", file=sys.stderr)
        print(f"        {missing.hint}", file=sys.stderr)
    return 0 if missing is None else missing.exit_code


def _of_export(export: Export, options: argparse.Namespace, secret: str | None) -> str:
    """The page of an export, with its scores of the test split where they can be had."""
    from bigctl.errors import BigctlError
    from bigctl.reports.export import export_page

    scored, runtime, said = None, "", []
    with exported.in_clear(export, secret) as found:
        try:
            with exported.model(found, options, secret) as model:
                runtime, said = model.runtime, list(exported.facts(model)["notes"])
                scored = model.score("test", errors=options.samples)
        except BigctlError as error:
            said.append(f"its scores are not known: {error}")
        return export_page(cast("Export", found), scored, runtime, said, f"bigctl report {export.path}")
