"""The manifests of a checkpoint: what makes a folder a checkpoint, and tells whether it is as it was written.

Each process writes one, last of all, as its commit marker: `manifest-<p>.json` with {"schema", "step", "process",
"processes", "files": {name: [bytes, sha256]}, "sha256" of all the rest}. Process p answers for what it wrote alone,
below `state/ocdbt.process_<p>/`; process 0 for everything else. The checkpoint is committed when all of them are there.

Until then the folder holds a file called `unfinished`, which tells a save that was cut off, and may be removed, from a
checkpoint that has lost its manifest, and may not. A file that no manifest names is no damage beside `state/`, where
nothing reads it; within, Orbax may stumble over it.

Free of jax: `bigctl verify` and the listings work without it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from bigctl.errors import RunError
from bigctl.files import sync_folder, write_json
from bigctl.runs import untrusted

SCHEMA = 2
"""Of a manifest. 1, which had `schema` and `files` only, is read as that of a single process."""
UNFINISHED = "unfinished"
SET_ASIDE = ".aside"
"""What is added to the name of a damaged checkpoint when training goes on from an older one."""
REMOVED = ".removed"
"""What is added to the name of a folder that is being deleted."""
META = "meta.json"
_OWNED = re.compile(r"state/ocdbt\.process_(?:replica_)?(\d+)/")
_MANIFEST = re.compile(r"manifest-\d+\.json")


def file_name(process: int) -> str:
    return f"manifest-{process}.json"


MANIFEST = file_name(0)


# ----------------------------------------------------------------------------------------------------------- writing


def begin(folder: Path) -> None:
    """An empty folder to save into, whatever was there before. Raises OSError."""
    if os.path.lexists(folder):
        remove(folder)
    folder.mkdir(parents=True)
    (folder / UNFINISHED).touch()


def write_manifest(folder: Path, *, process: int = 0, processes: int = 1) -> None:
    """Commit what a process has written: its files onto the disk, then its manifest. Raises OSError."""
    files = {
        name: list(_digest(folder / name, sync=True)) for name in _names(folder) if _owner(name, processes) == process
    }
    for inner in (*(path for path in folder.rglob("*") if path.is_dir()), folder, folder.parent):
        sync_folder(inner)
    content = {"schema": SCHEMA, "step": int(folder.name), "process": process, "processes": processes, "files": files}
    write_json(folder / file_name(process), {**content, "sha256": _own_digest(content)})


def settle(folder: Path) -> None:
    """Take the `unfinished` off a folder that all processes have committed. Where it stays, no harm is done."""
    if committed(folder):
        with contextlib.suppress(OSError):
            (folder / UNFINISHED).unlink(missing_ok=True)


def remove(folder: Path) -> None:
    """Delete a folder, which from the first moment on is no checkpoint any more, wherever this is cut off.

    Raises:
        OSError: if it cannot be.
    """
    gone = folder.with_name(f"{folder.name}{REMOVED}")
    _delete(gone)
    folder.rename(gone)
    _delete(gone)


def abandon(folder: Path) -> None:
    """Delete what a save has written that failed, as far as that is possible. Its folder and the `unfinished` in it
    stay: something of the save may still be at writing, and what it leaves there must not look like a checkpoint.

    Raises:
        OSError: if it cannot be marked so.
    """
    (folder / UNFINISHED).touch()
    for _ in range(3):  # what is at writing fills a folder again while it is deleted
        rest = [path for path in folder.iterdir() if path.name != UNFINISHED]
        for path in sorted(rest, key=lambda path: not _MANIFEST.fullmatch(path.name)):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        if not rest:
            return


def set_aside(folder: Path) -> None:
    """Keep a folder, but not as a checkpoint. Raises OSError."""
    aside = folder.with_name(f"{folder.name}{SET_ASIDE}")
    _delete(aside)
    folder.rename(aside)


# ----------------------------------------------------------------------------------------------------------- looking


def steps(checkpoints: Path) -> list[int]:
    """Steps of the folders that are, or once were, checkpoints, ascending; interrupted saves are left out.

    Raises:
        RunError: if the folder cannot be read.
    """
    try:
        folders = [p for p in checkpoints.iterdir() if is_step(p.name)] if checkpoints.is_dir() else []
        return sorted(int(folder.name) for folder in folders if not interrupted(folder))
    except OSError as error:
        raise RunError(f"cannot be read: {error.strerror}", where=str(error.filename or checkpoints)) from error


def is_step(name: str) -> bool:
    """Whether a folder of checkpoints/ is called as a checkpoint is: by its step, in nine digits or more."""
    return bool(re.fullmatch(r"[0-9]{9}|[1-9][0-9]{9,14}", name))


def interrupted(folder: Path) -> bool:
    """Whether a folder is what a save left behind that was cut off: it was never a checkpoint."""
    if not folder.is_dir():
        return False
    if not os.path.lexists(folder / UNFINISHED):
        return not any(folder.iterdir())
    return not committed(folder)


def committed(folder: Path) -> bool:
    """Whether the manifests of all processes are there; where the first is damaged, its own has to do."""
    if not (folder / MANIFEST).is_file():
        return False
    try:
        processes = _read(folder, 0)[1]
    except RunError:
        return True
    return all((folder / file_name(p)).is_file() for p in range(1, processes))


def verify_checkpoint(folder: Path) -> dict[str, Any]:
    """Read every file of a checkpoint and compare; gives its meta.json.

    Raises:
        RunError: if one is not as it was written; `where` is that file.
    """
    files = listed(folder)
    content = _meta(folder, files)
    for name, (size, digest) in files.items():
        _check(folder / name, size, digest)
    for name in unlisted(folder, files):
        if name.startswith("state/"):
            raise RunError("does not belong to the checkpoint", where=str(folder / name))
    return content


def read_meta(folder: Path) -> dict[str, Any]:
    """meta.json alone, verified. Raises RunError as `verify` does."""
    return _meta(folder, listed(folder))


def listed(folder: Path) -> dict[str, tuple[int, str]]:
    """The files of a checkpoint as its manifests have them: {name: (bytes, sha256)}.

    Raises:
        RunError: if a manifest is missing or is not as it was written.
    """
    files, processes = _read(folder, 0)
    for process in range(1, processes):
        more, count = _read(folder, process)
        if count != processes:
            raise RunError(f"is of {count} processes, {MANIFEST} of {processes}", where=_path(folder, process))
        files |= more
    return files


def unlisted(folder: Path, files: Iterable[str]) -> list[str]:
    """What there is in the folder besides its manifests and those files."""
    known = set(files)
    known |= {parent.as_posix() for name in files for parent in PurePosixPath(name).parents}
    return [name for name in _names(folder, folders=True) if name not in known]


# ----------------------------------------------------------------------------------------------------------- helpers


def _read(folder: Path, process: int) -> tuple[dict[str, tuple[int, str]], int]:
    """(files, number of processes) of one manifest."""
    path = folder / file_name(process)
    try:
        content = untrusted.mapping(_bytes(path))
        own = content.pop("sha256", None)
        if content.keys() == {"schema", "files"} and content["schema"] == 1 and own is None:
            content = {**content, "process": 0, "processes": 1}
        elif content["schema"] != SCHEMA and own == _own_digest(content):
            raise RunError(f"is of schema {content['schema']}", where=str(path), hint="a newer bigctl wrote it")
        elif own != _own_digest(content):
            raise RunError("has changed since it was written", where=str(path))
        elif content["step"] != int(folder.name) or content["process"] != process:
            raise RunError(f"is that of step {content['step']}, process {content['process']}", where=str(path))
        files = {str(name): (int(size), str(digest)) for name, (size, digest) in content["files"].items()}
        return files, int(content["processes"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError("is no manifest, or a damaged one", where=str(path)) from error


def _own_digest(content: dict[str, Any]) -> str:
    """Of what a manifest says, not of how it is laid out."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _meta(folder: Path, files: dict[str, tuple[int, str]]) -> dict[str, Any]:
    path = folder / META
    if META not in files:
        raise RunError("is not in the manifest", where=str(path))
    content = _bytes(path)
    _compare(path, len(content), hashlib.sha256(content).hexdigest(), *files[META])
    try:
        values = untrusted.mapping(content, untrusted.META)
    except ValueError as error:
        raise RunError(f"is not as bigctl writes it: {error}", where=str(path)) from error
    if values.get("step") != int(folder.name):
        raise RunError(f"is that of step {values.get('step')}", where=str(path), hint="the folder has been renamed")
    return values


