"""`train` and `resume` with --elastic: this process starts the one that trains, again and again."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from bigctl.config import compose as composing
from bigctl.config import drift
from bigctl.config.schema import Config
from bigctl.engine import open_run
from bigctl.engine.elastic import Agent, Size
from bigctl.errors import ConfigError
from bigctl.parallel import cluster
from bigctl.runs import directory
from bigctl.runs.directory import RunDirectory
from bigctl.training.signals import StopRequest

_OWN = ("--elastic", "--restarts")


def run(options: argparse.Namespace, config: Config, path: Path) -> int | None:
    """The exit code of the run; None where it is complete, and this process alone can say so.

    Raises:
        ConfigError: for flags that do not go together.
    """
    size = Size.parse(options.elastic)
    if getattr(options, "resume", "auto") == "never":
        raise ConfigError("--elastic goes on with the run that is there, --resume never does not", where="--resume")
    if options.restarts < 0:
        raise ConfigError(f"cannot be {options.restarts}", where="--restarts", hint="0 or more")
    options.run_dir = path
    if _is_complete(RunDirectory(path), config):
        os.environ[cluster.COUNT] = "1"
        return None
    with StopRequest() as stop:
        if (minutes := config.train.max_minutes) is not None:
            stop.at(options.began + 60 * minutes, f"train.max_minutes={minutes:g}")
        command = [sys.executable, "-P", "-m", "bigctl", *_without_own(options.argv[1:])]
        say = (lambda line: None) if options.quiet else (lambda line: print(line, file=sys.stderr, flush=True))
        return Agent(command, config, path, size, restarts=options.restarts, stop=stop, say=say).run()


def _is_complete(run: RunDirectory, config: Config) -> bool:
    if not run.exists or run.status() != directory.COMPLETE or not run.config.exists():
        return False
    saved = composing.from_yaml(run.read_config(), where=str(run.config))
    return not drift.changes(saved, open_run.keep_decided(saved, config))


def _without_own(arguments: list[str]) -> list[str]:
    """The command line without the flags of this file."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and not argument.startswith(tuple(f"{name}=" for name in _OWN)) and argument not in _OWN:
            kept.append(argument)
        skip = not skip and argument in _OWN
    return kept
