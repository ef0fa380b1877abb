"""List the runs in a folder; remove some, or prune those that are not needed."""

from __future__ import annotations

import argparse
import fnmatch
import re
import sys
import time
from pathlib import Path

from bigctl import formatting
from bigctl.cli import common, render
from bigctl.errors import BigctlError, ConfigError
from bigctl.files import disk_size
from bigctl.runs import listing, removal
from bigctl.runs.directory import ROOT, RunDirectory

EXAMPLES = """\
A FILTER is part of a run's name, recipe or overrides, with * and ? as wildcards.
prune takes failed and diverged runs unless --status says otherwise; a run in use is never taken, nor one
whose folder holds what bigctl did not write.

examples:
  bigctl runs                                            all runs, the latest first
  bigctl runs cnn --status complete --json
  bigctl runs rm runs/cnn_cls-1f3a
  bigctl runs prune --dry-run                            what would be removed
  bigctl runs prune --status failed,partial --older-than 7d --yes
  bigctl runs prune --keep-checkpoints best --yes        keep complete runs, drop most of their checkpoints
"""
USAGE = """\
bigctl runs [FILTER] [options]
       bigctl runs rm RUN... [--dry-run] [--yes]
       bigctl runs prune [FILTER] [options]"""
PRUNED = ("failed", "diverged")
_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = USAGE
    parser.add_argument("words", nargs="*", metavar="FILTER | rm RUN... | prune", help="which runs, or what to do")
    parser.add_argument("--root", type=Path, metavar="DIR", help="folder with the runs; default: runs")
    parser.add_argument("--status", metavar="STATUS,...", help="only runs of these statuses")
    parser.add_argument("--older-than", metavar="AGE", help="only runs not written to for this long, such as 12h or 7d")
    parser.add_argument(
        "--keep-checkpoints", choices=("last", "best", "none"),
        help="prune: keep complete runs, but drop all checkpoints except this one",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="rm, prune: say what would be removed, remove nothing")
    parser.add_argument("--yes", action="store_true", help="rm, prune: do not ask")
    common.add_json(parser)


def run(options: argparse.Namespace) -> int:
    if options.root is not None and not options.root.is_dir():
        raise ConfigError("is not a folder", where=f"--root {options.root}")
    root = options.root or ROOT
    action, words = "list", options.words
    if words[:1] in (["rm"], ["prune"]):
        action, words = words[0], words[1:]
    if action == "rm":
        return _rm(options, words, root)
    if len(words) > 1:
        raise ConfigError(f"{' '.join(words)!r} is more than one filter", hint="quote it, or use * between the parts")
    filter_by = words[0] if words else ""
    return _prune(options, filter_by, root) if action == "prune" else _list(options, filter_by, root)


# ----------------------------------------------------------------------------------------------------------- actions


def _list(options: argparse.Namespace, filter_by: str, root: Path) -> int:
    if options.keep_checkpoints or options.dry_run or options.yes:
        raise ConfigError("these flags are for `runs rm` and `runs prune`", hint="`bigctl runs prune ...`")
    found = _selected(options, filter_by, root, statuses=None)
    if options.json:
        render.print_json({"root": str(root), "runs": [row.to_json() for row in found]})
        return 0
    if not found:
        print(f"no runs under {root}" + (" match" if filter_by or options.status or options.older_than else ""))
        return 0
    table = []
    for row in found:
        best = f"{row.metric} {row.value:.4f}".strip() if row.value is not None else ""
        step = "" if row.step is None else f"{row.step:,}"
        note = row.message.splitlines()[0] if row.message and row.status != "complete" else ""
        note = note.removeprefix(f"{row.path}/").removeprefix(f"{row.path}: ")
        spent = "" if row.goodput is None else f"{row.goodput:.0%}"
        table.append((row.name, row.status, row.recipe, step, best, spent, formatting.age(row.active), note))
    render.print_table(("name", "status", "recipe", "step", "best", "goodput", "age", ""), table)
    return 0


