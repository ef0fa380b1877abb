"""How much memory there is: what can be seen not to fit is refused before it is begun."""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

from bigctl.errors import DataError
from bigctl.formatting import size

_GROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_USED = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")


def limit() -> int:
    """Bytes that this process could have at most: of the machine with its swap, of its container, of `ulimit -v`. A
    bound that is certain, not what is free at the moment; 2^63 - 1 where nothing tells."""
    found = [2**63 - 1]
    with contextlib.suppress(OSError, ValueError):
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        found.append(sum(1024 * int(lines[name].split()[0]) for name in ("MemTotal", "SwapTotal") if name in lines))
    if len(found) == 1:
        with contextlib.suppress(OSError, ValueError):
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for file in _GROUPS:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            found.append(int(Path(file).read_text(encoding="ascii")))
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    if soft != resource.RLIM_INFINITY:
        found.append(soft)
    return min(number for number in found if number > 0)


def available() -> int:
    """Bytes that are free at the moment, or could be freed at once, on the machine and in its container."""
    found = [limit()]
    with contextlib.suppress(OSError, ValueError):
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        found += [1024 * int(lines["MemAvailable"].split()[0])] if "MemAvailable" in lines else []
    for most, used in zip(_GROUPS, _USED, strict=True):
        with contextlib.suppress(OSError, ValueError):
            taken = int(Path(used).read_text(encoding="ascii")) - _cached(Path(used).with_name("memory.stat"))
            found.append(int(Path(most).read_text(encoding="ascii")) - taken)
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    if soft != resource.RLIM_INFINITY:
        with contextlib.suppress(OSError, ValueError):
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
            found.append(soft - pages * os.sysconf("SC_PAGE_SIZE"))
    return max(0, min(found))


def _cached(stat: Path) -> int:
    """Bytes of files that a container holds in memory and can let go of; 0 where it does not tell."""
    with contextlib.suppress(OSError, ValueError):
        lines = dict(line.split() for line in stat.read_text(encoding="ascii").splitlines())
        return int(lines.get("total_inactive_file") or lines.get("inactive_file") or 0)
    return 0


def require(count: int, what: str, *, where: str) -> None:
    """Raises DataError where so many bytes are more than there are: "WHERE: WHAT needs ..."."""
    if count > (most := limit()):
        message = f"{what} needs {size(count)} of memory, and there are {size(most)}"
        raise DataError(message, where=where, hint="is it the right file? or take a part of it")
