"""Paths that a user gave: found or explained, walked, and fingerprinted."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bigctl import memory
from bigctl.data.files import file_index
from bigctl.errors import DataError
from bigctl.files import expanded


def fingerprint_folder(path: Path, files: list[Path] | None = None, folders: list[str] | None = None) -> str:
    """sha256 over the sorted relative paths, sizes and modification times of all visible files; reads no content.
    What was looked at is added to `files` and `folders`, where these are given."""
    digest = hashlib.sha256()
    root = require_folder(path)
    found = sorted(file for file in walk(root, folders) if not hidden(file.name))
    if files is not None:
        files += found
    for file in found:
        try:
            status = file.stat()
        except OSError as error:
            hint = "replace or delete it"
            raise DataError(f"cannot be read: {error.strerror}", where=str(file), hint=hint) from error
        line = f"{file.relative_to(root).as_posix()}\0{status.st_size}\0{status.st_mtime_ns}\n"
        digest.update(os.fsencode(line))  # a name may be in another encoding
    return digest.hexdigest()


def fingerprint_files(paths: Iterable[Path], *, in_blocks: bool = False) -> str:
    """sha256 over the contents of some files, in the order given; their names do not matter. What is read by blocks may
    be larger than the memory."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(bytes.fromhex(_digest(require_file(path), in_blocks)))
    return digest.hexdigest()


def _digest(file: Path, in_blocks: bool = False) -> str:
    """The sha256 of a file that is then read, as a whole or by blocks. Raises DataError where it cannot be."""
    try:
        if not in_blocks:
            memory.require(file.stat().st_size, "the file", where=str(file))
        return file_index.digest(file)
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}", where=str(file)) from error


def optional(path: str | None) -> Path | None:
    """The path that a key gives, if it gives one; ~ is the home."""
    return expanded(path) if path else None


def file_digest(path: str | None, *, in_blocks: bool = False) -> str | None:
    """The sha256 of a file, which may be larger than the memory if it is read by blocks; None where there is none."""
    file = optional(path)
    return None if file is None or not file.is_file() else _digest(file, in_blocks)


def split_digests(*paths: str | None, in_blocks: bool = False) -> list[str | None] | None:
    """Of the files of the splits; None where one that is given is missing, which the source has to say."""
    digests = [file_digest(path, in_blocks=in_blocks) for path in paths]
    return None if any(path and digest is None for path, digest in zip(paths, digests, strict=True)) else digests


def split_files(path: Path, validation_path: Path | None, test_path: Path | None) -> dict[str, Path]:
    """The files that are given, by split; DataError if one is given twice."""
    paths = {"train": path, "validation": validation_path, "test": test_path}
    found = {split: file for split, file in paths.items() if file is not None}
    for split, file in found.items():
        if split != "train" and file.resolve() == path.resolve():
            raise DataError(f"data.{split}_path is the training file itself", where=str(file))
    return found


_BRACES = re.compile(r"\{([^{}]*)\}")
_MOST = 10**6
"""Names that braces may stand for."""


def braces(path: str) -> list[str]:
    """The paths that `{00..99}` and `{a,b}` stand for, as in a shell; the path itself where it has no such braces.

    Raises:
        DataError: for a million of them.
    """
    found = [path]
    while any(_alternatives(match[1]) for each in found[:1] for match in _BRACES.finditer(each)):
        match = next(match for match in _BRACES.finditer(found[0]) if _alternatives(match[1]))
        names = _alternatives(match[1])
        if len(found) * len(names) > _MOST:
            raise DataError(f"the braces stand for more than {_MOST:,} names", where=path, hint="use a pattern with *")
        # The first pair is the same in all of them, and is replaced in all.
        found = [each.replace(match[0], name, 1) for each in found for name in names]
    return found


def _alternatives(inside: str) -> list[str]:
    """What stands between braces, one by one; nothing where that is no list and no range."""
    if span := re.fullmatch(r"(\d+)\.\.(\d+)", inside):
        first, last = int(span[1]), int(span[2])
        if abs(last - first) > _MOST:
            return [""] * (_MOST + 1)
        width = max(map(len, span.groups())) if span[1].startswith("0") or span[2].startswith("0") else 0
        step = 1 if last >= first else -1
        return [f"{number:0{width}d}" for number in range(first, last + step, step)]
    return inside.split(",") if "," in inside else []


def require_file(path: Path) -> Path:
    """`path` if it is a file; otherwise a DataError that names similar files beside it."""
    if path.is_dir():
        raise DataError("this is a directory, not a file", where=str(path), hint="give the path of one file")
    if not path.is_file():
        if path.exists():
            hint = "write it into a file: data is read more than once"
            raise DataError("this is a pipe or a device, not a file", where=str(path), hint=hint)
        raise DataError("no such file", where=str(path), hint=similar(path))
    return path


def require_folder(path: Path) -> Path:
    """`path` if it is a directory; otherwise a DataError that names similar ones beside it."""
    if not path.exists():
        raise DataError("no such directory", where=str(path), hint=similar(path, folders=True))
    if not path.is_dir():
        raise DataError("this is a file, not a directory", where=str(path), hint="give the folder that holds it")
    return path


def similar(path: Path, *, folders: bool = False) -> str:
    """A hint for a path that is not there: what is beside it, or of that the folders."""
    there = path.parent.iterdir() if path.parent.is_dir() else ()
    beside = sorted(entry.name for entry in there if entry.is_dir() or not folders)
    if not path.parent.is_dir():
        return f"the directory {str(path.parent)!r} does not exist either"
    if close := difflib.get_close_matches(path.name, beside, cutoff=0.5):
        return f"did you mean {' or '.join(close)}?"
    return f"{str(path.parent)!r} holds {some(beside) if beside or not folders else 'no folder'}"


def natural(path: Path | str) -> tuple[list[str | int], str]:
    """What sorts "2" before "10"."""
    # The split alternates text and digits, so that like is always compared with like.
    parts: list[str | int] = [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", str(path)))]
    return parts, str(path)


def some(names: Sequence[str], limit: int = 12) -> str:
    """The first few of some names."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "nothing") + more


def walk(folder: Path, entered: list[str] | None = None) -> Iterator[Path]:
    """Every file below `folder`, outside hidden folders; links are followed, once. Folders are added to `entered`."""
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(parent))
        if entered is not None:
            entered.append(parent)
        folders[:] = [
            name for name in folders if not hidden(name) and os.path.realpath(os.path.join(parent, name)) not in seen
        ]
        yield from (Path(parent, name) for name in names)


def hidden(name: str) -> bool:
    """Whether a file or folder of this name is no data."""
    return name.startswith(".") or name == "__MACOSX"
