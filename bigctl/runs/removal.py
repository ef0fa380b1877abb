"""Runs and checkpoints removed: only what is surely a run, and only while its lock is held. Free of jax."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from bigctl.errors import RunError, RunHeld
from bigctl.files import disk_size
from bigctl.runs import listing, manifest
from bigctl.runs.directory import RunDirectory


def find(name: str, root: Path) -> RunDirectory:
    """The run to remove: a name under the root, or a folder.

    Raises:
        RunError: if there is none, or the folder is not a run: then nothing in it may be deleted.
        RunHeld: if a process is using it.
    """
    for path in (root / name, Path(name)):
        if path.is_dir():
            run = RunDirectory(path)
            _check_removable(run)
            return run
    import difflib

    close = difflib.get_close_matches(Path(name).name, [r.name for r in listing.rows(root)], n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "`bigctl runs` lists the runs"
    raise RunError("there is no such run", where=name, hint=hint)


def remove(run: RunDirectory) -> int:
    """Delete a whole run; gives the bytes freed. Raises as `find` does."""
    _check_removable(run)
    with _locked(run):
        freed = disk_size(run.path)
        shutil.rmtree(run.path.resolve())
    return freed


def superfluous(run: RunDirectory, keep: str) -> list[listing.Checkpoint]:
    """The checkpoints that are neither the "last" nor the "best", whichever is to be kept; all of them for "none"."""
    saved = listing.checkpoints(run)
    whole = [c for c in saved if c.committed]
    best = listing.newest_progress(run).get("best_step")
    kept = {"none": [], "last": whole[-1:], "best": [c for c in whole if c.step == best] or whole[-1:]}[keep]
    return [c for c in saved if c not in kept]


def drop_checkpoints(run: RunDirectory, keep: str) -> int:
    """Delete the superfluous checkpoints of a run; gives the bytes freed.

    Raises:
        RunHeld: if a process is using it.
        RunError: if the one to keep is damaged: then the others are needed.
    """
    freed = 0
    with _locked(run):
        dropped = superfluous(run, keep)
        for saved in listing.checkpoints(run, sizes=False):
            if saved.committed and saved.step not in [c.step for c in dropped]:
                manifest.verify(saved.path)
        for saved in dropped:
            manifest.remove(saved.path)
            freed += saved.bytes
    return freed


def _check_removable(run: RunDirectory) -> None:
    if run.path.is_symlink():
        raise RunError("is a link", where=str(run.path), hint=f"name the folder itself: {run.path.resolve()}")
    if not _surely_run(run.path):
        raise RunError("is not a run; nothing was removed", where=str(run.path), hint="`bigctl runs` lists the runs")
    if run.held():
        raise RunHeld(f"is in use by {listing.holder(run)}", where=str(run.path), hint="stop it first")


@contextlib.contextmanager
def _locked(run: RunDirectory) -> Iterator[None]:
    run.lock()
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot be removed: {error.strerror}", where=str(error.filename or run.path)) from error
    finally:
        run.release()


def _surely_run(folder: Path) -> bool:
    """Whether a folder is a run by its record or its lock, and not a project of the user's that has a run.json."""
    names = {entry.name for entry in os.scandir(folder)} if os.access(folder, os.R_OK | os.X_OK) else set()
    if "run.json" not in names or ".lock" in names:
        return "run.json" in names or listing.only_begun(names)
    with contextlib.suppress(RunError):
        return {"schema", "status"} <= RunDirectory(folder).record().keys()
    return False
