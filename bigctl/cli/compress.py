"""Make a run of a run whose weights are rounded, pruned, averaged or fewer, and say what that costs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bigctl.cli import common, render
from bigctl.cli.eval import step_argument
from bigctl.errors import ConfigError

if TYPE_CHECKING:
    from bigctl.inference.compression.method import Method

EXAMPLES = """\
examples:
  bigctl compress bert_cls method=int8
  bigctl compress cnn_cls method=int8 ranges=percentile         convolutions too: fixed ranges of activations
  bigctl compress bert_cls method=int4 group=32 --name small
  bigctl compress bert_cls method=prune sparsity=0.5            by=wanda, or by=magnitude
  bigctl compress bert_cls method=prune pattern=2:4 --json
  bigctl compress bert_cls method=structured heads=0.25 columns=0.5      whole parts go; layers=2, keep=[0,5]
  bigctl compress bert_cls --pareto                             several methods beside each other; writes nothing
  bigctl compress bert_cls --pareto method=prune,structured sparsity=0.3,0.5 columns=0.25,0.5
  bigctl compress a method=soup soup=greedy from=[b,c]

The result is a run: eval, predict, compare, report and export take it. docs/compress.md says more.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run directory, or a name under runs/")
    parser.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="method=int8, int4, prune, structured or soup, and its keys"
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--name", help="the new run is runs/NAME; default: beside RUN, named after it and the method")
    place.add_argument("--run-dir", type=Path, metavar="DIR", help="the very folder of the new run")
    parser.add_argument(
        "--pareto", action="store_true", help="try several methods, or values of keys (a=1,2), and write nothing"
    )
    parser.add_argument("--step", default="best", help="checkpoint: best, last, or a step; default: best")
    common.add_run_plugins(parser)
    common.add_json(parser)


def run(options: argparse.Namespace) -> int:
    from bigctl.inference.compression.method import Method

    step = step_argument(options.step)
    if options.pareto:
        return _pareto(options, Method.several(options.settings), step)
    method = Method.parse(options.settings)
    from bigctl.runs import directory

    found = directory.locate(options.run)
    from bigctl.inference.compression import compressed
    from bigctl.inference.trained import TrainedRun

    trained = TrainedRun.load(str(found.path), step=step, plugins=options.plugin)
    path = compressed.destination(trained, method, options.name, options.run_dir)
    made = compressed.compress(trained, method, path)
    if options.json:
        render.print_json({"run": str(made.path), "source": str(found.path), **made.table})
        return 0
    print(f"{found.path}, step {trained.step:,} -> {made.path}")
    for line in made.lines:
        print(f"  {line}")
    print(f"next: bigctl eval {made.path}, bigctl compare {found.path} {made.path}")
    return 0


def _pareto(options: argparse.Namespace, methods: list[Method], step: str | int) -> int:
    if options.name is not None or options.run_dir is not None:
        raise ConfigError("--pareto writes no run", where="command line", hint="leave out --name and --run-dir")
    from bigctl.runs import directory

    found = directory.locate(options.run)
    from bigctl.inference.compression import pareto
    from bigctl.inference.trained import TrainedRun

    front = pareto.front(TrainedRun.load(str(found.path), step=step, plugins=options.plugin), methods)
    if options.json:
        render.print_json({"run": str(found.path), **front.to_json()})
        return 0
    print(f"{found.path} on {front.on}; +- of the difference, time of 64 examples as a part; * in the Pareto set")
    for line in front.lines:
        print(f"  {line}")
    best = [each.method for each in front.tried if each.best and each.method != pareto.FLOAT32]
    print(f"next: bigctl compress {found.path} {best[0]}" if best else "next: keep float32")
    return 0
