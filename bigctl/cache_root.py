"""Where what can be made or fetched again is kept: prepared data, downloads, tokenizers, compiled programs."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from bigctl.files import expanded


def cache_root() -> Path:
    """$BIGCTL_CACHE_DIR, else bigctl/ in the user's cache folder. It need not exist.

    A user without a home, as a bare number in a container is one, has a folder of its own among the temporary ones.
    """
    own = os.environ.get("BIGCTL_CACHE_DIR")
    if own:
        return expanded(own)
    user = expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if user.parts[:1] == ("~",):
        return Path(tempfile.gettempdir(), f"bigctl-{os.getuid()}")
    return user / "bigctl"
