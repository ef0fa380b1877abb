"""Checkpoints: Orbax behind one door.

A checkpoint is a folder `checkpoints/<step>/` with `state/` (written by Orbax, asynchronously), `meta.json` (progress,
metrics, what the state belongs to) and, written last, `manifest-0.json` with the size and sha256 of every file. The
manifest is the commit marker: a folder without one, or that does not match its own, is not a checkpoint. It is made by
a thread of its own, so that neither writing nor hashing holds up training.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigctl.errors import RunError, TrainingFailed
from bigctl.files import write_json
from bigctl.parallel.partition import path_name
from bigctl.training.state import Progress

log = logging.getLogger("bigctl.checkpoint")

SCHEMA = 1
MANIFEST = "manifest-0.json"
_OVERHEAD = 2**18  # bytes besides the arrays: indices, metadata, manifest


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
    """

    def __init__(self, folder: Path, *, keep: int = 2, best: bool = True):
        self.folder = folder
        self.keep = keep
        self.best = best
        self._checkpointer: Any = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    # ------------------------------------------------------------------------------------------------------- writing

    def save(self, state: Any, progress: Progress, meta: dict[str, Any]) -> None:
        """Begin to save; returns once the state is copied off the devices' way.

        Raises:
            TrainingFailed: if the save before this one failed.
        """
        self.wait()
        target = self.folder / f"{progress.step:09d}"
        if (target / MANIFEST).exists():
            return  # the same step, saved before: by the same run it is the same state
        content = {"schema": SCHEMA, "step": progress.step, "progress": progress.to_json(), **meta}
        try:
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            write_json(target / "meta.json", content)
            tree = flatten(state)
            _require_space(target, tree)
            self._orbax().save(target.resolve() / "state", args=_save_args(tree))
        except Exception as error:
            raise self._failed(target, error) from error
        self._thread = threading.Thread(
            target=self._commit,
            args=(target, progress.best_step, progress.anchors),
            name="checkpoint-commit",
            daemon=True,
        )
        self._thread.start()

    def wait(self) -> None:
        """Until the last save is committed. Raises TrainingFailed if it could not be."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def close(self) -> None:
        self.wait()
        if self._checkpointer is not None:
            self._checkpointer.close()
            self._checkpointer = None

    def _commit(self, target: Path, best_step: int | None, anchors: Sequence[int]) -> None:
        try:
            self._checkpointer.wait_until_finished()
            write_json(target / MANIFEST, {"schema": SCHEMA, "files": _digests(target)})
            self._retain(best_step, anchors)
        except BaseException as error:
            self._failure = self._failed(target, error)

    def _retain(self, best_step: int | None, anchors: Sequence[int]) -> None:
        """Delete what is neither among the latest `keep` nor the best, nor what a rewind needs; only ever after a newer
        one is committed."""
        steps = self.steps()
        wanted = {*steps[-self.keep :], *anchors}
        if self.best and best_step is not None:
            wanted.add(best_step)
        for step in steps:
            if step not in wanted:
                folder = self.folder / f"{step:09d}"
                (folder / MANIFEST).unlink()  # first: what is being deleted is no checkpoint any more
                shutil.rmtree(folder, ignore_errors=True)

    def _failed(self, target: Path, error: BaseException) -> TrainingFailed:
        log.error("checkpoint %s failed", target, exc_info=error)
        shutil.rmtree(target, ignore_errors=True)
        previous = self.steps()
        kept = f"the one of step {previous[-1]} is kept" if previous else "there is none before it"
        reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0][:200]
        if "No space left on device" in str(error):
            reason = "no space left on the device"
        return TrainingFailed(
            f"checkpoint of step {int(target.name)} could not be written: {reason}; {kept}",
            where=str(self.folder),
            hint="free some space, then run the same command again",
        )

    def _orbax(self) -> Any:
        if self._checkpointer is None:
            import orbax.checkpoint as ocp

            logging.getLogger("absl").setLevel(logging.CRITICAL)  # failures are logged here, once
            handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True)
            self._checkpointer = ocp.AsyncCheckpointer(handler)
        return self._checkpointer

    # ------------------------------------------------------------------------------------------------------- reading

    def steps(self) -> list[int]:
        """Steps with a commit marker, ascending."""
        if not self.folder.is_dir():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit() and (p / MANIFEST).is_file())

    def has_best(self) -> bool:
        return self._best_step(list(reversed(self.steps()))) is not None

    def find(self, which: str | int = "last") -> Saved:
        """A verified checkpoint: "last" (the newest that is whole), "best", or of a step.

        Raises:
            RunError: if there is none, naming the file that is damaged where that is why.
        """
        problems = []
        for saved in self._candidates(which):
            if isinstance(saved, str):
                problems.append(saved)
                if which != "last":
                    break
                log.warning("checkpoint passed over: %s", saved)
                continue
            return saved
        present = ", ".join(str(step) for step in self.steps()) or "none"
        message = problems[0] if problems else f"there is no checkpoint {which!r}"
        raise RunError(message, where=str(self.folder), hint=f"checkpoints here: {present}")

    def _candidates(self, which: str | int) -> Iterator[Saved | str]:
        steps = list(reversed(self.steps()))
        if which == "best":
            wanted = [s for s in [self._best_step(steps)] if s is not None]
        elif which == "last":
            wanted = steps
        else:
            wanted = [int(which)] if int(which) in steps else []
        for step in wanted:
            folder = self.folder / f"{step:09d}"
            problem = damage(folder)
            if problem:
                yield problem
            else:
                yield Saved(folder, json.loads((folder / "meta.json").read_text()))

    def _best_step(self, steps: list[int]) -> int | None:
        for step in steps:
            try:
                meta = json.loads((self.folder / f"{step:09d}" / "meta.json").read_text())
                best = meta["progress"]["best_step"]
            except (OSError, ValueError, KeyError):
                continue
            return best if best in steps else None
        return None

    def restore(self, saved: Saved, abstract: Any) -> Any:
        """The state of a checkpoint, placed as `abstract` (ShapeDtypeStructs with shardings) says.

        A guard of another `train.divergence` than it was saved with begins anew.

        Raises:
            RunError: if its arrays do not fit.
        """
        import orbax.checkpoint as ocp

        wanted, shapes = flatten(abstract), saved.meta["shapes"]
        anew = _guard(shapes) != _guard({name: list(leaf.shape) for name, leaf in wanted.items()})
        guard = _guard(wanted) if anew else {}
        if anew:
            wanted, shapes = ({n: v for n, v in side.items() if n not in _guard(side)} for side in (wanted, shapes))
        differing = [name for name, leaf in wanted.items() if shapes.get(name) != list(leaf.shape)]
        if differing or len(shapes) != len(wanted):
            name = differing[0] if differing else sorted(set(shapes) ^ set(wanted))[0]
            here = list(wanted[name].shape) if name in wanted else "nothing"
            raise RunError(
                f"{name} is {shapes.get(name, 'missing')} in the checkpoint and {here} in this configuration",
                where=str(saved.path),
                hint="resume with the model and optimizer it was made with",
            )
        try:
            arrays = self._orbax().restore(
                saved.path.resolve() / "state",
                args=ocp.args.PyTreeRestore(
                    item=wanted,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
                    partial_restore=anew,
                ),
            )
        except Exception as error:
            raise RunError(f"cannot be loaded: {error}", where=str(saved.path)) from error
        for name, leaf in guard.items():
            arrays[name] = jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
        leaves, structure = jax.tree_util.tree_flatten_with_path(abstract)
        return jax.tree_util.tree_unflatten(structure, [arrays[path_name(path)] for path, _ in leaves])

    def clean(self, *, after: int = -1) -> None:
        """Remove what interrupted saves have left behind, and what was found damaged: all that is newer than `after`,
        the step of the checkpoint that was found good."""
        if self.folder.is_dir():
            for folder in self.folder.iterdir():
                newer = folder.name.isdigit() and int(folder.name) > after >= 0
                if newer or not (folder / MANIFEST).is_file():
                    log.info("removing %s, %s", folder, "damaged" if newer else "an interrupted save")
                    shutil.rmtree(folder, ignore_errors=True)


def _require_space(folder: Path, tree: dict[str, Any]) -> None:
    """Raise OSError where the disk has no room for a state: better before the save than in the middle of it."""
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in tree.values())
    if shutil.disk_usage(folder).free < size + _OVERHEAD:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_arrays(saved: Saved, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Some arrays of a checkpoint by their paths, on the host, float32. Raises RunError if they cannot be read."""
    import orbax.checkpoint as ocp

    reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True))
    whole = dict.fromkeys(names, ocp.RestoreArgs(restore_type=np.ndarray, dtype=np.float32))
    arguments = ocp.args.PyTreeRestore(item=dict.fromkeys(names, 0), restore_args=whole, partial_restore=True)
    try:
        return reader.restore(saved.path.resolve() / "state", args=arguments)
    except Exception as error:
        raise RunError(f"cannot be loaded: {error}", where=str(saved.path)) from error
    finally:
        reader.close()


def flatten(tree: Any) -> dict[str, Any]:
    """A tree as {path joined by "/": leaf}: what is stored, free of the classes that it came in."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def shapes(tree: Any) -> dict[str, list[int]]:
    return {name: list(np.shape(leaf)) for name, leaf in flatten(tree).items()}


def _guard(flat: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flat.items() if name.startswith("guard/")}


def damage(folder: Path) -> str | None:
    """What is wrong with a committed checkpoint, naming the file; None if every file is as it was written."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{folder / MANIFEST} cannot be read ({type(error).__name__})"
    for name, (size, digest) in files.items():
        file = folder / name
        if not file.is_file():
            return f"{file} is missing"
        if file.stat().st_size != size:
            return f"{file} has {file.stat().st_size} bytes instead of {size}"
        with file.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != digest:
                return f"{file} has changed since it was written"
    return None


def _digests(folder: Path) -> dict[str, tuple[int, str]]:
    result = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != MANIFEST:
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
                os.fsync(stream.fileno())
            result[str(file.relative_to(folder))] = (file.stat().st_size, digest)
    return result


def _save_args(tree: dict[str, Any]) -> Any:
    import orbax.checkpoint as ocp

    return ocp.args.PyTreeSave(tree)
