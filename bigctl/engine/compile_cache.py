"""Compiled programs, kept between starts."""

from __future__ import annotations

import logging
import os
import stat
import time
from pathlib import Path

import jax
from jaxlib import version as jaxlib_version

from bigctl.cache_root import cache_root
from bigctl.runs import provenance

log = logging.getLogger("bigctl")

LIMIT = 2 * 2**30
"""Bytes of all programs, of every jaxlib, beyond which those that were not used for longest are removed."""
DAY = 24 * 60 * 60


def use_compile_cache() -> Path | None:
    """Keep compiled programs in a folder of this jaxlib and processor that only the user can write.

    Whoever can write such a folder, or put another in place of one above it, can run code as its reader: where that is
    so anywhere below the root of the cache, or at the root itself, nothing is kept.
    """
    host = provenance.digest(provenance.cpu() + os.environ.get("XLA_FLAGS", ""))
    folder = cache_root() / "compiled" / f"{host}-jaxlib-{jaxlib_version.__version__}"
    try:
        folder.parents[1].mkdir(parents=True, exist_ok=True)
        for private in (folder.parent, folder):
            private.mkdir(exist_ok=True, mode=0o700)
        if problem := _problem(folder.parents[1].resolve()):
            log.warning("compiled programs are not kept: %s %s", folder.parents[1], problem)
            return None
        for private in (folder.parent, folder):
            if problem := _problem(private, private=True):
                log.warning("compiled programs are not kept: %s %s", private, problem)
                return None
        _remove_unused(folder.parent)
    except OSError as error:
        log.warning("compiled programs are not kept: %s: %s", folder, error.strerror)
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.02)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


def _remove_unused(compiled: Path) -> None:
    """Once a day. Given the limit, jax would look at every program that is there each time it keeps one, under a lock:
    for half a second where there are four thousand."""
    looked, now = compiled / ".looked", time.time()
    if looked.exists() and 0 <= now - looked.stat().st_mtime < DAY:
        return
    looked.touch()
    folders = [folder for folder in compiled.iterdir() if stat.S_ISDIR(folder.lstat().st_mode)]
    programs = [(path, path.lstat()) for folder in folders for path in folder.glob("jit*")]
    size = sum(found.st_size for _, found in programs)
    if size <= LIMIT:
        return
    for path, found in sorted(programs, key=lambda program: max(program[1].st_atime, program[1].st_mtime)):
        path.unlink(missing_ok=True)  # jax compiles what it cannot read
        size -= found.st_size
        if size <= LIMIT * 3 // 4:
            return


def _problem(folder: Path, *, private: bool = False) -> str:
    """Who else could put something there; empty if nobody can. A private folder of ours is closed to all others."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        return "is a link, or no folder"
    if private:
        if found.st_uid != os.getuid():
            return "belongs to another user"
        if stat.S_IMODE(found.st_mode) & 0o077:
            folder.chmod(0o700)
        return ""
    if found.st_uid not in (os.getuid(), 0):
        return "belongs to another user"
    if found.st_mode & stat.S_ISVTX:  # as in /tmp: what is in it can be replaced by its owner alone
        return ""
    own_group = found.st_gid == os.getuid()  # the group that many systems give each user for itself
    others = found.st_mode & (stat.S_IWOTH if own_group else stat.S_IWOTH | stat.S_IWGRP)
    return "can be written by other users" if others else ""
