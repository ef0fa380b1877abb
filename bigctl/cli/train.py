"""Train an experiment. The same command again goes on where it was stopped; a finished run is left as it is."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from bigctl.cli import common

EXAMPLES = """\
examples:
  bigctl train recipe=cnn_cls
  bigctl train recipe=cnn_cls model.channels=[64,128] train.epochs=10 --name wider
  bigctl train recipe=cnn_cls data=image_folder data.path=photos data.image_size=[64,64]
  bigctl train recipe=mlp_cls data=csv data.path=table.csv data.label=species
  bigctl train recipe=cnn_cls --dry-run
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_overrides(parser)
    parser.add_argument("--name", help="name of the run, a folder under runs/; default: made from the overrides")
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="folder of the run")
    parser.add_argument(
        "--resume", choices=("auto", "never", "must"), default="auto",
        help="auto goes on with a run that is there; never starts anew; must fails if there is none",
    )  # fmt: skip
    parser.add_argument(
        "--allow-drift", action="append", default=[], metavar="KEY", help="go on although this key differs"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="compose, check and compile; report sizes; train nothing"
    )
    parser.add_argument("--profile", action="store_true", help="write a profiler trace and name the slow parts")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    common.add_json(parser)


def run(options: argparse.Namespace) -> int:
    from bigctl.config import tree

    if not any(o.lstrip("+").startswith(("recipe=", "experiment=")) for o in options.overrides):
        return _no_recipe(tree.roots(options.config_dir))
    composed = common.composed(options)
    if options.dry_run:
        from bigctl.runs import dry_run

        report = dry_run.report(composed.config)
        if options.json:
            common.print_json(report)
        else:
            print(dry_run.text(report))
        return 0
    from bigctl.runs import directory, trainer

    path = directory.choose(
        composed.overrides, name=options.name, run_dir=options.run_dir, fresh=options.resume == "never"
    )
    summary = trainer.train(
        composed,
        path,
        trainer.Options(
            resume=options.resume,
            allow_drift=options.allow_drift,
            quiet=options.quiet,
            profile=options.profile,
            plugins=options.plugin,
            argv=options.argv,
        ),
    )
    if options.json:
        common.print_json(summary)
    else:
        print_summary(summary)
    return 0


def _no_recipe(roots: Any) -> int:
    from bigctl.config import tree

    print("bigctl: no recipe is chosen; one of:", file=sys.stderr)
    for name, path in sorted(tree.files(roots, "recipe").items()):
        print(f"  recipe={name:<10} {tree.headline(path)}", file=sys.stderr)
    return 2


def print_summary(summary: dict[str, Any]) -> None:
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
    from bigctl.cli.eval import print_confusion, print_metrics

    shown = {n: v for n, v in metrics.items() if isinstance(v, float) and n.split("/")[0] in ("val", "test")}
    print_metrics(shown)
    if summary.get("confusion") and not summary.get("already_complete"):
        print_confusion(summary["confusion"], summary["classes"])
    for line in summary.get("profile") or []:
        print(f"  slow: {line}")
    print("next:")
    print(f"  bigctl eval {run}")
    print(f"  {_use(run)}")
    print(f"  bigctl info {run}")


def _use(run: str) -> str:
    """The command that uses what was trained, by what its data looks like."""
    from bigctl.runs.directory import RunDirectory

    record = RunDirectory(Path(run)).record()
    features = record["data"]["features"]
    if record["recipe"] == "bert_mlm":
        return f"bigctl train recipe=bert_cls model.init_from={run}"
    if features["kind"] == "stream":
        return f'bigctl generate {run} --prompt "..."'
    if features["kind"] == "text":
        return f'bigctl predict {run} --text "..."' + (' --text-pair "..."' if features.get("pairs") else "")
    return f"bigctl predict {run} {'FILE.csv' if features['kind'] == 'table' else 'FILE.png'}"
