"""The commands that train trials: `bigctl train` for one, a job of `sweeps.packed` for several in one process."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from bigctl.errors import TrainingFailed
from bigctl.files import write_json
from bigctl.runs import untrusted
from bigctl.sweeps.trials import Trial

UNTESTED = "eval.test=false"
"""Trials do not score the test split: only the winner does."""


def single(trial: Trial, run: Path, config_dirs: Sequence[Path], plugins: Sequence[str]) -> list[str]:
    """The command that trains or resumes one trial in its run directory."""
    given = [word for folder in config_dirs for word in ("--config-dir", str(folder))]
    given += [word for module in plugins for word in ("--plugin", module)]
    words = ["train", *trial.overrides, UNTESTED, "--run-dir", str(run), "--quiet", *given]
    return [sys.executable, "-P", "-m", "bigctl", *words]


def pack(
    trials: Sequence[tuple[Trial, Path]], job: Path, mode: str, config_dirs: Sequence[Path], plugins: Sequence[str]
) -> list[str]:
    """The command that trains several trials in one process; writes its job file.

    Args:
        trials: each with its run directory.
        job: the job file to write; measurements are written beside it, see `verdict`.
        mode: "auto" to measure first whether packing pays, "yes" to pack.
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


def ends(job: Path) -> dict[str, tuple[str, int]]:
    """{identity: (cause, exit code)} of the trials that failed in the process of a pack, as far as it could record
    them."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        found = untrusted.read(job.with_suffix(".ends.json"))["trials"]
        return {
            name: (str(end["message"]), int(end["exit_code"]))
            for name, end in found.items()
            if end["status"] == "failed"
        }
    return {}


def verdict(job: Path) -> Path:
    """The file in which the process of a pack records how it trains, and why."""
    return job.with_suffix(".verdict.json")
