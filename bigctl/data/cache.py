"""All prepared data sets on this disk, as `prepare` left them."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bigctl.data.prepare import cache_root, disk_size

_ABANDONED = 86400.0
"""Age at which what a preparation left behind half made is taken to be nobody's [s]."""


_DIGESTS = re.compile(r"-[0-9a-f]{16}(-[0-9a-f]{8})*$")


@dataclass(frozen=True)
class Prepared:
    """One cache folder. Several of them have one label where a data set was prepared with different splits or sizes.

    Attributes:
        label: name of the data set or stem of the file, the folder's name without its digest.
        when: seconds since the epoch, 0 where the folder is damaged.
    """

    label: str
    path: Path
    bytes: int
    kind: str
    when: float


def prepared() -> list[Prepared]:
    """Every cache folder, damaged ones among them, sorted by label."""
    found = []
    for folder in _folders():
        try:
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            kind, when = str(meta["features"]["kind"]), float(meta["prepared"])
        except (OSError, ValueError, KeyError, TypeError):
            kind, when = "damaged", 0.0
        found.append(Prepared(_DIGESTS.sub("", folder.name), folder, disk_size(folder), kind, when))
    return sorted(found, key=lambda p: (p.label, -p.when))


def clean_all() -> int:
    """Delete every cache folder, and what interrupted preparations left behind; gives the bytes freed."""
    freed = 0
    for folder in [*_folders(), *_leftovers()]:
        freed += disk_size(folder)
        shutil.rmtree(folder, ignore_errors=True)
        freed -= disk_size(folder)
    return freed


def _folders() -> Iterator[Path]:
    root = cache_root() / "data"
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if (folder / "meta.json").is_file() and not folder.name.startswith("."):
            yield folder


def _leftovers() -> Iterator[Path]:
    root = cache_root() / "data"
    for folder in root.glob(".*-*.*") if root.is_dir() else []:
        if folder.is_dir() and folder.stat().st_mtime < time.time() - _ABANDONED:
            yield folder
