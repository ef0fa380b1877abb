"""Write a trained model as a folder that another library loads."""

from __future__ import annotations

import argparse
from pathlib import Path

from bigctl import formatting
from bigctl.cli import common, render
from bigctl.cli.eval import step_argument
from bigctl.inference.exporters.formats import FORMATS, exporter

EXAMPLES = """\
examples:
  bigctl export runs/bert_cls --format hf
  bigctl export cnn_cls --format jax --out digits && python digits/run.py 7.png
  bigctl export bert_cls --format hf --out sentiment --step last
  bigctl export bert_cls --format hf --json

""" + "\n".join(f"{name}: {found.about}" for name, found in FORMATS.items())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run directory, or a name under runs/")
    parser.add_argument("--format", choices=tuple(FORMATS), required=True, help="see below")
    parser.add_argument("--out", type=Path, metavar="DIR", help="a new folder; default: RUN/FORMAT")
    parser.add_argument("--step", default="best", help="checkpoint: best, last, or a step; default: best")
    common.add_run_plugins(parser)
    common.add_json(parser)


def run(options: argparse.Namespace) -> int:
    step = step_argument(options.step)
    found_exporter = exporter(options.format)
    from bigctl.interop.folders import require_new
    from bigctl.runs import directory

    found = directory.locate(options.run)
    folder = options.out or found.path / options.format
    require_new(folder)
    from bigctl.inference.trained import TrainedRun

    trained = TrainedRun.load(str(found.path), step=step, plugins=options.plugin)
    found_exporter.require(trained)
    exported = found_exporter.write(trained, folder)
    files = sorted(file.name for file in folder.iterdir())
    facts = dict(exported.facts)
    what = facts.pop("what")
    if options.json:
        report = {"run": str(found.path), "step": trained.step, "format": options.format, "folder": str(folder)}
        render.print_json({**report, **facts, "files": files})
        return 0
    print(f"{found.path}, step {trained.step:,} -> {folder} ({what})")
    for file in files:
        print(f"  {file:<24} {formatting.size((folder / file).stat().st_size):>10}")
    if "checked" in facts:
        print(f"it computes what the run does: {facts['checked']}")
    print("to use it:")
    for line in exported.usage:
        print(f"  {line}")
    return 0
