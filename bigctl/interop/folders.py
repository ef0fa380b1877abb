"""Folders that hold an export: whole, or not there; nothing is ever overwritten."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bigctl.errors import BigctlError, ConfigError, RunError
from bigctl.files import temporary_name

Finish = Callable[[Path], object]
"""What is done to a folder once its files are there and before it gets its name; an error leaves nothing."""


def as_it_is(folder: Path) -> None:
    """A `Finish` that does nothing."""


def require_new(folder: Path) -> None:
    """Raises ConfigError if a folder holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError("exists already", where=str(folder), hint="give another --out, or remove it first")


@contextmanager
def whole_or_nothing(folder: Path) -> Iterator[Path]:
    """A folder to write into, which gets its name once all is there.

    Raises:
        RunError: if it cannot be written, or the name has been taken meanwhile; nothing of that is changed.
    """
    partial = temporary_name(folder)
    try:
        partial.mkdir(parents=True)
        yield partial
        _named(partial, folder)
    except BigctlError as error:  # which is about a folder that nobody has heard of
        error.where = error.where and error.where.replace(str(partial), str(folder))
        raise
    except OSError as error:
        raise RunError(f"cannot be written: {error.strerror or error}", where=str(folder)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _named(partial: Path, folder: Path) -> None:
    try:
        partial.rename(folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            hint = "that was left as it is: give another name"
            raise RunError("has been made by another command meanwhile", where=str(folder), hint=hint) from error
        raise


def write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
