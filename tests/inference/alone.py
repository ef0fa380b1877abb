"""Runs the `run.py` of an export where nothing can be imported but the packages that it says it needs, and theirs:
`python alone.py FOLDER/run.py ...`."""

from __future__ import annotations

import importlib.abc
import re
import runpy
import sys
from collections.abc import Sequence
from importlib import metadata
from types import ModuleType


def named(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def with_theirs(needed: Sequence[str]) -> set[str]:
    """The packages, and all that these require."""
    found, waiting = set[str](), [named(each) for each in needed]
    while waiting:
        one = waiting.pop()
        if one in found:
            continue
        found.add(one)
        try:
            required = metadata.requires(one) or []
        except metadata.PackageNotFoundError:  # of another platform or Python
            continue
        plain = (re.match(r"[\w.-]+", each) for each in required if "extra ==" not in each)
        waiting += [named(match[0]) for match in plain if match]
    return found


class NothingElse(importlib.abc.MetaPathFinder):
    """Refuses modules of all other packages that are installed, and those of bigctl."""

    def __init__(self, allowed: set[str]):
        owners = metadata.packages_distributions()
        self.refused = {"bigctl"} | {name for name, of in owners.items() if not allowed & {named(one) for one in of}}

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if fullname.partition(".")[0] in self.refused:
            raise ModuleNotFoundError(f"No module named {fullname!r}: run.py does not say that it needs it")


if __name__ == "__main__":
    del sys.argv[0]
    with open(sys.argv[0], encoding="utf-8") as script:
        needs = re.search(r"^Needs (.+); see", script.read(), re.MULTILINE)
    assert needs is not None
    sys.meta_path.insert(0, NothingElse(with_theirs(needs[1].split(", "))))
    runpy.run_path(sys.argv[0], run_name="__main__")
