"""Where data that is prepared, fetched or compiled once is kept between commands."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """Where prepared data lives: $BIGCTL_CACHE_DIR, else bigctl/ in the user's cache folder."""
    own = os.environ.get("BIGCTL_CACHE_DIR")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "bigctl"
