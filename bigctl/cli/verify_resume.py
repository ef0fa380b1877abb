"""Crash test: a run that is killed repeatedly must end bit-equal to an uninterrupted one."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from bigctl.cli import common, render

EXAMPLES = """\
examples:
  bigctl verify-resume recipe=cnn_cls data=digits --steps 200
  bigctl verify-resume recipe=gpt_lm --steps 100 checkpoint.every=20 --kills 20 --seed 7
  bigctl verify-resume recipe=mlp_cls --report resume.json --keep crashes

The whole training runs at least twice: keep it short with --steps and frequent checkpoints.
exit codes: 0 bit-equal, 1 a run was lost or something differs, 2 usage or configuration
"""


OFTEN = "checkpoint.every=1 epoch"
"""By time there would be no checkpoint in so short a training, and kills would test starting anew alone."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_overrides(parser)
    parser.add_argument(
        "--steps", type=common.whole("count", 1), metavar="N", help="length of training; default: as configured"
    )
    parser.add_argument(
        "--kills", type=common.whole("count", 1), default=5, metavar="K", help="how many SIGKILLs; default: 5"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the moments of the kills; default: 0")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write every kill and every comparison as JSON")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the runs, in an empty or new folder")
    parser.add_argument("--quiet", action="store_true", help="no line for each kill on stderr")
    common.add_json(parser)


def run(options: argparse.Namespace) -> int:
    if options.steps is not None:
        options.overrides = [*options.overrides, f"train.steps={options.steps}"]
    if common.composed(options).config.checkpoint.every is None:  # errors in it are reported before anything starts
        options.overrides = [*options.overrides, OFTEN]
    if options.report is not None:
        _check_report(options.report)
    from bigctl.engine import crash_test

    def say(line: str) -> None:
        if not options.quiet:
            print(line, file=sys.stderr, flush=True)

    with _folder(options.keep) as folder, _ended_by_sigterm():
        test = crash_test.CrashTest(_train_arguments(options), folder, kills=options.kills, seed=options.seed, say=say)
        result = test.run()
    if options.report is not None:
        crash_test.write_report(result, options.report)
    if options.json:
        render.print_json(result.to_json())
    else:
        print("\n".join(crash_test.summary_lines(result)))
        if not result.ok:
            print(f"the runs are in {options.keep}" if options.keep else "--keep DIR keeps the runs for inspection")
    return 0 if result.ok else 1


def _train_arguments(options: argparse.Namespace) -> list[str]:
    arguments = list(options.overrides)
    for folder in options.config_dir:
        arguments += ["--config-dir", str(folder)]
    for module in options.plugin:
        arguments += ["--plugin", module]
    return arguments


def _check_report(path: Path) -> None:
    from bigctl.errors import ConfigError

    if path.is_dir():
        raise ConfigError("is a folder", where=str(path), hint="give --report a file")


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """Where the runs live: a temporary folder, or one to keep."""
    from bigctl.errors import ConfigError

    if keep is None:
        with tempfile.TemporaryDirectory(prefix="bigctl-crash-test-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
        return
    try:
        keep.mkdir(parents=True, exist_ok=True)
        empty = not any(keep.iterdir())
    except OSError as error:
        raise ConfigError(f"cannot be used: {error.strerror}", where=str(keep)) from error
    if not empty:
        raise ConfigError("is not empty", where=str(keep), hint="give --keep a new folder")
    yield keep


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that the child is ended too."""

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
