"""What a training takes of its machine is sampled where it logs."""

from __future__ import annotations

import mmap
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bigctl.training.usage import Usage

MIB = 1 << 20


def _device(**stats: int) -> Any:
    return SimpleNamespace(memory_stats=lambda: stats or None)


def test_memory_is_what_the_kernel_says() -> None:
    usage = Usage([])
    before = usage.sample()["perf/memory_mib"]
    with mmap.mmap(-1, 80 * MIB) as held:  # from the kernel: an array may be given what was freed before
        held.write(b"1" * len(held))
        found = usage.sample()
        told = int(re.findall(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1024
    assert found["perf/memory_mib"] == pytest.approx(told, rel=0.05)
    assert found["perf/memory_mib"] - before > 75


def test_cpu_counts_work_and_not_sleep() -> None:
    usage = Usage([])
    time.sleep(0.2)
    assert usage.sample()["perf/cpu_percent"] < 50
    busy = time.process_time() + 0.1
    while time.process_time() < busy:
        pass
    found = usage.sample()
    wall = found["perf/elapsed_s"] - 0.2
    assert found["perf/cpu_percent"] > 0 and found["perf/cpu_percent"] * wall / 100 > 0.08


def test_the_fullest_device_counts_and_one_without_an_account_does_not() -> None:
    devices = [
        _device(bytes_in_use=3 * MIB, peak_bytes_in_use=9 * MIB),
        _device(bytes_in_use=5 * MIB, peak_bytes_in_use=7 * MIB),
        _device(),
    ]
    found = Usage(devices).sample()
    assert (found["perf/device_memory_mib"], found["perf/device_memory_peak_mib"]) == (5, 9)
    assert not [name for name in Usage([_device()]).sample() if "device" in name]
