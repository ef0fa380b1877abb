"""What `train` and `resume` share: flags, gates, reports for CI, and what is printed."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bigctl.cli import common, render
from bigctl.formatting import number

if TYPE_CHECKING:
    from bigctl.engine.run import Options
    from bigctl.runs.gates import Verdict
    from bigctl.runs.summary import Federated, Overfit, Summary
    from bigctl.training.signals import StopRequest


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-drift", action="append", default=[], metavar="KEY", help="resume although this key differs"
    )
    parser.add_argument("--profile", action="store_true", help="write a profiler trace and name the slow parts")
    parser.add_argument(
        "--elastic", metavar="LEAST:MOST",
        help="train with so many processes, this command on each host; a lost one is done without, and taken back",
    )  # fmt: skip
    parser.add_argument(
        "--restarts", type=int, default=5, metavar="N",
        help="with --elastic: end after more starts in a row that came to no new checkpoint; default: 5",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    common.add_gates(parser)
    common.add_json(parser)


@contextlib.contextmanager
def session(options: argparse.Namespace) -> Iterator[Session]:
    """Around a training: a request to stop is orderly within, and its end is judged, reported and printed."""
    from bigctl.training.signals import StopRequest

    with StopRequest(lambda: common.say_interrupted(options)) as stop:  # before all that takes time to import
        opened = Session(options, stop)
        try:
            yield opened
        except Exception as error:
            opened.failed(error)
            raise
        opened.report()


class Session:
    """One training as the command line sees it.

    Attributes:
        exit_code: once it has been reported.
    """

    exit_code = 1

    def __init__(self, flags: argparse.Namespace, stop: StopRequest):
        from bigctl.parallel import cluster, distributed
        from bigctl.runs import ci_report, gates

        self._flags, self._stop = flags, stop
        self._path: Path | None = None
        self._ended: tuple[Summary, list[Verdict]] | None = None
        self._follows = cluster.is_follower()
        if self._follows:
            distributed.silence_process()
        self._gates = gates.parse(flags.require)
        self._reports = ci_report.Reports("train", self._gates, None if self._follows else flags.junit)

    def options(self, path: Path, *, resume: str) -> Options:
        """How to train there. From here on an end with an error names the folder too."""
        from bigctl.engine.run import Options

        flags = self._flags
        flags.run_dir = self._path = path
        return Options(
            resume=resume,
            allow_drift=flags.allow_drift,
            quiet=flags.quiet,
            profile=flags.profile,
            plugins=flags.plugin,
            argv=flags.argv,
            began=flags.began,
            stop=self._stop,
            require=self._gates,
        )

    def end(self, summary: Summary) -> None:
        """Judge what came out. Raises ConfigError for a gate on an unknown metric."""
        from bigctl.runs import gates

        self._ended = summary, gates.judge(self._gates, summary["metrics"])

    def failed(self, error: Exception) -> None:
        if not self._follows:
            self._reports.failed(error, run=self._path, seconds=time.monotonic() - self._flags.began)

    def report(self) -> None:
        if self._ended is None:
            return
        summary, verdicts = self._ended
        if not self._follows:
            self._reports.ended(verdicts, summary, seconds=time.monotonic() - self._flags.began)
            if self._flags.json:
                judged = {"gates": [verdict.to_json() for verdict in verdicts]} if self._gates else {}
                render.print_json({**summary, **judged})
            else:
                print_summary(summary, verdicts)
        self.exit_code = common.exit_code(verdicts)


def _overfit_verdict(found: Overfit) -> str:
    losses = f"loss {number(found['first_loss'])} -> {number(found['last_loss'])}"
    if found["accuracy"] is not None:
        losses += f", accuracy {number(found['accuracy'])}"
    if found["learned"]:
        return f"one batch: LEARNED ({losses}): the model can learn"
    hint = "more train.steps or another optimizer.lr may help, else model or data are wrong"
    return f"one batch: NOT LEARNED ({losses}): {hint}"


def _served(found: Federated) -> str:
    """How the clients of a federated training are served."""
    told, clients = found["accuracy"], f"{found['scored']:,}"
    clients += f" of {found['clients']:,}" if found["scored"] < found["clients"] else ""
    return (
        f"clients: accuracy {told['worst']:.4f} of the worst, {told['tenth']:.4f} or less for a tenth, "
        f"{told['median']:.4f} in the middle ({clients}, each on its part of the test split; spread "
        f"{found['spread']:.3f}, by chance alone {found['spread_by_chance']:.3f})"
    )


def print_summary(summary: Summary, verdicts: list[Verdict]) -> None:
    """What came out, and the commands that are likely next."""
    metrics, run = summary["metrics"], summary["run"]
    if summary.get("already_complete"):
        print(f"{run} is complete; nothing to do")
    else:
        times = summary["timings"]
        rate = f", {summary['examples_per_s']:,.0f} examples/s" if summary["examples_per_s"] else ""
        rate += f", {summary['tokens_per_s']:,.0f} tokens/s" if summary.get("tokens_per_s") else ""
        rate += f", MFU {summary['mfu']:.1%}" if summary.get("mfu") else ""
        before = summary["resumed_from"]
        own = f" ({before:,} of them before)" if before else ""
        render.print_wrapped(f"{run}: {summary['step']:,} steps{own} in {times['wall']:.1f} s{rate}")
        known = times["train"] + times["compile"] + times["evaluate"] + times["checkpoint"] + times["data_wait"]
        other = times["wall"] - known
        render.print_wrapped(
            f"  time: train {times['train']:.1f} s, compile {times['compile']:.1f}, evaluate {times['evaluate']:.1f}, "
            f"checkpoint {times['checkpoint']:.1f}, data wait {times['data_wait']:.1f}, start-up and test {other:.1f}"
        )
        if (waiting := summary.get("waiting")) is not None:
            render.print_wrapped(f"  {waiting['sentence']}")
    if (overfit := summary.get("overfit")) is not None:
        render.print_wrapped(f"  {_overfit_verdict(overfit)}")
    if (private := summary.get("privacy")) is not None:
        told = f"noise {number(private['noise'])}, {private['steps']:,} steps"
        whose = " of each client" if private.get("unit") == "client" else ""
        render.print_wrapped(
            f"  privacy: epsilon {number(private['epsilon'])}{whose} at delta {private['delta']:g} ({told})"
        )
    if (clients := summary.get("federated")) is not None:
        render.print_wrapped(f"  {_served(clients)}")
    if summary["stopped"]:
        render.print_wrapped(f"  stopped early: {summary['stopped']}")
    render.print_wrapped(f"  selected: step {summary['selected_step']:,} by {summary['selected_by']}")
    from bigctl.runs import baselines, run_info
    from bigctl.runs.directory import RunDirectory

    shown = {n: v for n, v in metrics.items() if isinstance(v, float) and n.split("/")[0] in ("val", "test")}
    render.print_metrics(shown)
    if beaten := baselines.of_run(RunDirectory(Path(run)).record(), summary):
        for line in baselines.lines(beaten, metrics, summary["selected_by"]):
            render.print_wrapped(f"  {line}")
    if (confusion := summary.get("confusion")) and not summary.get("already_complete"):
        render.print_confusion(confusion, summary["classes"])
    render.print_passed(verdicts)
    for line in summary.get("profile") or []:
        render.print_wrapped(f"  slow: {line}")
    print("next:")
    print(f"  bigctl eval {run}{run_info.plugin_flags(RunDirectory(Path(run)))}")
    print(f"  {run_info.next_command(RunDirectory(Path(run)))}")
    print(f"  bigctl report {run}")
    print("  bigctl ui")
