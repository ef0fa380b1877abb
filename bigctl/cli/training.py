"""What `train` and `resume` share: flags, the training itself, gates, reports for CI, and what is printed."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigctl.cli import common, render

if TYPE_CHECKING:
    from bigctl.training.signals import StopRequest

Choose = Callable[[argparse.Namespace], tuple[Any, Path]]
"""Flags -> what to train (Composed) and where."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-drift", action="append", default=[], metavar="KEY", help="go on although this key differs"
    )
    parser.add_argument("--profile", action="store_true", help="write a profiler trace and name the slow parts")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    common.add_gates(parser)
    common.add_json(parser)


def run(options: argparse.Namespace, choose: Choose, *, resume: str) -> int:
    """Train, judge the gates, report; gives the exit code."""
    from bigctl.training.signals import StopRequest

    with StopRequest() as stop:  # before all that takes time to import: from here on a stop is an orderly one
        return _run(options, choose, stop, resume=resume)


def _run(options: argparse.Namespace, choose: Choose, stop: StopRequest, *, resume: str) -> int:
    from bigctl.parallel import distributed
    from bigctl.runs import ci_report, gates

    follows = distributed.is_follower()
    if follows:
        distributed.silence_process()
    required = gates.parse(options.require)
    reports = ci_report.Reports("train", required, None if follows else options.junit)
    path: Path | None = None
    try:
        composed, path = choose(options)
        options.run_dir = path  # an end with an error names it too
        from bigctl.engine import trainer

        summary = trainer.train(
            composed,
            path,
            trainer.Options(
                resume=resume,
                allow_drift=options.allow_drift,
                quiet=options.quiet,
                profile=options.profile,
                plugins=options.plugin,
                argv=options.argv,
                began=options.began,
                stop=stop,
                require=required,
            ),
        )
        verdicts = gates.judge(required, summary["metrics"])
    except Exception as error:
        if not follows:
            reports.failed(error, run=path, seconds=time.monotonic() - options.began)
        raise
    if follows:
        return common.exit_code(verdicts)
    reports.ended(verdicts, summary, seconds=time.monotonic() - options.began)
    if options.json:
        render.print_json({**summary, "gates": [verdict.to_json() for verdict in verdicts]} if required else summary)
    else:
        print_summary(summary, verdicts)
    return common.exit_code(verdicts)


def print_summary(summary: dict[str, Any], verdicts: list[Any]) -> None:
    """What came out, and the three commands that are likely next."""
    metrics, run = summary["metrics"], summary["run"]
    if summary.get("already_complete"):
        print(f"{run} is complete; nothing to do")
    else:
        times = summary["timings"]
        rate = f", {summary['examples_per_s']:,.0f} examples/s" if summary["examples_per_s"] else ""
        rate += f", {summary['tokens_per_s']:,.0f} tokens/s" if summary.get("tokens_per_s") else ""
        rate += f", MFU {summary['mfu']:.1%}" if summary.get("mfu") else ""
        print(f"{run}: {summary['step']:,} steps in {times['wall']:.1f} s{rate}")
        other = times["wall"] - sum(seconds for name, seconds in times.items() if name != "wall")
        print(
            f"  time: train {times['train']:.1f} s, compile {times['compile']:.1f}, evaluate {times['evaluate']:.1f}, "
            f"checkpoint {times['checkpoint']:.1f}, data wait {times['data_wait']:.1f}, start-up and test {other:.1f}"
        )
    if summary["stopped"]:
        print(f"  stopped early: {summary['stopped']}")
    print(f"  selected: step {summary['selected_step']:,} by {summary['selected_by']}")
    from bigctl.runs import run_info
    from bigctl.runs.directory import RunDirectory

    shown = {n: v for n, v in metrics.items() if isinstance(v, float) and n.split("/")[0] in ("val", "test")}
    render.print_metrics(shown)
    if summary.get("confusion") and not summary.get("already_complete"):
        render.print_confusion(summary["confusion"], summary["classes"])
    render.print_passed(verdicts)
    for line in summary.get("profile") or []:
        print(f"  slow: {line}")
    print("next:")
    print(f"  bigctl eval {run}")
    print(f"  {run_info.use(RunDirectory(Path(run)))}")
    print(f"  bigctl info {run}")
