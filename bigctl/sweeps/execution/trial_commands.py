"""The commands that train trials: `bigctl train` for one, a job of `sweeps.packed` for several in one process."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bigctl.errors import TrainingFailed
from bigctl.files import write_json
from bigctl.sweeps.trials import Trial

UNTESTED = "eval.test=false"
"""Trials leave the test split alone: it is for the winner."""


def one(trial: Trial, run: Path, config_dirs: Sequence[Path], plugins: Sequence[str]) -> list[str]:
    """Train one trial in its run directory, or go on with it."""
    given = [word for folder in config_dirs for word in ("--config-dir", str(folder))]
    given += [word for module in plugins for word in ("--plugin", module)]
    words = ["train", *trial.overrides, UNTESTED, "--run-dir", str(run), "--quiet", *given]
    return [sys.executable, "-P", "-m", "bigctl", *words]


def pack(
    trials: Sequence[tuple[Trial, Path]], job: Path, mode: str, config_dirs: Sequence[Path], plugins: Sequence[str]
) -> list[str]:
    """Train several trials in one process.

    Args:
        trials: each with its run directory.
        job: where the file that tells of them is written; what was measured comes beside it, see `verdict`.
        mode: "auto" to measure first whether to take their steps together, "yes" to take them so.
        config_dirs, plugins: where presets and components of the user's own come from.

    Raises:
        TrainingFailed: if that file cannot be written.
    """
    content = {
        "trials": [{"id": t.id, "overrides": list(t.overrides), "run": str(run)} for t, run in trials],
        "config_dirs": [str(folder) for folder in config_dirs],
        "plugins": list(plugins),
        "mode": mode,
        "extra": [UNTESTED],
        "quiet": True,
    }
    try:
        for before in (verdict(job), job.with_suffix(".ends.json")):
            before.unlink(missing_ok=True)
        write_json(job, content)
    except OSError as error:
        raise TrainingFailed(f"cannot be written: {error.strerror}", where=str(job)) from error
    return [sys.executable, "-P", "-m", "bigctl.sweeps.packed.runner", str(job)]


def ends(job: Path) -> dict[str, str]:
    """{identity: why} of the trials that failed in the process of a pack, as far as it came to say so."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        found = json.loads(job.with_suffix(".ends.json").read_text(encoding="utf-8"))["trials"]
        return {name: str(end["message"]) for name, end in found.items() if end["status"] == "failed"}
    return {}


def verdict(job: Path) -> Path:
    """Where the process of a pack writes how it trains, and why."""
    return job.with_suffix(".verdict.json")
