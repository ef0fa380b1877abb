"""Write a trained model as a folder that another library loads."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from bigctl import formatting
from bigctl.cli import common, render
from bigctl.cli.eval import step_argument
from bigctl.errors import ConfigError
from bigctl.inference.exporters.formats import FORMATS, exporter, require_bits

EXAMPLES = """\
examples:
  bigctl export runs/bert_cls --format hf
  bigctl export cnn_cls --format jax --out digits && python digits/run.py 7.png
  bigctl export bert_cls --format hf --out sentiment --step last
  bigctl export bert_cls --format onnx --int8 --out small
  bigctl export gpt_lm --format onnx --cache --int8
  bigctl export bert_cls --format hf --json

""" + "\n".join(f"{name}: {found.about}" for name, found in FORMATS.items())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run directory, or a name under runs/")
    parser.add_argument("--format", choices=tuple(FORMATS), required=True, help="see below")
    parser.add_argument("--out", type=Path, metavar="DIR", help="a new folder; default: RUN/FORMAT")
    small = parser.add_mutually_exclusive_group()
    rounds = " or ".join(name for name, found in FORMATS.items() if found.bits)
    for bits in (8, 4):
        what = f"weights of {bits} bits, with what that costs and gains; of --format {rounds}"
        small.add_argument(f"--int{bits}", dest="bits", action="store_const", const=bits, help=what)
    parser.add_argument(
        "--cache",
        action="store_true",
        help="keys and values of earlier tokens go in and out; of language models as onnx",
    )
    parser.add_argument("--step", default="best", help="checkpoint: best, last, or a step; default: best")
    common.add_run_plugins(parser)
    common.add_json(parser)


def run(options: argparse.Namespace) -> int:
    step = step_argument(options.step)
    found_exporter = exporter(options.format)
    rounding = {} if options.bits is None else {"bits": options.bits}
    cache = {"cache": True} if options.cache else {}
    if cache and options.format != "onnx":
        raise ConfigError(f"--format {options.format} has none", where="--cache", hint="--format onnx has")
    if rounding:
        require_bits(options.format, options.bits)
    from bigctl.interop.folders import require_new
    from bigctl.runs import directory

    found = directory.locate(options.run)
    folder = options.out or found.path / (f"{options.format}-int{options.bits}" if rounding else options.format)
    require_new(folder)
    from bigctl.inference.trained import TrainedRun

    trained = TrainedRun.load(str(found.path), step=step, plugins=options.plugin)
    found_exporter.require(trained)
    if cache:
        from bigctl.inference.exporters import cached

        cached.require(trained)
    if (quantize := trained.config.train.quantize) is not None and options.bits is None:
        what = "train.quantize=%s: this file has the float32 weights; --format onnx --%s writes what it was tuned for"
        logging.getLogger("bigctl").warning(what, quantize, quantize)
    exported = found_exporter.write(trained, folder, **rounding, **cache)
    files = sorted(file.name for file in folder.iterdir())
    facts = dict(exported.facts)
    what, lines = facts.pop("what"), facts.pop("lines", [])
    if options.json:
        report = {"run": str(found.path), "step": trained.step, "format": options.format, "folder": str(folder)}
        render.print_json({**report, **facts, "files": files})
        return 0
    print(f"{found.path}, step {trained.step:,} -> {folder} ({what})")
    for file in files:
        print(f"  {file:<24} {formatting.size((folder / file).stat().st_size):>10}")
    if "checked" in facts and not rounding:
        print(f"it computes what the run does: {facts['checked']}")
    if "text" in facts:
        print(f"it writes {facts['text']}")
    for line in lines:
        print(f"  {line}")
    print("to use it:")
    for line in exported.usage:
        print(f"  {line}")
    return 0
