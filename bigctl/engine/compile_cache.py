"""Compiled programs, kept between starts."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import jax
from jaxlib import version as jaxlib_version

from bigctl.cache_root import cache_root
from bigctl.runs import provenance

log = logging.getLogger("bigctl")


def use_compile_cache() -> Path | None:
    """Keep compiled programs in a folder of this jaxlib and processor that only the user can write.

    Whoever can write such a folder can run code as its reader, so one that others can write is not used.
    """
    host = provenance.digest(provenance.cpu() + os.environ.get("XLA_FLAGS", ""))
    folder = cache_root() / "compiled" / f"jaxlib-{jaxlib_version.__version__}-{host}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for private in (folder.parent, folder):
            found = private.stat()
            if found.st_uid != os.getuid():
                log.warning("compiled programs are not kept: %s belongs to another user", private)
                return None
            if stat.S_IMODE(found.st_mode) & 0o077:
                private.chmod(0o700)
    except OSError as error:
        log.warning("compiled programs are not kept: %s: %s", folder, error.strerror)
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_compilation_cache_max_size", 2 * 2**30)
    return folder
