"""What is made once of a file that has no random access, such as a compressed archive, and kept in the cache.

Each is known by the place, size and time of its file. A pack is made under a temporary name and renamed, so that a kill
loses at most one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from bigctl.cache_root import cache_root
from bigctl.errors import DataError
from bigctl.files import temporary_name

_ABANDONED = 86400.0
"""Age at which what is half made is taken to be nobody's [s]."""


def root() -> Path:
    """The folder of all packs."""
    return cache_root() / "data" / "packs"


def place(file: Path, what: str) -> Path:
    """The folder with what is made of a file as it is now; it need not exist. Raises DataError where it is missing."""
    try:
        status = file.stat()
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}", where=str(file)) from None
    known = json.dumps([os.path.abspath(file), status.st_size, status.st_mtime_ns, what])
    return root() / hashlib.sha256(os.fsencode(known)).hexdigest()[:16]


def kept(file: Path, what: str, make: Callable[[Path], None]) -> Path:
    """The folder with what is made of a file, which `make` fills where it is not there.

    Raises:
        DataError: there is no room, or what `make` raises.
    """
    folder = place(file, what)
    if folder.is_dir():
        return folder
    temporary = temporary_name(folder)
    for left in root().glob(".*.tmp"):  # by starts that were killed
        with contextlib.suppress(OSError):
            if left.stat().st_mtime < time.time() - _ABANDONED:
                shutil.rmtree(left, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        make(temporary)
        if not folder.is_dir():  # another process may have been quicker
            temporary.rename(folder)
    except OSError as error:
        if folder.is_dir():
            return folder
        hint = "free some space, or set BIGCTL_CACHE_DIR to a folder that can be written"
        what = f"what is in {file} cannot be kept: {error.strerror or error}"
        raise DataError(what, where=str(root()), hint=hint) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder
