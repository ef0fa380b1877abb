"""Runs and checkpoints removed: only what is surely a run, and only while its lock is held. Free of jax."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from bigctl.errors import RunError, RunHeld
from bigctl.files import disk_size
from bigctl.runs import directory, listing, manifest
from bigctl.runs.directory import RunDirectory
from bigctl.terminal import escaped


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
            _reject_strangers(run)
            return run
    import difflib

    close = difflib.get_close_matches(Path(name).name, [r.name for r in listing.rows(root)], n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "`bigctl runs` lists the runs"
    raise RunError("there is no such run", where=name, hint=hint)


def remove(run: RunDirectory) -> int:
    """Delete a whole run; gives the bytes freed. Raises as `find` does."""
    _check_removable(run)
    with _locked(run):
        _reject_strangers(run)
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
                manifest.verify_checkpoint(saved.path)
        for saved in dropped:
            manifest.remove(saved.path)
            freed += saved.bytes
    return freed


def _check_removable(run: RunDirectory) -> None:
    if run.path.is_symlink():
        raise RunError("is a link", where=str(run.path), hint=f"name the folder itself: {run.path.resolve()}")
    if not _surely_run(run):
        raise RunError("is not a run; nothing was removed", where=str(run.path), hint="`bigctl runs` lists the runs")
    if run.held():
        raise RunHeld(f"is in use by {listing.holder(run)}", where=str(run.path), hint="stop it first")


def _surely_run(run: RunDirectory) -> bool:
    try:
        names = {entry.name for entry in os.scandir(run.path)}
        if "run.json" in names:
            return directory.is_run(run.path)
        return listing.only_begun(run.path, names) or listing.lost_record(run.path, names)
    except OSError:
        return False


def _reject_strangers(run: RunDirectory) -> None:
    """Raises RunError where a run's folder holds what bigctl did not write: then it stays as a whole."""
    if found := next(strangers(run.path), None):
        raise RunError(
            f"holds what bigctl did not write: {escaped(found)}; nothing was removed",
            where=str(run.path),
            hint="move that elsewhere first",
        )


@contextlib.contextmanager
def _locked(run: RunDirectory) -> Iterator[None]:
    run.lock()
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot be removed: {error.strerror}", where=str(error.filename or run.path)) from error
    finally:
        run.release()


# ----------------------------------------------------------------------------------------------------------- strangers

_WRITTEN = re.compile(
    r"config\.yaml|overrides\.txt|(run|summary|tokenizer|generation|threshold|confidence|assessment|goodput)\.json"
    r"|(metrics|samples|batches)\.jsonl|log\.txt|\.lock|int8\.onnx|report\.html|curves\.png"
)
_BESIDE = r"(labels|preprocessing|tokenizer|source|bigctl|generation)\.json|README\.md|SHA256SUMS|run\.py"
_CHECK = r"\.check(/[^/]+)*"
"""What the library is asked that reads a folder again, while it is written."""
_FOLDERS = {
    "checkpoints": re.compile(
        r"\d{9,}(\.aside|\.removed)?(/(state[^/]*(/.*)?|meta\.json|manifest-\d+\.json|unfinished))?"
    ),
    "tensorboard": re.compile(r"events\.out\.tfevents\..*"),
    "profile": re.compile(r"plugins(/.*)?"),
    "hf": re.compile(
        r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|vocab)\.json|merges\.txt|vocab\.txt"
        r"|model[\w.-]*\.safetensors(\.index\.json)?|\w+\.py|chat_template\.jinja|preprocessor_config\.json"
        rf"|{_BESIDE}|{_CHECK}"
    ),
    "timm": re.compile(rf"config\.json|model\.safetensors|{_BESIDE}|{_CHECK}"),
    "jax": re.compile(rf"model\.jax|weights\.npz|{_BESIDE}"),
    "onnx": re.compile(rf"model\.onnx(\.data)?|{_BESIDE}"),
    "gguf": re.compile(rf"model[\w.-]*\.gguf|{_BESIDE}"),
}
_FOLDERS["onnx-cache"] = _FOLDERS["onnx"]
_FOLDERS |= {f"{name}-int{bits}": _FOLDERS[name] for name in ("onnx", "onnx-cache", "gguf") for bits in (8, 4)}
_EXPORTS = re.compile(r"(hf|timm|jax|onnx(-cache)?|gguf)(-int[48])?(-encrypted)?")
_FOLDERS |= {
    f"{name}-encrypted": re.compile(r"export\.sealed|README\.md") for name in [*_FOLDERS] if _EXPORTS.fullmatch(name)
}
"""What is written into each folder of a run."""
_PAGES = re.compile(rf"{_EXPORTS.pattern}-report\.html")
"""Pages of exports, each beside its folder."""


def _is_ours(name: str) -> bool:
    return bool(_WRITTEN.fullmatch(name) or _PAGES.fullmatch(name))


def strangers(folder: Path) -> Iterator[str]:
    """Names in a run's folder that bigctl does not write; a link is one of them, whatever it is called."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        inside = _FOLDERS.get(_final(entry.name))
        if inside is not None and entry.is_dir(follow_symlinks=False):
            yield from _strangers_inside(Path(entry.path), inside)
        elif not (entry.is_file(follow_symlinks=False) and _is_ours(_final(entry.name))):
            yield entry.name


def _strangers_inside(folder: Path, written: re.Pattern[str]) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        for name in sorted((*folders, *files)):
            path = Path(parent, name)
            known = written.fullmatch(path.relative_to(folder).with_name(_final(name)).as_posix())
            if path.is_symlink() or not known:
                yield path.relative_to(folder.parent).as_posix()


def _final(name: str) -> str:
    """What a file is called once it is whole: `.run.json.123-ab.tmp` becomes run.json."""
    found = re.fullmatch(r"\.(.+)\.\d+(-[0-9a-f]+)?\.tmp", name)
    return found[1] if found else name
