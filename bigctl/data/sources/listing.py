"""What lies in folders of pictures, and that it is the same as before without looking at each file again.

A file that comes, goes or gets another name changes its folder. So what was found is kept with the times of all
folders, and stands as long as these are what they were. That a file has another content than before is seen when it is
read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bigctl.cache_root import cache_root
from bigctl.data.files import file_index
from bigctl.data.files.paths import fingerprint_folder
from bigctl.data.sources import image_decoding
from bigctl.errors import DataError
from bigctl.files import expanded, write_text

_LOOKED_AT = 1000
"""Pictures at most whose shapes are read."""
_SETTLED = 2.0
"""Age from which on the time of a folder is certain to change with it: times are as coarse as this somewhere [s]."""


@dataclass(frozen=True)
class Listing:
    """What lies in some folders.

    Attributes:
        prints: `fingerprint_folder` of each, None where none is given.
        pictures: files that are pictures by their suffix.
        first: (height, width) of the first of them; (0, 0) where there is none, or it cannot be read.
    """

    prints: tuple[str | None, ...]
    pictures: int
    first: tuple[int, int]


def place(paths: Sequence[str | None]) -> Path:
    """Where the listing of some folders is kept."""
    named = json.dumps([None if path is None else str(expanded(path).absolute()) for path in paths])
    return cache_root() / "data" / "listings" / f"{hashlib.sha256(os.fsencode(named)).hexdigest()[:16]}.json"


def take(paths: Sequence[str | None]) -> Listing:
    """What lies in some folders now, every file of which is looked at. Raises DataError where one is missing."""
    began, files, folders = time.time(), list[Path](), list[str]()
    prints = tuple(fingerprint_folder(expanded(path), files, folders) if path else None for path in paths)
    pictures = [file for file in files if image_decoding.is_image_name(file)]
    found = Listing(prints, len(pictures), _shape(pictures[0]) if pictures else (0, 0))
    _keep(found, paths, folders, began)
    return found


def recall(paths: Sequence[str | None]) -> Listing | None:
    """What was found before, if no folder has changed since; None where files are to be looked at anew."""
    if not file_index.trusted():
        return None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(place(paths).read_text(encoding="utf-8"))
        if all(os.stat(folder).st_mtime_ns == changed for folder, changed in kept["folders"].items()):
            return Listing(tuple(kept["prints"]), int(kept["pictures"]), (int(kept["first"][0]), int(kept["first"][1])))
    return None


def common_ratio(path: str) -> float:
    """Height over width of most pictures in a folder: the median of a thousand of them, spread evenly over all.

    1 where portrait and landscape pictures are mixed, fewer than two thirds being one of both; no further from 1 than
    2 either way. Raises DataError where the folder is missing.
    """
    files: list[Path] = []
    fingerprint_folder(expanded(path), files)
    pictures = [file for file in files if image_decoding.is_image_name(file)]
    shapes = [shape for file in pictures[:: -(-len(pictures) // _LOOKED_AT) or 1] if min(shape := _shape(file)) > 0]
    if not shapes:
        return 1.0
    ratio = statistics.median(height / width for height, width in shapes)
    alike = sum((height - width) * (ratio - 1) > 0 for height, width in shapes)
    return min(max(ratio, 0.5), 2.0) if 3 * alike >= 2 * len(shapes) else 1.0


def _keep(found: Listing, paths: Sequence[str | None], folders: Sequence[str], began: float) -> None:
    """Keep a listing, unless a folder has changed so lately that its next change might not be seen."""
    with contextlib.suppress(OSError, UnicodeError):
        times = {os.path.abspath(folder): os.stat(folder).st_mtime_ns for folder in folders}
        file = place(paths)
        if max(times.values(), default=0) > (began - _SETTLED) * 1e9:
            file.unlink(missing_ok=True)
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        kept = {"prints": found.prints, "pictures": found.pictures, "first": found.first, "folders": times}
        write_text(file, json.dumps(kept))


def _shape(file: Path) -> tuple[int, int]:
    with contextlib.suppress(DataError):
        return image_decoding.header(file, str(file))[0]
    return 0, 0
