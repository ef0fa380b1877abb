"""What `bigctl eval` finds out beyond metrics: slices, strange examples, attacks. Nothing heavy at import."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from bigctl import terminal
from bigctl.cli import common, render
from bigctl.formatting import number

if TYPE_CHECKING:
    from bigctl.inference.trained import TrainedRun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--slices", action="append", default=[], metavar="COLUMN",
        help="metrics by value of a column, by class, or by length of texts; may be given again",
    )  # fmt: skip
    parser.add_argument(
        "--min-slice", type=common.whole("number of examples", 2), default=20, metavar="N",
        help="examples that a slice needs; default: 20",
    )  # fmt: skip
    parser.add_argument(
        "--ood", metavar="DATA|FOLDER",
        help="how well examples from elsewhere are told from those of the data: packaged data, a folder or a file",
    )  # fmt: skip


def require(options: argparse.Namespace) -> None:
    """Raises ConfigError for flags that cannot be meant, before anything is loaded."""


def assessed(trained: TrainedRun, options: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, as JSON; it is kept for the report."""
    from dataclasses import asdict

    found: dict[str, Any] = {}
    if options.slices:
        from bigctl.inference import slices

        told = {"least": options.min_slice, **({"rounds": options.bootstrap} if options.bootstrap else {})}
        found["slices"] = [asdict(slices.by_slice(trained, options.split, by, **told)) for by in options.slices]
    if options.ood is not None:
        from bigctl.inference import unfamiliar

        found["ood"] = asdict(unfamiliar.detect(trained, options.ood, options.split))
    if found:
        from bigctl.inference import kept

        kept.keep(trained.run, trained.step, found)
    return found


def print_all(found: dict[str, Any]) -> None:
    for each in found.get("slices", ()):
        print_slices(each)
    if told := found.get("ood"):
        print_ood(told)


def print_slices(found: dict[str, Any], most: int = 20) -> None:
    """A slice a line, the worst first."""
    each, main = found["slices"], found["headline"]
    print(f"by {terminal.one_line(found['by'])} ({found['split']} split, {main} {number(found['whole'])} of all)")
    others = [name for name in ("loss", "f1", "rmse") if name in each[0]["metrics"]]
    rows = [
        [
            row["name"],
            f"{row['count']:,}",
            *_with_interval(row, main),
            *(number(row["metrics"][name]) for name in others),
        ]
        for row in each[:most]
    ]
    render.print_table(["slice", "examples", main, "95%", *others], rows)
    if len(each) > most:
        print(f"  and {len(each) - most} better ones; --json has them")
    if found["small"]:
        print(f"  left out, too small: {_some(found['small'])}")
    print(f"  {verdict(found)}")


def verdict(found: dict[str, Any]) -> str:
    """Which slices are worse than the rest, as a sentence."""
    count = len(found["slices"])
    looked = f"p < 0.05 after Holm's correction for the {count} slices that were looked at"
    if not found["worse"]:
        return f"none is worse than the other examples ({looked})"
    return terminal.one_line(f"worse than the other examples ({looked}): {', '.join(found['worse'])}")


def _with_interval(row: dict[str, Any], name: str) -> list[str]:
    low, high = row["intervals"].get(name, (None, None))
    return [number(row["metrics"][name]), "-" if low is None else f"{number(low)} to {number(high)}"]


def _some(counts: dict[str, int], most: int = 6) -> str:
    told = [f"{terminal.one_line(name)} ({count})" for name, count in list(counts.items())[:most]]
    return ", ".join(told) + (f" and {len(counts) - most} more" if len(counts) > most else "")


def print_ood(found: dict[str, Any]) -> None:
    """A score a line."""
    own = f"{found['own_count']:,} of {found['split']}"
    print(f"{found['count']:,} examples of {terminal.one_line(found['data'])} beside {own}")
    rows = [
        [row["score"], *(f"{row[name]:.4f}" for name in ("auroc", "fpr95")), f"{row['threshold']:.6g}",
         f"{row['flagged']:.1%}", f"{row['own_flagged']:.1%}"]
        for row in found["scores"]
    ]  # fmt: skip
    header = ["score", "AUROC", "FPR at 95%", "threshold", "flagged", "own flagged"]
    render.print_table(header, rows)
    print("  thresholds let 95% of the validation examples pass")
