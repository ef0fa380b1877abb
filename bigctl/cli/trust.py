"""What `bigctl eval` finds out beyond metrics: slices, strange examples, attacks. Nothing heavy at import."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, cast

from bigctl import terminal
from bigctl.cli import common, render
from bigctl.formatting import number

if TYPE_CHECKING:
    from bigctl.inference.scored import Scored
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
    parser.add_argument(
        "--robust", action="append", default=[], metavar="WHAT",
        help="accuracy under attack within linf=0.1,0.2 or l2=1 (of pixels from 0 to 1), of pictures under "
        "corruptions, or under changes of text; may be given again",
    )  # fmt: skip
    parser.add_argument(
        "--count", type=common.whole("number of examples", 1), default=200, metavar="N",
        help="examples that --robust attacks; default: 200",
    )  # fmt: skip
    parser.add_argument(
        "--checklist", metavar="FILE", help="of --robust text, a YAML file of what should change no prediction"
    )
    for name, default, what in _EFFORT:
        parser.add_argument(
            f"--attack-{name}", type=common.whole(f"number of {name}", name != "seed", 100_000), default=default,
            metavar="N", help=f"{what}; default: {default}",
        )  # fmt: skip


_EFFORT = (
    ("steps", 40, "of --robust, steps of PGD and APGD"),
    ("restarts", 2, "of --robust, restarts of PGD"),
    ("queries", 500, "of --robust, how often Square may ask about an example"),
    ("seed", 0, "of --robust, of random starts and searches"),
)


def require(options: argparse.Namespace) -> None:
    """Raises ConfigError for flags that cannot be meant, before anything is loaded."""
    from bigctl.errors import ConfigError

    if options.checklist and "text" not in options.robust:
        raise ConfigError("is for texts", where="--checklist", hint="add --robust text")
    attacks = [text for text in options.robust if text not in ("text", "corruptions")]
    if attacks:
        from bigctl.inference.attacks import threat

        for text in attacks:
            threat.parse(text)
    if options.checklist:
        from pathlib import Path

        from bigctl.inference.attacks import text_changes

        text_changes.checklist(Path(options.checklist))


def assessed(trained: Scored, options: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, as JSON; it is kept for the report. Strange examples and attacks are for runs alone."""
    from dataclasses import asdict

    found: dict[str, Any] = {}
    if options.slices:
        from bigctl.inference import slices

        told = {"least": options.min_slice, **({"rounds": options.bootstrap} if options.bootstrap else {})}
        found["slices"] = [asdict(slices.by_slice(trained, options.split, by, **told)) for by in options.slices]
    if options.ood is not None:
        from bigctl.inference import unfamiliar

        found["ood"] = asdict(unfamiliar.detect(cast("TrainedRun", trained), options.ood, options.split))
    if options.robust:
        found["robust"] = [_under_attack(cast("TrainedRun", trained), options, text) for text in options.robust]
    if found and trained.run.writes:
        from bigctl.inference import kept

        kept.keep(trained.run, trained.step, found)
    return found


def _under_attack(trained: TrainedRun, options: argparse.Namespace, text: str) -> dict[str, Any]:
    if text in ("text", "corruptions"):
        from pathlib import Path

        from bigctl.inference.attacks import changed

        some = {"count": options.count, "seed": options.attack_seed}
        if text == "corruptions":
            return changed.under_corruptions(trained, options.split, **some)
        listed = Path(options.checklist) if options.checklist else None
        return changed.under_text_changes(trained, options.split, checklist=listed, **some)
    from bigctl.inference.attacks import threat
    from bigctl.inference.attacks.ensemble import Effort
    from bigctl.inference.attacks.trained_runs import under_attack

    norm, values = threat.parse(text)
    effort = Effort(options.attack_steps, options.attack_restarts, options.attack_queries)
    given = {"count": options.count, "seed": options.attack_seed, "effort": effort}
    return under_attack(trained, options.split, norm, values, **given)


def print_all(found: dict[str, Any]) -> None:
    for each in found.get("slices", ()):
        print_slices(each)
    if told := found.get("ood"):
        print_ood(told)
    for each in found.get("robust", ()):
        (print_changed if "rows" in each else print_robust)(each)


def print_slices(found: dict[str, Any], most: int = 20) -> None:
    """A slice a line, the worst first."""
    each, main = found["slices"], found["headline"]
    print(f"by {terminal.one_line(found['by'])} ({found['split']} split, {main} {number(found['whole'])} of all)")
    names = ("loss", "rmse") if found["by"] == "class" else ("loss", "f1", "rmse")  # of one class F1 says nothing
    others = [name for name in names if name in each[0]["metrics"]]
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


def print_robust(found: dict[str, Any]) -> None:
    """An eps a line, and what tells that the numbers are too good."""
    hard = ", ".join(f"{value} {name}" for name, value in found["effort"].items())
    print(f"under attack, {found['norm']}: {found['count']} {found['split']} examples, seed {found['seed']} ({hard})")
    names = list(found["points"][0]["left"])
    rows = [["0", number(found["clean"]), "", *[""] * len(names)]]
    for point in found["points"]:
        low, high = point["interval"]
        told = [number(point["left"][name]) for name in names]
        rows.append([f"{point['eps']:g}", number(point["robust"]), f"{number(low)} to {number(high)}", *told])
    render.print_table(["eps", "accuracy", "95%", *(f"after {name}" for name in names)], rows)
    for warning in found["warnings"]:
        print(f"  masked gradients: {warning}")
    if found["warnings"]:
        print("  the model is less robust than these numbers say")


def print_changed(found: dict[str, Any]) -> None:
    """A change a line: how many examples it is of, accuracy before and after, and how often the answer changes."""
    print(f"under {found['norm']}: {found['count']} {found['split']} examples, seed {found['seed']}")
    print(f"  accuracy {number(found['clean'])} as they are")
    header, rows = table_of_changes(found)
    render.print_table(header, rows)
    worst = max(found["rows"], key=lambda row: row.get("changed", 0.0))
    if worst.get("example"):
        print(f"  such as, {terminal.one_line(worst['name'])}: {terminal.one_line(worst['example'])}")


def table_of_changes(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    if found["norm"] == "corruptions":
        names = list(dict.fromkeys(row["name"] for row in found["rows"]))
        by = {(row["name"], row["severity"]): row for row in found["rows"]}
        rows = [[name, *(number(by[name, severity]["accuracy"]) for severity in range(1, 6))] for name in names]
        return ["corruption", *(f"severity {severity}" for severity in range(1, 6))], rows
    rows = []
    for row in found["rows"]:
        told = [f"{row['count']:,}"]
        if row["count"]:
            low, high = row["interval"]
            told += [number(row["clean"]), number(row["accuracy"]), f"{number(low)} to {number(high)}"]
            told.append(f"{row['changed']:.1%}")
        rows.append([row["name"], *told, *[""] * (5 - len(told))])
    return ["change", "texts", "as they are", "changed", "95%", "other answers"], rows
