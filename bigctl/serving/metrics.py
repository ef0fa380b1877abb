"""Counters of a server in the text format of Prometheus (exposition format 0.0.4)."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_STARTED = time.time()
Samples = Iterable[tuple[dict[str, str], float]]


class Metrics:
    """How many requests there were, and how long they took [s]; of the event loop's thread alone."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()
        self._buckets = [0] * (len(_BOUNDS) + 1)
        self._seconds = 0.0
        self.in_flight = 0

    def count(self, path: str, status: int, seconds: float) -> None:
        """A request has been answered; `path` is that of a route, for there are few of these."""
        self._requests[path, status] += 1
        place = next((place for place, bound in enumerate(_BOUNDS) if seconds <= bound), len(_BOUNDS))
        self._buckets[place] += 1
        self._seconds += seconds

    def text(self, gauges: dict[str, tuple[str, str, Samples]]) -> str:
        """Everything, with what others know: name -> (type, help, samples)."""
        requests = [({"path": path, "status": str(status)}, n) for (path, status), n in sorted(self._requests.items())]
        lines = _family("bigctl_requests_total", "counter", "requests answered", requests)
        lines += _family("bigctl_requests_in_flight", "gauge", "requests being answered", [({}, self.in_flight)])
        lines += ["# HELP bigctl_request_seconds time of a request", "# TYPE bigctl_request_seconds histogram"]
        total = 0
        for bound, n in zip((*map(str, _BOUNDS), "+Inf"), self._buckets, strict=True):
            total += n
            lines.append(f'bigctl_request_seconds_bucket{{le="{bound}"}} {total}')
        lines += [f"bigctl_request_seconds_sum {self._seconds:.6f}", f"bigctl_request_seconds_count {total}"]
        for name, (kind, said, samples) in gauges.items():
            lines += _family(name, kind, said, samples)
        return "\n".join(lines) + "\n"


def of_process() -> dict[str, tuple[str, str, Samples]]:
    """What Prometheus' own clients tell of a process, where the system does."""
    found: dict[str, tuple[str, str, Samples]] = {
        "process_cpu_seconds_total": ("counter", "time on processors", [({}, time.process_time())]),
        "process_start_time_seconds": ("gauge", "when it began", [({}, _STARTED)]),
    }
    with contextlib.suppress(OSError, ValueError, IndexError):
        resident = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
        found["process_resident_memory_bytes"] = ("gauge", "memory in use", [({}, resident)])
        found["process_open_fds"] = ("gauge", "open files", [({}, len(os.listdir("/proc/self/fd")))])
    return found


def _family(name: str, kind: str, said: str, samples: Samples) -> list[str]:
    lines = [f"# HELP {name} {said}", f"# TYPE {name} {kind}"]
    for labels, value in samples:
        inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        lines.append(f"{name}{{{inner}}} {value:.15g}" if inner else f"{name} {value:.15g}")
    return lines


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