def _check(path: Path, size: int, digest: str) -> None:
    try:
        _regular(path)
        found, actual = path.stat().st_size, ""
        if found == size:  # else there is no need to read it
            found, actual = _digest(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    _compare(path, found, actual, size, digest)


def _compare(path: Path, found: int, actual: str, size: int, digest: str) -> None:
    if found != size:
        raise RunError(f"has {found:,} bytes instead of {size:,}", where=str(path))
    if actual != digest:
        raise RunError("has changed since it was written", where=str(path))


def _bytes(path: Path) -> bytes:
    try:
        _regular(path)
        with path.open("rb") as stream:
            content = stream.read(untrusted.LARGEST + 1)
    except OSError as error:
        raise _unreadable(path, error) from error
    if len(content) > untrusted.LARGEST:
        raise RunError(f"is larger than {untrusted.LARGEST >> 20} MiB", where=str(path))
    return content


def _regular(path: Path) -> None:
    """Folders, and pipes that would never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise RunError("is not a file any more", where=str(path))


def _unreadable(path: Path, error: OSError) -> RunError:
    if isinstance(error, FileNotFoundError):
        return RunError("is a link to nothing" if path.is_symlink() else "is missing", where=str(path))
    return RunError(f"cannot be read: {error.strerror}", where=str(path))


def _digest(path: Path, *, sync: bool = False) -> tuple[int, str]:
    """(bytes, sha256) of a file, which is on the disk afterwards if `sync`. Raises OSError."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if sync:
            os.fsync(stream.fileno())
        return stream.tell(), digest


def _names(folder: Path, *, folders: bool = False) -> Iterator[str]:
    """All files below a checkpoint but manifests, markers and their temporaries; folders too if asked for."""
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        own = _MANIFEST.fullmatch(name) or name == UNFINISHED
        if not own and not name.startswith(".manifest-") and (folders or not file.is_dir()):
            yield name


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _owner(name: str, processes: int) -> int:
    found = _OWNED.match(name)
    return int(found[1]) if found and int(found[1]) < processes else 0


def _path(folder: Path, process: int) -> str:
    return str(folder / file_name(process))
