"""Train an experiment. The same command resumes it where it was stopped; a finished run is left unchanged."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bigctl.cli import common, render, training

if TYPE_CHECKING:
    from bigctl.config.compose import Composed
    from bigctl.config.presets import Root

EXAMPLES = """\
examples:
  bigctl train recipe=cnn_cls
  bigctl train recipe=cnn_cls 'model.channels=[64,128]' train.epochs=10 --name wider
  bigctl train recipe=cnn_cls data=image_folder data.path=photos 'data.image_size=[64,64]'
  bigctl train recipe=mlp_cls data=csv data.path=table.csv data.label=species
  bigctl train recipe=cnn_cls --dry-run
  bigctl train recipe=mlp_cls --baseline
  bigctl train recipe=cnn_cls --find-lr
  bigctl train recipe=cnn_cls --require 'val/accuracy>=0.97' --junit report.xml
  bigctl train recipe=gpt_lm --run-dir /shared/long --elastic 3:4      on each host: three go on where one is lost
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_overrides(parser)
    parser.add_argument("--name", help="name of the run, a folder under runs/; default: made from the overrides")
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="folder of the run")
    parser.add_argument(
        "--resume", choices=("auto", "never", "must"), default="auto",
        help="auto resumes an existing run; never starts a new one; must fails if there is none",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true", help="compose, check and compile; report sizes; train nothing"
    )
    parser.add_argument(
        "--baseline", action="store_true", help="first compute what must be beaten, as `bigctl baseline` does"
    )
    parser.add_argument(
        "--find-lr", action="store_true", help="try growing learning rates for 100 steps and suggest one; makes no run"
    )
    parser.add_argument(
        "-m", "--multirun", action="store_true", help="the same as `bigctl sweep`, with all its flags: see its --help"
    )
    training.add_flags(parser)


def run(options: argparse.Namespace) -> int:
    from bigctl.config import presets

    if not any(o.lstrip("+").startswith(("recipe=", "experiment=")) for o in options.overrides):
        return _no_recipe(options.overrides, presets.roots(options.config_dir))
    if options.find_lr:
        from bigctl.cli import find_lr

        return find_lr.run(options)
    if options.dry_run:
        from bigctl.engine import dry_run

        report = dry_run.report(common.composed(options).config)
        if options.json:
            render.print_json(report)
        else:
            print(dry_run.text(report))
        return 0
    if options.elastic:
        from bigctl.cli import elastic

        composed, path = _chosen(options)
        if (code := elastic.run(options, composed.config, path)) is not None:
            return code
    with training.session(options) as session:
        composed, path = _chosen(options)
        how = session.options(path, resume=options.resume)
        if options.baseline:
            from bigctl.baselines.baseline import baseline

            baseline(composed.config)
        from bigctl.engine import trainer

        session.end(trainer.train(composed, path, how))
    return session.exit_code


def _chosen(options: argparse.Namespace) -> tuple[Composed, Path]:
    """What is trained, and where."""
    from bigctl.runs import directory

    composed, fresh = common.composed(options), options.resume == "never"
    return composed, directory.choose(composed.overrides, name=options.name, run_dir=options.run_dir, fresh=fresh)


def _no_recipe(given: Sequence[str], roots: Sequence[Root]) -> int:
    from bigctl.config import presets, suggestions

    suggestions.reject_bare(given, roots)
    print("bigctl: no recipe is chosen; one of:", file=sys.stderr)
    recipes = sorted(presets.files(roots, "recipe").items())
    width = max((len(name) for name, _ in recipes), default=0)
    for name, path in recipes:
        print(f"  recipe={name:<{width}}  {presets.headline(path)}", file=sys.stderr)
    return 2
