"""`bigctl data NAME --suspects`: examples whose label is likely wrong."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from bigctl.cli import common, render

if TYPE_CHECKING:
    from bigctl.config.schema import Data


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--suspects", action="store_true", help="rank examples whose label is likely wrong, by cheap models"
    )
    parser.add_argument(
        "--most",
        type=common.whole(least=1),
        default=20,
        metavar="N",
        help="of --suspects and --copies, how many; default: 20",
    )


def show(options: argparse.Namespace, data: Data, regression: bool) -> int:
    """Print the likeliest errors, each with its place, label, and the class that it more likely is of."""
    from dataclasses import asdict

    from bigctl.baselines import suspects
    from bigctl.data.preparation import prepare
    from bigctl.data.preview import one_line

    if not options.json:
        print("bigctl: learning ...", file=sys.stderr)
    found = suspects.suspects(prepare.prepare(data, regression=regression), options.most)
    if options.json:
        render.print_json(asdict(found))
        return 0
    print(f"{found.count:,} examples, each judged by {found.learner} that has not seen it ({found.accuracy:.1%} right)")
    if not found.found:
        print("no label is suspected")
        return 0
    rows = [
        [each.origin or f"{each.split} {each.row}", each.given, f"{each.given_probability:.3f}", each.likely,
         f"{each.likely_probability:.3f}", one_line(each.text, 80)]
        for each in found.worst
    ]  # fmt: skip
    render.print_table(["example", "given", "p", "likely", "p", "text" if rows[0][5] else ""], rows)
    sure = f"{found.confident:,} of them as surely as examples of the likelier class are known"
    print(f"{found.found:,} are suspected, {sure}; look at them before you change any")
    return 0
