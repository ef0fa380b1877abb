"""Data at an address (`https://`, `s3://`, `gs://`): fetched once into the cache, and read from there like any other.

fsspec does the talking; what it needs for a kind of address is an extra. Each file is written under another name and
renamed once it is whole, so that a start that was killed goes on. What was fetched is used without a network; with one,
sizes and versions are compared first.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, cast
from urllib.parse import unquote, urlsplit

from bigctl.cache_root import cache_root
from bigctl.config.schema import Data
from bigctl.data.files import paths
from bigctl.data.progress import Progress
from bigctl.errors import DataError
from bigctl.files import temporary_name, write_text
from bigctl.formatting import size

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_KINDS = {
    **dict.fromkeys(("http", "https"), ("aiohttp", "bigctl[remote]")),
    "s3": ("s3fs", "bigctl[s3]"),
    **dict.fromkeys(("gs", "gcs"), ("gcsfs", "bigctl[gcs]")),
}
"""What stands before `://`: the package that fetches it, and the extra that brings it."""
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_VERSIONS = ("ETag", "etag", "md5Hash", "Last-Modified", "LastModified", "updated")
_ONE, _SEVERAL = "file", "files"
"""Folders in the cache for what an address names, and for all that it stands for."""
_AT_ONCE = 8


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """One file of an address.

    Attributes:
        name: below the folder in the cache.
        path: as the file system calls it.
        bytes: its size, where the other side says it.
        version: whatever changes when it does; empty where the other side says nothing.
    """

    name: str
    path: str
    bytes: int | None
    version: str

    def to_json(self) -> dict[str, object]:
        return {"bytes": self.bytes, "version": self.version}


def is_remote(path: str) -> bool:
    """Whether a path is an address."""
    return _ADDRESS.match(path) is not None


def is_place(name: str) -> bool:
    """Whether a key of data holds a path."""
    return name == "path" or name.endswith(("_path", "_file"))


def local(config: Data) -> Data:
    """The configuration with the places in the cache of all that it has addresses for, fetched where need be.

    Raises:
        DataError: an address cannot be reached and is not in the cache; there is no room for it.
    """
    given = {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if is_place(field.name)}
    remote = {name: value for name, value in given.items() if isinstance(value, str) and is_remote(value)}
    if not remote:
        return config
    found = copy.copy(config)
    for name, value in remote.items():
        setattr(found, name, fetch(value, f"data.{name}"))
    return found


def fetch(address: str, key: str) -> str:
    """The file, or the folder of all files, that an address stands for, in the cache.

    Args:
        address: of a file, of a folder of a bucket, or a pattern; braces stand for names as in other paths.
        key: what gave it, for messages.

    Raises:
        DataError: see `local`.
    """
    shown = _shown(address, key)
    folder = cache_root() / "remote" / hashlib.sha256(address.encode()).hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        from filelock import FileLock

        with FileLock(folder / ".lock"):
            return str(_up_to_date(address, shown, key, folder))
    except OSError as error:
        raise DataError(f"{shown} cannot be kept: {error.strerror or error}", where=str(folder)) from error


def _shown(address: str, key: str) -> str:
    """An address as it is shown: without a query, which may hold a signature.

    Raises:
        DataError: for one that is not taken.
    """
    kind = _ADDRESS.match(address)
    assert kind is not None
    if kind[1].lower() not in _KINDS:
        known = ", ".join(f"{each}://" for each in _KINDS)
        raise DataError(f"addresses of {kind[1]}:// are not taken", where=key, hint=f"a path, or one of {known}")
    if "@" in urlsplit(address).netloc:
        hint = "credentials belong into the environment or the files of the storage's own tools"
        raise DataError("the address holds a name or a password", where=key, hint=hint)
    return address.partition("?")[0]


# ------------------------------------------------------------------------------------------------------------- keeping


def _up_to_date(address: str, shown: str, key: str, folder: Path) -> Path:
    kept = _kept(folder)
    try:
        files = _listed(address, shown, key)
    except DataError as error:
        if not kept or not all((folder / name).is_file() for name in kept):
            raise
        print(f"{key}: {error}; the copy in {folder} is used", file=sys.stderr)
        return _place(folder, kept)
    here = {file.name: file.to_json() for file in files if _is_here(folder, file, kept)}
    index = _Index(folder, shown, here)
    if missing := [file for file in files if file.name not in here]:
        try:
            _download(address, shown, key, folder, missing, index)
        finally:
            index.write()
    for name in set(kept) - set(index.files):
        (folder / name).unlink(missing_ok=True)  # no longer there, and no longer a part
    index.write()
    return _place(folder, index.files)


def _place(folder: Path, names: Mapping[str, object]) -> Path:
    """The one file that an address names, or the folder of all that it stands for."""
    first = next(iter(names))
    return folder / first if first.startswith(f"{_ONE}/") else folder / _SEVERAL


def _kept(folder: Path) -> dict[str, dict[str, object]]:
    """What an earlier start has fetched; nothing where that cannot be told."""
    try:
        found = json.loads((folder / "index.json").read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) and all(isinstance(entry, dict) for entry in found.values()) else {}


def _is_here(folder: Path, file: RemoteFile, kept: Mapping[str, object]) -> bool:
    on_disk = folder / file.name
    if kept.get(file.name) != file.to_json() or not on_disk.is_file():
        return False
    return file.bytes is None or on_disk.stat().st_size == file.bytes


# ------------------------------------------------------------------------------------------------------------ fetching


def _listed(address: str, shown: str, key: str) -> list[RemoteFile]:
    """The files that an address stands for, sorted by name. Raises DataError where that cannot be found out."""
    found: list[RemoteFile] = []
    for each in paths.braces(address):
        system, path = _system(each, key)
        try:
            found += _of_one(system, path, single="{" not in address)
        except DataError:
            raise
        except Exception as error:  # whatever the packages below raise
            raise _unreachable(error, _shown(each, key), key) from error
    if not found:
        hint = "check the pattern; a folder of a web server cannot be listed, {00..99} names its files"
        raise DataError(f"no file matches {shown}", where=key, hint=hint)
    return sorted(found, key=lambda file: file.name)


def _of_one(system: AbstractFileSystem, path: str, *, single: bool) -> list[RemoteFile]:
    system.invalidate_cache()
    web = path.startswith("http")
    if "*" in path or (not web and any(mark in path for mark in "?[")):
        entries = system.glob(path, detail=True)
    elif (info := system.info(path))["type"] == "directory":
        entries = system.find(path, detail=True)
    else:
        name = _safe(unquote(urlsplit(path).path) if web else path, "")
        return [_file(path, f"{_ONE if single else _SEVERAL}/{name}", info)]
    inside = {place: info for place, info in entries.items() if info["type"] == "file"}
    names = {place: unquote(urlsplit(place).path) if web else place for place in inside}
    root = os.path.commonpath([os.path.dirname(name) for name in names.values()]) if names else ""
    return [_file(place, f"{_SEVERAL}/{_safe(names[place], root)}", info) for place, info in inside.items()]


def _safe(path: str, root: str) -> str:
    """The name of a file in the cache: below `root`, or the last part of its path where there is none."""
    path = path.removeprefix(root).strip("/") if root else PurePosixPath(path).name
    parts = [re.sub(r"[^\w.-]", "_", part) for part in path.split("/")]
    if any(part in ("", ".", "..") for part in parts):
        raise DataError(f"a file is called {path!r}, which is no name for a file here", hint="name it otherwise there")
    return "/".join(parts)


def _file(path: str, name: str, info: Mapping[str, object]) -> RemoteFile:
    found = info.get("size")
    version = next((str(info[key]) for key in _VERSIONS if info.get(key)), "")
    return RemoteFile(name, path, found if isinstance(found, int) else None, version)


def _system(address: str, key: str) -> tuple[AbstractFileSystem, str]:
    match = _ADDRESS.match(address)
    assert match is not None
    package, extra = _KINDS[match[1].lower()]
    if "::" in address:
        raise DataError("addresses within addresses are not taken", where=key, hint="give the address of the file")
    try:
        import fsspec.core

        options: dict[str, object] = {}
        if package == "aiohttp":
            import aiohttp

            # Its own limit is five minutes for a file, however large.
            options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(total=None, connect=30, sock_read=60)}
        system, path = fsspec.core.url_to_fs(address, **options)
    except ImportError as error:
        hint = f"pip install '{extra}'"
        raise DataError(f"{match[0]} needs the package {package}: {error}", where=key, hint=hint) from None
    return system, str(path)


def _unreachable(error: Exception, shown: str, key: str) -> DataError:
    if isinstance(error.__cause__, OSError | RuntimeError) or hasattr(error.__cause__, "status"):
        error = cast(Exception, error.__cause__)  # fsspec calls whatever goes wrong on the web a missing file
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return DataError(f"{shown} is not there", where=key, hint="check the address")
    if isinstance(error, PermissionError) or status in (401, 403):
        hint = "log in with the storage's own tools, or set its variables of the environment"
        return DataError(f"{shown} may not be read", where=key, hint=hint)
    what = (str(error).strip().splitlines() or [""])[0].partition("?")[0][:200]
    return DataError(
        f"{shown} cannot be reached: {type(error).__name__}{': ' if what else ''}{what}", where=key,
        hint="is there a network? what was fetched before is used without one",
    )  # fmt: skip


def _download(address: str, shown: str, key: str, folder: Path, files: Sequence[RemoteFile], index: _Index) -> None:
    """Fetch some files, several at once."""
    total = sum(file.bytes or 0 for file in files)
    if total > shutil.disk_usage(folder).free:
        raise DataError(f"{shown} is {size(total)}, for which there is no room", where=str(folder), hint="make room")
    count = f"{len(files):,} files" if len(files) > 1 else PurePosixPath(files[0].name).name
    print(f"{key}: fetching {count}{f' ({size(total)})' if total else ''} from {shown} to {folder}", file=sys.stderr)
    done = 0
    with ThreadPoolExecutor(_AT_ONCE) as pool, Progress(f"{key}: fetching", total) as progress:
        work = [pool.submit(_fetch_one, address, shown, key, folder, file) for file in files]
        failed: BaseException | None = None
        for future in as_completed(work):
            if future.cancelled():
                continue
            if error := future.exception():
                failed = failed or error
                pool.shutdown(wait=False, cancel_futures=True)
                continue
            file, found = future.result()
            index.add(file)
            done += found
            progress.update(done)
    if failed is not None:
        raise failed


def _fetch_one(address: str, shown: str, key: str, folder: Path, file: RemoteFile) -> tuple[RemoteFile, int]:
    target = folder / file.name
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(target)
    try:
        system, _ = _system(address, key)
        try:
            system.get_file(file.path, str(temporary))
        except Exception as error:
            if (
                isinstance(error, OSError)
                and error.errno
                and not isinstance(error, ConnectionError | FileNotFoundError)
            ):
                raise  # of this disk
            raise _unreachable(error, shown, key) from error
        found = temporary.stat().st_size
        if file.bytes is not None and found != file.bytes:
            what = f"{file.name} came as {found:,} bytes of {file.bytes:,}"
            raise DataError(what, where=key, hint="try again; what has come as a whole is kept")
        temporary.replace(target)
        return file, found
    finally:
        temporary.unlink(missing_ok=True)


class _Index:
    """What of an address is in the cache as a whole, on disk every other second, so that a kill loses little."""

    def __init__(self, folder: Path, address: str, files: dict[str, dict[str, object]]):
        self.files = files
        self._folder, self._address, self._written = folder, address, time.monotonic()

    def add(self, file: RemoteFile) -> None:
        self.files[file.name] = file.to_json()
        if time.monotonic() - self._written > 2:
            self.write()

    def write(self) -> None:
        write_text(self._folder / "index.json", json.dumps({"address": self._address, "files": self.files}, indent=1))
        self._written = time.monotonic()
