"""Train the cheap answers to a data set, which a model must beat; the best is kept and shown beside every score."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import TYPE_CHECKING

from bigctl.cli import common, render

if TYPE_CHECKING:
    from bigctl.config.schema import Config
    from bigctl.runs.baselines import Baseline

EXAMPLES = """\
examples:
  bigctl baseline data=rotten_tomatoes
  bigctl baseline mnist5k
  bigctl baseline data=csv data.path=table.csv data.label=species
  bigctl baseline recipe=mlp_cls data=csv data.path=table.csv data.label=price model.head=regression
  bigctl baseline tiny_shakespeare --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="data=NAME or just NAME, recipe=NAME, and any keys of them"
    )
    common.add_sources(parser)
    parser.add_argument("--again", action="store_true", help="compute it although it is kept")
    common.add_json(parser)


def run(options: argparse.Namespace) -> int:
    config = common.composed_data(options, "baseline")
    if not options.json:
        print("bigctl: learning ...", file=sys.stderr)
    from bigctl.baselines.baseline import baseline

    found = baseline(config, again=options.again)
    if options.json:
        render.print_json(found)
    else:
        _print(found, config)
        print("next:")
        if any(override.startswith("recipe=") for override in options.overrides):
            print(f"  {shlex.join(['bigctl', 'train', *options.overrides, *common.source_flags(options)])}")
        print("  bigctl ui")
    return 0


def _print(found: Baseline, config: Config) -> None:
    """All cheap answers by the metric that selects, and all metrics of the best."""
    measure = found["selected_by"].partition("/")[2]
    header = ["answer", f"val/{measure}", f"test/{measure}", "seconds"]
    rows = []
    for each in found["all"]:
        scores = [each["metrics"].get(f"{split}/{measure}") for split in ("val", "test")]
        shown = ["" if score is None else f"{score:.4f}" for score in scores]
        rows.append([each["name"], *shown, f"{each['seconds']:.1f}"])
    render.print_table(header, rows)
    print(f"{found['name']}, the best by {found['selected_by']}:")
    render.print_metrics(found["metrics"])
    print("every summary and report of a run on this data shows it")
