"""Files that are either the old ones or the new ones, never half of each."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from pathlib import Path

from bigctl.formatting import plain


def temporary_name(path: Path) -> Path:
    """A name beside a file or folder that is to get its own once it is whole; no other process, here or on another
    machine that shares the disk, and no other thread takes the same."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Replace a file atomically and durably; a private one can be read by its owner alone, at any moment."""
    temporary = temporary_name(path)
    try:
        temporary.unlink(missing_ok=True)  # of an earlier process of that number, perhaps readable by others
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with open(os.open(temporary, flags, 0o600 if private else 0o666), "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """The names in a folder onto the disk, as `fsync` brings only the content of a file there. Where a file system
    cannot do so, nothing happens."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: Path, value: object, *, private: bool = False) -> None:
    write_text(path, json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n", private=private)


def sha256(file: Path) -> str:
    """Of the content of a file, in hexadecimal digits; a large file is read in parts. Raises OSError."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def disk_size(folder: Path) -> int:
    """Bytes of all files below a folder; what vanishes meanwhile does not count."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total
