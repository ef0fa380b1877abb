"""What a training takes of its machine, sampled where it logs: CPU, memory, memory of the devices.

Some microseconds a sample: a few numbers that the kernel and the devices' allocators keep anyway. No thread, and no
step is waited for.
"""

from __future__ import annotations

import io
import os
import resource
import sys
import time
from collections.abc import Sequence

import jax

_MIB = 1 << 20


class Usage:
    """Samples of this process, as metrics of `perf/`.

    `perf/elapsed_s` is the time since the first step of this process was begun; `perf/cpu_percent` the CPU time since
    the sample before, 100 for one core in full use; `perf/memory_mib` what is resident. Of the local devices the
    fullest one counts: `perf/device_memory_mib` is in use, `perf/device_memory_peak_mib` the most that ever was. A
    device that keeps no such account, as a CPU, has neither.
    """

    def __init__(self, devices: Sequence[jax.Device] | None = None):
        self._devices = [d for d in (jax.local_devices() if devices is None else devices) if d.memory_stats()]
        self._began = self._then = time.monotonic()
        self._busy = time.process_time()
        try:
            self._pages: io.FileIO | None = io.FileIO("/proc/self/statm")  # kept open: opening it takes the most time
        except OSError:
            self._pages = None

    def sample(self) -> dict[str, float]:
        now, busy = time.monotonic(), time.process_time()
        share = (busy - self._busy) / max(now - self._then, 1e-6)
        self._then, self._busy = now, busy
        found = {"perf/elapsed_s": round(now - self._began, 3), "perf/cpu_percent": round(100 * share, 1)}
        found["perf/memory_mib"] = round(self._resident() / _MIB, 1)
        stats = [stats for device in self._devices if (stats := device.memory_stats())]
        for name, key in (("device_memory", "bytes_in_use"), ("device_memory_peak", "peak_bytes_in_use")):
            if known := [each[key] for each in stats if key in each]:
                found[f"perf/{name}_mib"] = round(max(known) / _MIB, 1)
        return found

    def _resident(self) -> int:
        """Bytes of this process in memory; where only the most that ever were is told, that."""
        if self._pages is not None:
            self._pages.seek(0)
            return int(self._pages.read(256).split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
