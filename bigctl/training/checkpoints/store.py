"""Checkpoints: Orbax behind one door.

A checkpoint is a folder `checkpoints/<step>/` with `state/` (written by Orbax, asynchronously), `meta.json` (progress,
metrics, what the state belongs to) and, written last, the manifests with the size and sha256 of every file (see
`runs.manifest`). They are made by a thread of its own, so that neither writing nor hashing holds up training. Only
what still matches its manifest is loaded, or counts when older checkpoints are deleted.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import errno
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigctl import imports
from bigctl.errors import RunError, TrainingFailed
from bigctl.files import write_json
from bigctl.parallel.distributed import SINGLE_PROCESS, SingleProcess
from bigctl.runs import logs, manifest
from bigctl.training import phases
from bigctl.training.checkpoints import arrays, late_answers
from bigctl.training.state import Progress, TrainState, Weights

if TYPE_CHECKING:
    from orbax.checkpoint import AsyncCheckpointer

log = logging.getLogger("bigctl.checkpoint")

SCHEMA = 1

_BEGINNING = threading.Lock()
"""Held where a save begins: Orbax tells what belongs to it by a number of the process, which the next one raises. What
follows, in the background, keeps its own."""


def say(text: str) -> None:
    """A warning for the user, on stderr also where progress is not wanted, and in log.txt."""
    log.info("warning: %s", text)
    print(f"bigctl: warning: {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Saved:
    """A committed checkpoint: its folder and its meta.json."""

    path: Path
    meta: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.meta["step"])

    @property
    def progress(self) -> Progress:
        return Progress.from_json(self.meta["progress"])


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: `checkpoints/` of the run.
        keep: how many of the latest to keep; the best is kept besides.
        best: whether to keep the best one, which its `progress.best_step` names.
        on_failure: "stop" training when a save fails, or "warn" and go on; the last save of all must succeed.
        group: the processes that save together into one folder, and read together.
        warn: told what the user has to know.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int = 2,
        best: bool = True,
        on_failure: str = "stop",
        group: SingleProcess = SINGLE_PROCESS,
        warn: Callable[[str], None] = say,
    ):
        self.folder = folder
        self.keep = keep
        self.best = best
        self.on_failure = on_failure if group.count == 1 else "stop"  # the others may be waiting in the middle of it
        self.group = group
        self.warn = warn
        self._checkpointer: AsyncCheckpointer | None = None
        self._thread: threading.Thread | None = None
        self._failure: TrainingFailed | None = None
        logs.show_warnings()
        self._good: dict[int, bool] = {}  # what this process knows of a step: it wrote or read every byte of it
        self._told: set[str] = set()
        self._abandoned: set[Path] = set()  # saves that failed
        self._saves = 0
        self._began = 0.0
        self.seconds = 0.0
        """From the beginning of the last save until it was committed."""

    # ------------------------------------------------------------------------------------------------------- writing

    def save(self, state: TrainState, progress: Progress, meta: dict[str, Any]) -> None:
        """Begin to save; returns once the state is copied off the devices' way.

        Raises:
            TrainingFailed: if it cannot be begun, or the save before this one failed, unless `on_failure` is "warn".
        """
        self.wait()
        self._began = time.monotonic()
        target = self._path(progress.step)
        content = {"schema": SCHEMA, "step": progress.step, "progress": progress.to_json(), **meta}
        tree = arrays.flatten(state)

        def begin() -> bool:
            if manifest.committed(target):
                return False  # the same step, saved before: by the same run it is the same state
            manifest.begin(target)
            write_json(target / manifest.META, content)
            arrays.require_space(target, tree)
            return True

        phases.saving(1)
        try:
            if not self.group.first(begin):
                self._abandoned.discard(target)
                phases.saving(-1)
                return
            with _BEGINNING:
                self._orbax().save(target.resolve() / "state", args=arrays.save_args(tree))
        except Exception as error:
            self._failure = self._failed(target, error)
            phases.saving(-1)
            if self.on_failure == "stop":
                self.wait()
            return
        self._thread = threading.Thread(
            target=contextvars.copy_context().run,  # so that its log is that of this run
            args=(self._finish, target, progress.best_step, progress.anchors),
            name="checkpoint-commit",
            daemon=True,
        )
        self._thread.start()

    def prepare(self) -> None:
        """Import what a save needs: one that is asked for by SIGTERM has little time."""
        self._orbax()

    def wait(self, *, last: bool = False) -> None:
        """Until the last save is committed.

        Raises:
            TrainingFailed: if it could not be, and `on_failure` is "stop" or no other save follows this `last` one.
        """
        self.join()
        failure, self._failure = self._failure, None
        if failure is not None and (last or self.on_failure == "stop"):
            raise failure
        if failure is not None:
            self.warn(f"{failure.where}: {failure.message}; training goes on (checkpoint.on_failure=warn)")

    def join(self) -> None:
        """Until the last save has ended, well or not."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        self.wait()
        if self._checkpointer is not None:
            self._checkpointer.close()
            self._checkpointer = None

    def _finish(self, target: Path, best_step: int | None, anchors: Sequence[int]) -> None:
        self._commit(target, best_step, anchors)
        self.seconds = time.monotonic() - self._began
        phases.saving(-1)

    def _commit(self, target: Path, best_step: int | None, anchors: Sequence[int]) -> None:
        try:
            self._orbax().wait_until_finished()
            manifest.write_manifest(target, process=self.group.index, processes=self.group.count)
            self._saves += 1
            self.group.barrier(f"save {self._saves}")
            if self.group.leads:
                manifest.settle(target)
        except BaseException as error:
            self._failure = self._failed(target, error)
            return
        self._good[int(target.name)] = True
        if self.group.leads:
            try:
                self._retain(best_step, anchors)
            except (OSError, RunError) as error:  # too much is kept, nothing is lost
                self.warn(f"older checkpoints could not be deleted: {error}")

    def _retain(self, best_step: int | None, anchors: Sequence[int]) -> None:
        """Delete what is neither among the latest `keep` nor the best, nor what a rewind needs. Only what this process
        has written, or has read and found whole, counts as kept: an older checkpoint goes when all of those are known
        to be good."""
        for folder in filter(manifest.interrupted, self._abandoned):  # by now nothing is at writing there
            with contextlib.suppress(OSError):
                manifest.remove(folder)
        self._abandoned.clear()
        steps, wanted = self.steps(), set(anchors)
        if self.best and best_step is not None:
            wanted.add(best_step)
        kept: list[int] = []
        for step in reversed(steps):
            manifest.settle(self._path(step))
            if len(kept) < self.keep and self._is_good(step):
                kept.append(step)
        if len(kept) < self.keep:
            return
        for step in steps:
            if step < kept[-1] and step not in wanted:
                manifest.remove(self._path(step))
        for folder in sorted(self.folder.glob(f"[0-9]*{manifest.SET_ASIDE}")):
            if int(folder.name.partition(".")[0]) <= kept[0]:  # training has come there again
                manifest.remove(folder)

    def _is_good(self, step: int) -> bool:
        if step not in self._good:
            try:
                manifest.verify_checkpoint(self._path(step))
                self._good[step] = True
            except RunError as error:
                self._good[step] = False
                self._tell(error)
        return self._good[step]

    def _failed(self, target: Path, error: BaseException) -> TrainingFailed:
        log.error("checkpoint %s failed", target, exc_info=error)
        self._checkpointer = None  # it may be in no state to be used again
        self._abandoned.add(target)
        for folder in self._abandoned if self.group.leads else ():
            with contextlib.suppress(OSError):
                manifest.abandon(folder)
        previous = []
        with contextlib.suppress(RunError):
            previous = self.steps()
        kept = f"the one of step {previous[-1]} is kept" if previous else "there is none before it"
        reason = getattr(error, "strerror", None) or (str(error).strip().splitlines() or [repr(error)])[0][:200]
        for code in (errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.EIO, errno.EDQUOT, errno.EACCES):
            if os.strerror(code) in str(error):  # from deep below, with everything on the way there
                reason = os.strerror(code)
        return TrainingFailed(
            f"checkpoint of step {int(target.name)} could not be written: {_plainly(reason)}; {kept}",
            where=str(self.folder),
            hint=f"{'free some space' if 'space' in reason else 'mend that'}, then run the same command again",
        )

    def _orbax(self) -> AsyncCheckpointer:
        if self._checkpointer is None:
            with imports.kept():
                import orbax.checkpoint as ocp

            logging.getLogger("absl").setLevel(logging.CRITICAL)  # failures are logged here, once
            late_answers.ignore()
            handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True)
            self._checkpointer = ocp.AsyncCheckpointer(handler)
        return self._checkpointer

    # ------------------------------------------------------------------------------------------------------- reading

    def steps(self) -> list[int]:
        """Steps of all checkpoints, damaged ones among them, ascending. Raises RunError if that cannot be seen."""
        return manifest.steps(self.folder)

    def has_best(self) -> bool:
        return self.best_step() is not None

    def find(self, which: str | int = "last") -> Saved:
        """A verified checkpoint: "last" (the newest that is whole), "best", or of a step.

        Raises:
            RunError: if there is none, naming the files that are damaged where that is why.
        """
        return self.group.first(
            lambda: self._find(which),
            pack=lambda saved: saved.step,
            unpack=lambda step: Saved(self._path(step), manifest.read_meta(self._path(step))),
        )

    def _find(self, which: str | int) -> Saved:
        steps = self.steps()
        if which == "best":
            wanted = [s for s in [self.best_step()] if s is not None]
        elif which == "last":
            wanted = list(reversed(steps))
        else:
            wanted = [int(which)] if int(which) in steps else []
        problems = []
        for step in wanted:
            try:
                content = manifest.verify_checkpoint(self._path(step))
            except RunError as error:
                self._good[step] = False
                problems.append(error)
                continue
            for problem in problems:
                self._tell(problem, f"; the checkpoint of step {step} is used instead")
            self._good[step] = True
            return Saved(self._path(step), content)
        present = ", ".join(str(step) for step in steps) or "none"
        if not problems:
            raise RunError(f"there is no checkpoint {which!r}", where=str(self.folder), hint=f"checkpoints: {present}")
        damaged = "; ".join(map(_named, problems))
        if which == "last":
            raise RunError(
                f"no checkpoint is whole: {damaged}",
                where=str(self.folder),
                hint="nothing was deleted: bring the files back from a copy, or train again with another --name",
            )
        others = ", ".join(str(step) for step in steps if step not in wanted)
        raise RunError(damaged, hint=f"give another step: {others}" if others else "bring it back from a copy")

    def without_lost_best(self, progress: Progress) -> Progress:
        """Progress to go on with: where the best checkpoint so far is lost or damaged, which the user is told, another
        one has to become the best."""
        best = progress.best_step
        if not self.best or best is None or (best in self.steps() and self._is_good(best)):
            return progress
        self.warn(f"the best checkpoint, of step {best}, is lost; the best from here on takes its place")
        return dataclasses.replace(progress, best=None, best_step=None, best_metrics={})

    def best_step(self) -> int | None:
        """The best step by the newest checkpoint that can tell; None where there is no checkpoint of it."""
        steps = self.steps()
        for step in reversed(steps):
            try:
                best = manifest.read_meta(self._path(step))["progress"]["best_step"]
            except RunError as error:
                self._tell(error, "; the checkpoint before it tells which is the best")
                continue
            return best if best in steps else None
        return None

    def _tell(self, error: RunError, consequence: str = "") -> None:
        """That a checkpoint is damaged, once."""
        if str(error.where) not in self._told:
            self._told.add(str(error.where))
            self.warn(f"{_named(error)}{consequence}")

    def _path(self, step: int) -> Path:
        return self.folder / f"{step:09d}"

    def restore(self, saved: Saved, abstract: TrainState) -> TrainState:
        """The state of a checkpoint, placed as `abstract` (ShapeDtypeStructs with shardings) says.

        The anomaly state of another `train.divergence` than it was saved with begins anew.

        Raises:
            RunError: if its arrays do not fit.
        """
        return arrays.restore(self._orbax(), saved.path, saved.meta["shapes"], abstract)

    def restore_weights(self, saved: Saved, abstract: Weights, *, averaged: bool) -> Weights:
        """The weights of a checkpoint and nothing else, placed as `abstract` says; with `averaged` the averaged ones.

        Raises:
            RunError: if its arrays do not fit.
        """
        return arrays.restore_weights(self._orbax(), saved.path, saved.meta["shapes"], abstract, averaged=averaged)

    def clean(self, *, after: int | None = None) -> None:
        """Remove what interrupted saves have left behind. With `after`, the step that training goes on from, also set
        aside all that is newer: those folders stay, under another name, until training has come there again."""
        if not self.folder.is_dir() or not self.group.leads:
            return
        for folder in sorted(self.folder.iterdir()):
            step = int(folder.name) if manifest.is_step(folder.name) else None
            try:
                if folder in self._abandoned:  # something may still be at writing there: its mark has to stay
                    manifest.abandon(folder)
                elif folder.name.endswith(manifest.REMOVED) or (step is not None and manifest.interrupted(folder)):
                    log.info("removing %s, which was cut off", folder)
                    manifest.remove(folder)
                elif step is not None and after is not None and step > after:
                    log.info("setting %s aside", folder)
                    manifest.set_aside(folder)
                    self._good.pop(step, None)
            except OSError as error:
                raise RunError(f"cannot be tidied up: {error.strerror}", where=str(folder)) from error


def _named(error: RunError) -> str:
    return f"{error.where} {error.message}"


def _plainly(reason: str) -> str:
    """The operating system's words inside of a sentence: `No space left on device`."""
    return "no space left on the device" if reason == os.strerror(errno.ENOSPC) else reason
