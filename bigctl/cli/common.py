"""Flags that several commands share, and what they do with them. Nothing heavy at import."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from bigctl import imports

if TYPE_CHECKING:
    from bigctl.config.compose import Composed
    from bigctl.config.schema import Config
    from bigctl.inference.scored import Scored
    from bigctl.runs.gates import Verdict

Model = TypeVar("Model", bound="Scored")


def whole(what: str = "count", least: int = 0, most: int = 10**9) -> Callable[[str], int]:
    """Reads the whole number that a flag takes, for `type=`; what is none, or not within the bounds, is refused."""

    def number(text: str) -> int:
        if len(text) > 10 or not text.isdecimal() or not least <= int(text) <= most:
            within = f"{least} or more" if most == 10**9 else f"{least} to {most}"
            raise argparse.ArgumentTypeError(f"{text[:60]!r} is no {what}; give {within}")
        return int(text)

    return number


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """`key=value ...`, and where presets and components of the user's own come from."""
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="group=option or key=value, in Hydra's syntax"
    )
    add_sources(parser)


def add_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config-dir", action="append", type=Path, default=[], metavar="DIR", help="folder with presets of your own"
    )
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="MODULE", help="module with components of your own"
    )


def add_run_plugins(parser: argparse.ArgumentParser) -> None:
    """Modules for a run that was made with plugins: the run alone does not get them imported."""
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="MODULE", help="module with components that the run needs"
    )


def add_threshold(parser: argparse.ArgumentParser, *, objectives: bool = False) -> None:
    choose = "; or f1, accuracy, balanced_accuracy, 'precision>=P', 'recall>=R' to choose it on validation and keep it"
    parser.add_argument(
        "--threshold", metavar="T",
        help="of two classes, the probability from which on the positive one is predicted: a number, none, or a file "
        f"threshold.json{choose if objectives else ''}; default: that which is kept with the run",
    )  # fmt: skip


def add_confidence(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--calibration", action="store_true",
        help="fit a temperature to the probabilities on validation and keep it: predict then goes by it",
    )  # fmt: skip
    parser.add_argument(
        "--conformal", metavar="LEVEL",
        help="also give sets of classes that hold the true one in so many cases, such as 0.9: cut on validation, kept",
    )  # fmt: skip
    parser.add_argument(
        "--sets", metavar="KIND",
        help="of --conformal: split, adaptive (never empty) or class (for each class); default: split",
    )  # fmt: skip
    parser.add_argument(
        "--bootstrap", type=whole(least=10, most=100_000), metavar="ROUNDS",
        help="95%% intervals of the metrics, from so many draws of the examples, such as 1000",
    )  # fmt: skip


def add_passphrase(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--passphrase-file", type=Path, metavar="FILE",
        help="of an encrypted export, its first line; default: the environment variable BIGCTL_PASSPHRASE",
    )  # fmt: skip


def add_exported(parser: argparse.ArgumentParser) -> None:
    """What an export may need besides."""
    parser.add_argument(
        "--source", metavar="RUN",
        help="of an export: the run that it was made from; default: around its folder, or of that name under runs/",
    )  # fmt: skip
    add_passphrase(parser)


def passphrase(file: Path | None, folders: Iterable[str]) -> str | None:
    """The passphrase, where one of some folders is an encrypted export. Raises ConfigError where none is and a file is
    given, and as `sealed.passphrase` does."""
    from bigctl.errors import ConfigError
    from bigctl.inference.exporters import sealed
    from bigctl.runs import exports

    folders = list(folders)
    found = [(folder, exports.find(folder)) for folder in folders]
    if any(sealed.is_sealed(Path(folder) if export is None else export.path) for folder, export in found):
        return sealed.passphrase(file)
    if file is not None:
        hint = "leave it out, or give the folder that `bigctl export --encrypt` wrote"
        raise ConfigError(f"{', '.join(folders)}: no encrypted export", where="--passphrase-file", hint=hint)
    return None


def add_texts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text", action="append", default=[], metavar="STR", help="a text; may be given repeatedly")
    parser.add_argument(
        "--text-pair", action="append", default=[], metavar="STR",
        help="the second text, for a run on pairs; one to each --text",
    )  # fmt: skip


def add_tta(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tta", choices=("none", "mirror", "shift", "translate"),
        help="of images, the mean over which views of each is used; default: eval.tta of the run",
    )  # fmt: skip


def with_threshold(trained: Model, wanted: str | None) -> Model:
    """The model with the threshold that is asked for. Raises ConfigError where that cannot be used."""
    from bigctl.inference import threshold

    if wanted is None:
        return trained  # with the one that is kept
    found = threshold.parse(wanted)
    return trained.choose_threshold(found) if isinstance(found, str) else trained.with_threshold(found)


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print exactly one JSON object on stdout, also for an error"
    )


def add_gates(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--require", action="append", default=[], metavar="CONDITION",
        help="exit with 4 unless a metric satisfies this, such as 'val/accuracy>=0.97'; may be given again",
    )  # fmt: skip
    parser.add_argument(
        "--junit", type=Path, metavar="FILE", help="write a JUnit report, with a test case for each gate"
    )


def say_interrupted(options: argparse.Namespace) -> None:
    """What a command says that is ended on the spot, by a thread beside the one that works: past the streams that the
    latter may be writing to."""
    said = "stopped by Ctrl-C while starting; nothing was trained"
    os.write(2, f"bigctl: {said}\n".encode())
    if options.json:
        ending = {"status": "preempted", "exit_code": 130, "run": None, "message": said, "where": None, "hint": None}
        os.write(1, json.dumps(ending).encode() + b"\n")


def exit_code(verdicts: Iterable[Verdict]) -> int:
    """4 if a gate was missed, with a line on stderr for each; else 0."""
    missed = [verdict for verdict in verdicts if not verdict.passed]
    for verdict in missed:
        print(f"bigctl: {verdict}", file=sys.stderr)
    return 4 if missed else 0


def source_flags(options: argparse.Namespace) -> list[str]:
    """The flags of a command that say where its presets and components come from."""
    given = [("--config-dir", str(each)) for each in options.config_dir]
    return [word for pair in (*given, *(("--plugin", each) for each in options.plugin)) for word in pair]


def composed(options: argparse.Namespace, *, partial: bool = False) -> Composed:
    with imports.kept():
        from bigctl.config import compose, compose_many

    given = {"config_dirs": options.config_dir, "plugins": options.plugin}
    if partial:
        return compose.compose(options.overrides, **given, partial=True)
    return compose_many.compose_next(options.overrides, **given)


def composed_data(options: argparse.Namespace, command: str) -> Config:
    """A configuration of which nothing but `data` need be there; an override without "=" names it. `command` asks.

    Raises:
        ConfigError: if no data is chosen, or a key of it is missing.
    """
    from bigctl.config import checks

    options.overrides = [o if "=" in o or o.startswith("~") else f"data={o}" for o in options.overrides]
    config = composed(options, partial=True).config
    checks.require_data(config, f"bigctl {command} NAME, or recipe=NAME; `bigctl data` lists them")
    return config
