"""Train every point of a search space with every seed. The same command continues an interrupted sweep."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bigctl.cli import common, render

if TYPE_CHECKING:
    from bigctl.sweeps.execution.local import Executor, Local
    from bigctl.sweeps.search.space import Plan
    from bigctl.training.signals import StopRequest

EXAMPLES = """\
A key with several values is searched, in Hydra's syntax: a,b,c  choice(a,b)  range(1,5)  glob(*)  interval(0,1)
tag(log, interval(1e-5,1e-2)). 'seed=range(3)' repeats every point with three seeds, 'data.fold=range(5)' trains it on
five folds. sweep.* says how to search:
  sweep.sampler=grid|random|tpe|cmaes|gp|nsga2  sweep.trials=40 (points in all)  sweep.pruner=median|asha|hyperband
  sweep.metric=val/loss  sweep.zip=[[key1,key2]]  sweep=NAME (a preset; `bigctl ls sweeps`)

examples:
  bigctl sweep recipe=cnn_cls optimizer.lr=1e-4,3e-4,1e-3 'seed=range(3)'
  bigctl sweep recipe=mlp_cls data=breast_cancer optimizer.lr=1e-3,1e-2 'data.fold=range(5)'
  bigctl sweep recipe=mlp_cls 'optimizer.lr=tag(log, interval(1e-4,1e-1))' sweep.sampler=tpe sweep.trials=30
  bigctl sweep recipe=mlp_cls optimizer.lr=1e-4,1e-3,1e-2 'seed=range(8)' --packed auto
  bigctl sweep recipe=cnn_cls 'model.channels=[32],[32,64]' --dry-run
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_overrides(parser)
    parser.add_argument("--name", help="name of the sweep, a folder under sweeps/; default: made from the overrides")
    parser.add_argument("--sweep-dir", type=Path, metavar="DIR", help="folder of the sweep")
    parser.add_argument(
        "--jobs", default="auto", metavar="N",
        help="processes at once; auto: one a GPU, or one a core (with --packed: one for 8 trials); default: auto",
    )  # fmt: skip
    parser.add_argument(
        "--packed", default="no", choices=("auto", "yes", "no"),
        help="train trials that differ only in numbers as one program; auto measures whether that is faster",
    )  # fmt: skip
    parser.add_argument("--slurm", metavar="KEY=VALUE,...", help="run trials as SLURM jobs, such as partition=gpu")
    parser.add_argument("--retry-failed", action="store_true", help="start trials that failed before once more")
    parser.add_argument("--fail-fast", action="store_true", help="stop at the first trial that fails")
    parser.add_argument("--max-failures", type=int, metavar="N", help="stop when more than N trials have failed")
    parser.add_argument("--dry-run", action="store_true", help="compose and check every point; train nothing")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    common.add_json(parser)


def run(options: argparse.Namespace) -> int:
    from bigctl.training.signals import StopRequest

    with StopRequest(lambda: common.say_interrupted(options)) as stop:
        return _run(options, stop)


def _run(options: argparse.Namespace, stop: StopRequest) -> int:
    from bigctl.errors import ConfigError

    jobs = _jobs(options.jobs)
    if options.max_failures is not None and options.max_failures < 0:
        raise ConfigError(f"{options.max_failures} is no count", where="--max-failures", hint="give 0 or more")
    if options.dry_run or options.slurm is not None:
        return _composed(options, jobs, stop, None)
    from bigctl.sweeps.execution.local import Local

    here = Local(jobs)
    here.expect()
    stop.closing = here.close  # at Ctrl-C until trials run
    try:
        return _composed(options, jobs, stop, here)
    finally:
        here.close()


