"""`bigctl train --find-lr`: a learning rate from a short test, which leaves a picture and no run."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bigctl.cli import common, render

if TYPE_CHECKING:
    from bigctl.engine.lr_finder import Found

ROOT = Path("lr_finder")
_WIDTH = 60


def run(options: argparse.Namespace) -> int:
    from bigctl.errors import RunError, TrainingFailed
    from bigctl.files import write_json
    from bigctl.runs import directory

    _reject_flags(options)
    composed = common.composed(options)
    folder = options.run_dir
    if folder is None:
        folder = ROOT / directory.choose(composed.overrides, name=options.name, run_dir=None, fresh=False).name
    if (folder / "run.json").exists():
        raise RunError("holds a run, which --find-lr leaves alone", where=str(folder), hint="choose another folder")
    from bigctl.engine import batch_size, lr_finder

    if not options.quiet:
        span = f"{lr_finder.STEPS} steps, from {lr_finder.LOW:g} to {lr_finder.HIGH:g}"
        print(f"trying learning rates: {span}; no run is made", file=sys.stderr)
    config, measured = batch_size.settled(composed.config)
    if measured is not None:
        others = [each for each in options.overrides if not each.lstrip("+").startswith(f"{batch_size.KEY}=")]
        options.overrides = [*others, f"{batch_size.KEY}={measured.size}"]
        if not options.quiet:
            print(measured.sentence.partition("; optimizer.lr")[0], file=sys.stderr)
    found = lr_finder.find(config)
    from bigctl.reports import png

    picture = folder / "lr.png" if png.missing() is None else None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "lr.json", found.to_json())
        if picture is not None:
            png.of_rates(found, picture)
    except OSError as error:
        where = str(error.filename or folder)
        raise RunError(f"cannot be written: {error.strerror}", where=where, hint="choose another --run-dir") from error
    if options.json:
        said = {"folder": str(folder), "picture": picture and str(picture)}
        override = None if found.suggestion is None else _override(found)
        render.print_json({**found.to_json(), "override": override, **said})
        return 0 if override else 1
    if found.suggestion is None:
        print(f"the loss by learning rate: {picture or folder / 'lr.json'}")
        raise TrainingFailed(
            f"no learning rate from {lr_finder.LOW:g} to {found.rates[-1]:.2g} lowers the loss in so few steps",
            where="--find-lr", hint="a larger train.batch_size makes the loss scatter less",
        )  # fmt: skip
    _print(options, found, picture, folder)
    return 0


def _reject_flags(options: argparse.Namespace) -> None:
    """Refuse what is said of a run, which there will be none of. Raises ConfigError."""
    from bigctl.errors import ConfigError

    given = {
        "--resume": options.resume != "auto",
        "--dry-run": options.dry_run,
        "--baseline": options.baseline,
        "--profile": options.profile,
        "--allow-drift": options.allow_drift,
        "--require": options.require,
        "--junit": options.junit,
    }
    for flag, is_given in given.items():
        if is_given:
            message, hint = f"--find-lr makes no run, which {flag} is about", "leave one of them out"
            raise ConfigError(message, where=flag, hint=hint)


def _override(found: Found) -> str:
    return f"optimizer.lr={found.suggestion:g}"


def _print(options: argparse.Namespace, found: Found, picture: Path | None, folder: Path) -> None:
    from bigctl.sweeps.view.table_view import sparkline

    end = "" if found.diverged is None else f", diverges at {found.diverged:g}"
    render.print_wrapped(f"{_override(found)}: there the loss falls fastest; it is lowest at {found.lowest:g}{end}")
    most = max(found.smoothed[: len(found.smoothed) // 2 + 1])  # what diverges would hide the rest
    curve = sparkline([min(loss, most) for loss in found.smoothed], _WIDTH)
    print(f"  {found.rates[0]:g} {curve} {found.rates[-1]:.2g}")
    if picture is None:
        render.print_wrapped(f"  {folder / 'lr.json'}; a picture needs matplotlib: pip install 'bigctl[report]'")
    else:
        print(f"  {picture}")
    others = [o for o in options.overrides if not o.lstrip("+").startswith("optimizer.lr=")]
    name = ["--name", options.name] if options.name else []
    print("next:")
    print(f"  {shlex.join(['bigctl', 'train', *others, _override(found), *common.source_flags(options), *name])}")
