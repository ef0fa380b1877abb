"""Patterns that a user gives, searched for in the paths of parameters."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import lru_cache

from bigctl.errors import ConfigError

_SECONDS = 3
_SEARCH = """
import json, re, sys
pattern, names = json.load(sys.stdin)
search = re.compile(pattern).search
print(json.dumps([bool(search(name)) for name in names]))
"""


@lru_cache(maxsize=64)
def found_in(pattern: str, names: tuple[str, ...]) -> tuple[bool, ...]:
    """Whether a regular expression is found in each of some names.

    Some patterns, such as `(a+)+b`, take time exponential in the length of a name, and nothing stops the search from
    within. Where the looks of one do not rule that out, a process of its own does it, which is ended in time.

    Raises:
        ConfigError: where it takes too long.
    """
    if is_quick(pattern):
        return tuple(bool(re.search(pattern, name)) for name in names)
    command = [sys.executable, "-I", "-S", "-c", _SEARCH]
    try:
        done = subprocess.run(
            command, input=json.dumps([pattern, names]).encode(), capture_output=True, timeout=_SECONDS, check=True
        )
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        raise ConfigError(
            f"{pattern!r} takes more than {_SECONDS} s to search for in the paths of the parameters",
            where="optimizer.freeze",
            hint="a plain part of a path will do, such as embeddings",
        ) from error
    return tuple(json.loads(done.stdout))


def is_quick(pattern: str) -> bool:
    """Whether a pattern cannot take long by its looks: at most two repetitions, none of them of a group."""
    plain = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "x", pattern)  # escapes and sets of characters
    return len(re.findall(r"[*+{]", plain)) <= 2 and not re.search(r"\)[*+?{]", plain)