def _rm(options: argparse.Namespace, names: list[str], root: Path) -> int:
    if not names:
        raise ConfigError("no run is named", hint="bigctl runs rm RUN...")
    if options.status or options.older_than or options.keep_checkpoints:
        raise ConfigError("rm takes names only", hint="`bigctl runs prune` selects by status and age")
    runs = {run.path.resolve(): run for run in [removal.find(name, root) for name in names]}  # all, before any goes
    return _take(options, {str(run.path): disk_size(run.path) for run in runs.values()}, None)


def _prune(options: argparse.Namespace, filter_by: str, root: Path) -> int:
    keep = options.keep_checkpoints
    if keep and options.status not in (None, "complete"):
        raise ConfigError(
            f"--keep-checkpoints is for complete runs, not {options.status}", hint="leave --status out with it"
        )
    statuses = ("complete",) if keep else PRUNED
    found = [r for r in _selected(options, filter_by, root, statuses=statuses) if r.status != "running"]
    runs = [RunDirectory(Path(row.path)) for row in found]
    if not keep:
        return _take(options, {str(run.path): disk_size(run.path) for run in runs}, None)
    sizes = {str(run.path): sum(c.bytes for c in removal.superfluous(run, keep)) for run in runs}
    return _take(options, {path: size for path, size in sizes.items() if size}, keep)


def _take(options: argparse.Namespace, sizes: dict[str, int], keep: str | None) -> int:
    """Show what will be removed, ask, remove it, and report what was freed. A run taken into use meanwhile is kept."""
    what = f"all checkpoints but the {keep} of" if keep and keep != "none" else "the checkpoints of" if keep else ""
    for path, size in sizes.items():
        print(f"{what} {path}  {formatting.size(size)}".strip(), file=sys.stderr if options.json else sys.stdout)
    freed: dict[str, int] = {}
    if sizes and not options.dry_run:
        _confirm(options, len(sizes))
        for path in sizes:
            run = RunDirectory(Path(path))
            try:
                freed[path] = removal.drop_checkpoints(run, keep) if keep else removal.remove(run)
            except BigctlError as error:
                print(f"bigctl: passed over: {error}", file=sys.stderr)
    if options.json:
        entries = [
            {"run": path, "bytes": freed.get(path, size), "removed": path in freed} for path, size in sizes.items()
        ]
        render.print_json({"runs": entries, "freed_bytes": sum(freed.values()), "dry_run": options.dry_run})
    elif options.dry_run:
        print(f"would free {formatting.size(sum(sizes.values()))} in {len(sizes)} runs; nothing was removed")
    elif not sizes:
        print("nothing to remove; --status says which runs are meant, failed and diverged ones if not given")
    else:
        print(f"freed {formatting.size(sum(freed.values()))} in {len(freed)} of {len(sizes)} runs")
    return 0 if options.dry_run or len(freed) == len(sizes) else 1


def _confirm(options: argparse.Namespace, count: int) -> None:
    if options.yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError("nothing was removed: nobody is there to ask", hint="add --yes")
    print(f"remove from {count} runs? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise ConfigError("nothing was removed")


# --------------------------------------------------------------------------------------------------------- selection


def _selected(
    options: argparse.Namespace, filter_by: str, root: Path, statuses: tuple[str, ...] | None
) -> list[listing.Row]:
    if options.status:
        statuses = tuple(part.strip() for part in options.status.split(","))
        for status in statuses:
            if status not in listing.STATUSES:
                raise ConfigError(
                    f"there is no status {status!r}", where="--status", hint=f"of: {', '.join(listing.STATUSES)}"
                )
    before = time.time() - seconds(options.older_than) if options.older_than else float("inf")
    pattern = f"*{filter_by}*"
    return [
        row
        for row in listing.rows(root)
        if (statuses is None or row.status in statuses)
        and row.active <= before
        and any(fnmatch.fnmatch(text, pattern) for text in (row.name, row.recipe, *row.overrides))
    ]


def seconds(age: str) -> float:
    """Seconds in an age such as 30min, 12h, 7d or 2w. Raises ConfigError if it is none."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|min|h|d|w)", age.strip())
    if not match:
        raise ConfigError(f"{age!r} is no age", where="--older-than", hint="write 30min, 12h, 7d or 2w")
    return float(match[1]) * _UNITS[match[2]]
