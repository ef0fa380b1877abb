"""Which files are not as they were when a run began, for data that is known to be another: its fingerprint tells that
much, and not where."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from bigctl.config.schema import Data
from bigctl.data import catalog
from bigctl.data.files.paths import some
from bigctl.errors import DataError

MOST = 4096
"""Files that are remembered; of more the first."""

Known = dict[str, dict[str, list[int]]]
"""Key that leads to files -> path -> its size [bytes] and time of change [ns]."""


def known(config: Data) -> Known:
    """The files of data as they are now; empty where its source tells none, or they cannot be found."""
    found: Known = {}
    try:
        for count, (key, file) in enumerate(catalog.files(config)):
            if count >= MOST:
                break
            status = os.stat(file)
            found.setdefault(key, {})[str(file)] = [status.st_size, status.st_mtime_ns]
    except (DataError, OSError):
        return {}
    return found


def told(before: object, config: Data) -> str:
    """What has changed since then, as ": web.bin (data.corpora.web) has another size"; empty where that is not known.

    Args:
        before: what `known` gave when the run began, as run.json has it.
    """
    now, found = known(config), list[str]()
    for key, files in now.items():
        then = before.get(key) if isinstance(before, Mapping) else None
        if not isinstance(then, Mapping) or not then:
            continue
        if not {*then} & {*files}:  # it has been moved as a whole
            then, files = ({Path(file).name: status for file, status in side.items()} for side in (then, files))
        where = "" if key == "data.path" else f" ({key})"
        found += [f"{file}{where} is not there any more" for file in then if file not in files]
        found += [f"{file}{where} {how}" for file, status in files.items() if (how := _how(then.get(file), status))]
    return f": {some(sorted(found, key=lambda each: 'time' in each), 3)}" if found else ""


def _how(then: object, now: list[int]) -> str:
    if not isinstance(then, list) or len(then) != 2:
        return "is new"
    if then[0] != now[0]:
        return f"had {then[0]:,} bytes and has {now[0]:,}"
    return "has another time of change" if then[1] != now[1] else ""
