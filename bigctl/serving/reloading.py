"""Runs that are trained on while they are served: a new best checkpoint takes the place of the old one.

A checkpoint counts once its manifest is there, which is written last, so a look never sees half of one. The new weights
are read, checked and tried beside the old ones, which answer until then; between two batches they change places.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from bigctl import memory
from bigctl.errors import BigctlError, RunError
from bigctl.formatting import size
from bigctl.inference.trained import TrainedRun
from bigctl.runs import manifest
from bigctl.runs.directory import RunDirectory
from bigctl.serving import log
from bigctl.training.checkpoints.store import Checkpoints

SMALLER = "end other programs, serve it on another machine, or make it smaller: bigctl compress"
Model = TypeVar("Model")
State = tuple[int, tuple[int, ...]]
"""The step that is to be served, and when the files that belong to it were written [ns]."""


def state(run: RunDirectory, step: str) -> State | None:
    """What is there to be served; None where that cannot be seen, as of a run that was removed."""
    checkpoints = Checkpoints(run.checkpoints, warn=lambda text: None)
    try:
        best = checkpoints.best_step() if step == "best" else None
        found = best if best is not None else max(checkpoints.steps())
        files = (run.checkpoints / f"{found:09d}" / manifest.MANIFEST, run.threshold, run.confidence)
        return found, tuple(file.stat().st_mtime_ns if file.is_file() else 0 for file in files)
    except (BigctlError, OSError, ValueError, KeyError, TypeError):
        return None


class Follower(Generic[Model]):
    """What follows one run.

    Args:
        name: of the model.
        trained: what was loaded first.
        step: "best" or "last".
        seen: the state of the run before that was loaded.
        plugins: modules with its components.
        made: weights -> what serves them, ready.

    Attributes:
        reloads, failures: how often new weights were taken, and how often they could not be.
    """

    def __init__(
        self, name: str, trained: TrainedRun, step: str, seen: State | None, plugins: Sequence[str] | None,
        made: Callable[[TrainedRun], Model],
    ):  # fmt: skip
        self.name, self._trained, self._step, self._seen = name, trained, step, seen
        self._plugins, self._made = plugins, made
        self._known = _what(trained.run)
        self.reloads = self.failures = 0

    def look(self) -> Model | None:
        """What serves new weights; None where there are none, or they cannot be read, which the log says once."""
        run = self._trained.run
        found = state(run, self._step)
        if found is None or found == self._seen:
            return None
        self._seen = found
        try:
            trained = self._read(run)
            made = self._made(trained)
        except Exception as error:
            self.failures += 1
            told = error.message if isinstance(error, BigctlError) else str(error)
            kept = f"step {self._trained.step} is served on"
            log.write(level="warning", event="reload", model=self.name, step=found[0], error=told[:500], kept=kept)
            return None
        log.write(level="info", event="reload", model=self.name, step=trained.step, before=self._trained.step)
        self._trained = trained
        self.reloads += 1
        return made

    def _read(self, run: RunDirectory) -> TrainedRun:
        require_memory(run.checkpoints, memory.available())
        if (known := _what(run)) == self._known:
            return self._trained.at(self._step)
        trained = TrainedRun.load(str(run.path), step=self._step, plugins=self._plugins)
        if trained.features.kind != self._trained.features.kind:
            raise RunError("the run is of another kind now", where=str(run.path))
        self._known = known
        return trained


def _what(run: RunDirectory) -> tuple[str, str]:
    """What the programs of a run are made from; as long as it stays, only the weights are others."""
    return run.read_config(), json.dumps(run.record().get("data", {}).get("features"), sort_keys=True)


def require_memory(checkpoints: Path, free: int) -> None:
    """Raises RunError where a checkpoint takes more bytes than are free: better than to be killed in the middle."""
    for step in reversed(manifest.steps(checkpoints)):
        require_room(checkpoints / f"{step:09d}", free, what="a checkpoint", where=checkpoints.parent)
        return


def require_room(path: Path, free: int, *, what: str = "the model", where: Path | None = None) -> None:
    """Raises RunError where what lies in a folder takes more bytes than are free."""
    files = [path] if path.is_file() else path.rglob("*")
    taken = sum(file.stat().st_size for file in files if file.is_file())
    if taken > free:
        said = f"{what} takes {size(taken)} of memory, and {size(free)} are free"
        raise RunError(said, where=str(where or path), hint=SMALLER)