def _composed(options: argparse.Namespace, jobs: int | None, stop: StopRequest, here: Local | None) -> int:
    from bigctl.sweeps.search import space

    plan = space.plan(options.overrides, config_dirs=options.config_dir, plugins=options.plugin)
    points = space.points(plan) if plan.sweep.sampler == "grid" else None
    noted = space.check_points(plan, points)
    for note in () if options.quiet else noted:
        print(f"note: {note}", file=sys.stderr)
    from bigctl.sweeps import sweep
    from bigctl.sweeps.execution.scheduler import SchedulerOptions

    path = sweep.choose_folder(plan, name=options.name, folder=options.sweep_dir)
    options.run_dir = path  # also named by errors
    packed = _packed(options.packed, plan, quiet=options.quiet)
    if options.dry_run:
        return _show(options, plan, points, path)

    trials = sweep.count_points(plan) * len(plan.space.repeats)
    learns = plan.sweep.sampler not in ("grid", "random")  # from results, so they cannot all start at once
    if here is not None:
        from bigctl.config.numbers import numbers

        shared = () if plan.plugins else numbers(plan.base.config)  # what a plugin keeps of a trial is not known
        here.settle(most=None if packed == "no" else 1 if learns else _packs(trials), numbers=shared)
    executor = here or _slurm(options, jobs)
    scheduler = SchedulerOptions(
        fail_fast=options.fail_fast,
        max_failures=options.max_failures,
        retry_failed=options.retry_failed,
        packed=1 if packed == "no" else max(2, min(_LEARNING, trials) if learns else -(-trials // executor.slots)),
        pack_mode=packed,
    )
    stop.orderly()
    board = sweep.run(plan, path, executor, stop, sweep.SweepOptions(scheduler, argv=options.argv, quiet=options.quiet))
    if options.json:
        render.print_json(board)
    else:
        from bigctl.sweeps.view.leaderboard_text import leaderboard_text

        print(leaderboard_text(board))
    return sweep.exit_code(board["status"])


_LEARNING = 8
"""Trials of a pack where the sampler learns from earlier ones."""


def _packs(trials: int) -> int:
    """Into how many processes, of cores of their own, packed trials are divided at most: what is not arithmetic, such
    as validation, metrics and checkpoints, is done by one thread of a process at a time."""
    from bigctl.sweeps.packed.pack_width import WIDEST_ON_CPU

    return -(-trials // WIDEST_ON_CPU)


def _packed(asked: str, plan: Plan, *, quiet: bool) -> str:
    """What is asked; "no" where the trials need several programs, which is an error with "yes"."""
    if asked == "no":
        return asked
    from bigctl.errors import ConfigError
    from bigctl.sweeps.packed import compatibility
    from bigctl.sweeps.search import space

    refused = compatibility.refusal(space.variants(plan))
    if refused is None:
        return asked
    if asked == "yes":
        raise ConfigError(refused, where="--packed", hint="without it, each trial has a process of its own")
    if not quiet:
        print(f"note: not packed, a process each: {refused}", file=sys.stderr)
    return "no"


def _slurm(options: argparse.Namespace, jobs: int | None) -> Executor:
    from bigctl.sweeps.execution.slurm import Slurm, parse

    return Slurm(parse(options.slurm), jobs or _SUBMITTED)


_SUBMITTED = 16
"""Jobs submitted to SLURM at once, unless --jobs says otherwise."""


def _jobs(text: str) -> int | None:
    from bigctl.errors import ConfigError

    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{text!r} is no number of jobs", where="--jobs", hint="give 1 or more, or auto")
    return int(text)


def _show(options: argparse.Namespace, plan: Plan, points: list[dict[str, str]] | None, path: Path) -> int:
    """Print what would be trained."""
    from bigctl.sweeps import sweep
    from bigctl.sweeps.trials import label, repeats_text

    searched, total = plan.space, sweep.count_points(plan)
    count = total * len(searched.repeats)
    if options.json:
        repeats = {"seeds": list(searched.seeds), "folds": list(searched.folds)}
        render.print_json({"sweep": str(path), "points": points, **repeats, "trials": count})
        return 0
    trials, counted = (f"{n} {what}{'s' * (n != 1)}" for n, what in ((count, "trial"), (total, "point")))
    each = repeats_text(max(1, len(searched.seeds)), len(searched.folds))
    print(f"{path}: {trials}: {counted}, {each}{' each' * (not each.endswith(' each'))}")
    for point in points or ():
        print(f"  {label(point) or 'the only point'}")
    if points is None:
        print(f"  as {plan.sweep.sampler} proposes them")
    return 0
