"""Where what can be made or fetched again is kept: prepared data, downloads, tokenizers, compiled programs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """$BIGCTL_CACHE_DIR, else bigctl/ in the user's cache folder. It need not exist."""
    own = os.environ.get("BIGCTL_CACHE_DIR")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "bigctl"
