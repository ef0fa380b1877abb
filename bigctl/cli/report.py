"""Write one self-contained HTML page about a run or a sweep: open it from disk, send it, print it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bigctl.cli import common, render

EXAMPLES = """\
examples:
  bigctl report runs/cnn_cls                       runs/cnn_cls/report.html
  bigctl report cnn_cls --out page.html --samples 64
  bigctl report sweeps/lr                          leaderboard, parameters, curves of all trials
  bigctl report cnn_cls --png                      curves.png for Markdown (pip install 'bigctl[report]')
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN|SWEEP", help="a run directory, a sweep's, or a name under runs/ or sweeps/")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file to write; default: report.html in its folder")
    parser.add_argument(
        "--samples", type=common.whole(), default=16, metavar="N",
        help="validation examples to predict, the worst mistakes first; 0 for none; default: 16",
    )  # fmt: skip
    parser.add_argument(
        "--png", nargs="?", type=Path, const=Path(), metavar="FILE",
        help="also draw the main curves into an image and print a Markdown line for it; default: curves.png beside it",
    )  # fmt: skip
    common.add_json(parser)


def run(options: argparse.Namespace) -> int:
    from bigctl.errors import RunError
    from bigctl.files import write_text
    from bigctl.reports import find, png, run, sweep

    found = find.locate(options.run)
    out = options.out or found.path / "report.html"
    picture = None if options.png is None else options.png if options.png.name else out.with_name("curves.png")
    missing = None
    if picture is not None and (missing := png.missing()) is not None:
        picture = None
    if found.sweep:
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
