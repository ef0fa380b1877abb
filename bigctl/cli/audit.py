"""Attack a trained model by its losses: who was in its training split, and what that proves about its privacy."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from bigctl.cli import common, render
from bigctl.cli.eval import step_argument
from bigctl.formatting import number

if TYPE_CHECKING:
    from bigctl.inference.audit import Audit

EXAMPLES = """\
examples:
  bigctl audit cnn_cls
  bigctl audit cnn_cls --split test --confidence 0.99
  bigctl audit cnn_cls --step last --json
  bigctl train recipe=cnn_cls train.privacy.canaries=1000 --name watched && bigctl audit watched
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run directory, or a name under runs/")
    parser.add_argument(
        "--split", choices=("validation", "val", "test"), default="validation",
        help="examples that were not trained on; default: validation, drawn at random where the data has no own",
    )  # fmt: skip
    parser.add_argument("--confidence", default="0.95", metavar="C", help="of what is proven; default: 0.95")
    parser.add_argument(
        "--seed", type=common.whole("seed"), default=0, metavar="N",
        help="which half of the examples chooses the threshold; default: 0",
    )  # fmt: skip
    parser.add_argument("--step", default="best", help="checkpoint: best, last, or a step; default: best")
    common.add_run_plugins(parser)
    common.add_json(parser)


def run(options: argparse.Namespace) -> int:
    step, confidence = step_argument(options.step), _share(options.confidence)
    split = {"val": "validation"}.get(options.split, options.split)
    from bigctl.inference import audit, kept
    from bigctl.inference.trained import TrainedRun

    trained = TrainedRun.load(options.run, step=step, plugins=options.plugin)
    found = audit.audit(trained, split, confidence=confidence, seed=options.seed)
    kept.keep(trained.run, trained.step, {"audit": found.to_json()})
    if options.json:
        render.print_json({"run": str(trained.run.path), "step": trained.step, **found.to_json()})
    else:
        print(f"{trained.run.path}, step {trained.step:,}")
        _print(found)
        print("next:")
        print(f"  bigctl report {trained.run.path}")
    return 0 if found.holds else 1


def _share(text: str) -> float:
    """Raises ConfigError for what is no share between 0.5 and 1."""
    from bigctl.errors import ConfigError

    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.5 <= value < 1:
        raise ConfigError(f"{text!r} is no confidence", where="--confidence", hint="0.5 or more, below 1, such as 0.95")
    return value


def _print(found: Audit) -> None:
    render.print_wrapped(f"{found.members:,} members, {found.others:,} of {found.split} that are none")
    rows = [
        [attack.name, f"{attack.auc:.4f}", *(f"{share:.2%}" for share in attack.tpr.values())]
        for attack in found.attacks
    ]
    if (proven := found.proven) is None:
        render.print_wrapped("  too few for attacks by loss: canaries alone are asked")
    else:
        render.print_table(["told by", "AUC", "found at 1% false", "at 0.1%"], rows)
        render.print_wrapped(
            f"  epsilon is at least {number(proven.epsilon)} at {proven.confidence:.0%} confidence, delta "
            f"{found.delta:g}: {proven.guess}, right of {proven.right:,} in {proven.count:,}, wrong of "
            f"{proven.wrong:,} in {proven.others:,}"
        )
    if (told := found.canaries) is not None:
        render.print_wrapped(
            f"  by {told.count:,} canaries, {told.inside:,} of them trained on: epsilon is at least "
            f"{number(told.epsilon)} at {told.confidence:.0%} confidence, {told.right:,} of {told.guesses:,} guesses "
            "are right"
        )
    if found.promise is None:
        render.print_wrapped("  nothing was promised: train.privacy.epsilon trains with differential privacy")
    elif found.holds:
        render.print_wrapped(f"  promised: {number(found.promise['epsilon'])}, which nothing here contradicts")
    else:
        render.print_wrapped(f"  promised: {number(found.promise['epsilon'])}: BROKEN, what is proven is more")
