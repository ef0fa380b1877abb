"""Runs seen from outside, in whatever state they are: described and listed. Free of jax.

A run may have been killed at any moment, be written to right now, or be damaged; none of this may stop a listing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bigctl.errors import BigctlError, RunError
from bigctl.files import disk_size, read_regular
from bigctl.runs import directory, goodput, manifest, untrusted
from bigctl.runs.directory import RunDirectory
from bigctl.terminal import escaped

UNREADABLE = "unreadable"
STATUSES = (
    directory.RUNNING, directory.COMPLETE, directory.PARTIAL, directory.PREEMPTED, directory.FAILED,
    directory.DIVERGED, directory.NEW, UNREADABLE,
)  # fmt: skip
_TAIL = 1 << 16
_SOMEBODY = "another process"


@dataclass(frozen=True)
class Checkpoint:
    """One folder under checkpoints/; without all its manifests it is an unfinished save, which nothing loads."""

    path: Path
    step: int
    bytes: int
    committed: bool


@dataclass(frozen=True)
class Row:
    """One run in a table.

    Attributes:
        step: the last step known of, None where nothing tells.
        metric, value: what selects the best checkpoint, and its best value so far.
        active: when the run last wrote something [seconds since the epoch].
        message: why it failed, or why it cannot be read.
        goodput: share of its wall time in steps that counted; None where nothing tells.
    """

    name: str
    path: str
    status: str
    active: float
    recipe: str = ""
    step: int | None = None
    metric: str = ""
    value: float | None = None
    overrides: tuple[str, ...] = ()
    message: str = ""
    goodput: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def rows(root: Path, *, only: Callable[[Path], bool] = lambda folder: True) -> list[Row]:
    """All runs in a folder, the latest active first. Raises RunError where the folder itself cannot be read.

    Args:
        root: the folder; it need not be there.
        only: which of the folders in it are looked into.
    """
    try:
        folders = [Path(entry.path) for entry in os.scandir(root) if entry.is_dir()] if root.exists() else []
    except OSError as error:
        raise RunError(f"cannot be read: {error.strerror}", where=str(root)) from error
    found = [_listed(RunDirectory(f)) for f in folders if not f.name.startswith(".") and only(f)]
    return sorted(filter(None, found), key=lambda r: (-r.active, r.name))


def _listed(run: RunDirectory) -> Row | None:
    """The row of a folder, read once; None for what is no run, see `maybe_run`."""
    try:
        record = run.record() if run.exists else None
    except RunError:
        return row(run)
    if record is None:
        return row(run) if maybe_run(run.path) else None
    return row(run, record) if directory.is_record(record) else None


def row(run: RunDirectory, record: dict[str, Any] | None = None) -> Row:
    """One run, as far as it can be read; never raises for what is wrong with it. `record` is its run.json, if read."""
    name = run.path.name
    try:
        if record is None:
            record = run.record() if run.exists else {}
        if not record and lost_record(run.path, {entry.name for entry in os.scandir(run.path)}):
            raise directory.without_record(run.path)
        status = run.status(record)
        best = _summed_up(run) if status == directory.COMPLETE else None
        step, metric, value = best or _so_far(run)
        active = max(_modified(run.metrics), float(record.get("updated") or _modified(run.path)))
        overrides = tuple(str(o) for o in record.get("overrides") or ())
        return Row(
            name, str(run.path), status, active, str(record.get("recipe", "")), step, metric, value, overrides,
            str(record.get("message") or ""), None if (spent := goodput.of_run(run)) is None else spent.share,
        )  # fmt: skip
    except (BigctlError, OSError) as error:
        return Row(name, str(run.path), UNREADABLE, _modified(run.path), message=str(error))


def _summed_up(run: RunDirectory) -> tuple[int, str, float | None] | None:
    try:
        summary = run.summary()
        metric = str(summary.get("selected_by", ""))
        return int(summary["step"]), metric, summary["metrics"].get(metric)
    except (BigctlError, KeyError, TypeError, AttributeError):
        return None  # the checkpoints tell too


def _so_far(run: RunDirectory) -> tuple[int | None, str, float | None]:
    """(step, metric, its best value) of a run that has no summary, from its last metrics and its newest checkpoint."""
    progress = newest_progress(run)
    best = progress.get("best")
    metric = next((n for n, v in (progress.get("best_metrics") or {}).items() if best is not None and v == best), "")
    steps = [s for s in (progress.get("step"), _last_step(run.metrics)) if s is not None]
    return max(steps, default=None), metric, best


def newest_progress(run: RunDirectory) -> dict[str, Any]:
    """What the newest checkpoint whose meta.json is whole says of the training's progress; empty if there is none."""
    for saved in reversed(checkpoints(run, sizes=False)):
        if saved.committed:
            with contextlib.suppress(RunError, KeyError, TypeError):
                return dict(manifest.read_meta(saved.path)["progress"])
    return {}


def checkpoints(run: RunDirectory, *, sizes: bool = True) -> list[Checkpoint]:
    """The checkpoints on disk by step, unfinished saves among them; sizes [bytes] are 0 if not asked for."""
    if not run.checkpoints.is_dir():
        return []
    folders = sorted((p for p in run.checkpoints.iterdir() if manifest.is_step(p.name)), key=lambda p: int(p.name))
    return [Checkpoint(p, int(p.name), disk_size(p) if sizes else 0, manifest.committed(p)) for p in folders]


def _last_step(path: Path) -> int | None:
    """The step of the last whole line of metrics.jsonl."""
    with contextlib.suppress(OSError):
        for values in map(untrusted.metrics_line, reversed(read_regular(path, start=-_TAIL).split(b"\n"))):
            if values is not None:
                return int(values["step"])
    return None


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def holder(run: RunDirectory) -> str:
    """Which process holds the run, as it wrote into the lock."""
    with contextlib.suppress(OSError):
        text = read_regular(run.path / ".lock", most=4096).decode(errors="replace")
        return escaped(text[:200]).strip() or _SOMEBODY
    return _SOMEBODY


def maybe_run(folder: Path) -> bool:
    """Whether to list a folder: it has a record of a run or a damaged one, was killed before it had one, or cannot be
    seen into. A `.lock` or a `run.json` of somebody else's does not make a run."""
    try:
        names = {entry.name for entry in os.scandir(folder)}
    except OSError:
        return True
    if "run.json" not in names:
        return only_begun(folder, names) or lost_record(folder, names)
    run = RunDirectory(folder)
    try:
        return directory.is_record(run.record())
    except RunError:
        return run.exists  # to be listed as damaged


def only_begun(folder: Path, names: set[str]) -> bool:
    """Whether a run was killed there before it had a record."""
    ours = all(name in (".lock", "log.txt") or name.startswith(".run.json.") for name in names)
    return ours and directory.signed(folder)


def lost_record(folder: Path, names: set[str]) -> bool:
    """Whether a run was trained there and its run.json is gone."""
    return not names.isdisjoint(("config.yaml", "checkpoints")) and directory.signed(folder)
