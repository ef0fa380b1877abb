"""Files that are either the old ones or the new ones, never half of each, and files that others may have put there."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Container
from pathlib import Path
from typing import IO

from bigctl.formatting import plain

LARGEST = 1 << 30
"""What is read of a file at once [bytes]."""


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with `~` as the home folder; as it is where there is none, as for a user without a name in a container."""
    return Path(os.path.expanduser(path))


def temporary_name(path: Path) -> Path:
    """A name beside a file or folder that is to get its own once it is whole; no other process, here or on another
    machine that shares the disk, and no other thread takes the same."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def is_temporary(path: Path, names: Container[str]) -> bool:
    """Whether a path is such a name of this process, for one of `names`."""
    name, _, rest = path.name.removeprefix(".").rpartition(f".{os.getpid()}-")
    return rest.endswith(".tmp") and name in names


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Replace a file atomically and durably. Halves of characters, as in names that are not UTF-8, become `\\udcff`,
    which means the same in JSON. A private one can be read by its owner alone, at any moment."""
    temporary = temporary_name(path)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        opened = os.open(temporary, flags, 0o600 if private else 0o666)
        with open(opened, "w", encoding="utf-8", errors="backslashreplace") as stream:
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


def sha256_regular(file: Path) -> str:
    """The same of a file in a folder that anybody may have filled. Raises OSError, for what is no regular file too."""
    with open(open_regular(file), "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def disk_size(folder: Path) -> int:
    """Bytes of all files below a folder; what vanishes meanwhile does not count."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a file in a folder that anybody may have filled: never what a link leads to, and never a pipe or
    a device, which could block for ever. Raises OSError, whose text says what is there."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link", str(path)) from error
        if error.errno == errno.ENXIO:  # a pipe that nobody reads, a socket
            raise OSError(errno.ENXIO, "it is no regular file", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return descriptor


def read_regular(path: Path, *, start: int = 0, most: int = LARGEST) -> bytes:
    """The content of such a file from some byte on; negative for that many before its end.

    Raises:
        OSError: if it cannot be read, is no regular file, or holds more than `most` bytes there.
    """
    with open(open_regular(path), "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        stream.seek(max(0, size + start if start < 0 else start))
        content = stream.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most >> 20} MiB", str(path))
    return content


def append_regular(path: Path) -> IO[bytes]:
    """A stream to write at the end of such a file, which is made if need be. Raises OSError as `open_regular` does."""
    return open(open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab")


def real_path(path: Path) -> Path:
    """Where a path leads through all links; links that lead in a circle stay, where `resolve()` raises RuntimeError."""
    return Path(os.path.realpath(path))
