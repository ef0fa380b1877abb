"""Promises of `host_memory`: a training process keeps the memory of its steps."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from bigctl.config import compose
from bigctl.engine import open_run
from bigctl.engine.run import Options
from bigctl.parallel import host_memory

TOUCHED = """
import ctypes, resource, sys, threading
from bigctl.parallel import host_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
kept = host_memory.keep_memory()

def step():
    for _ in range(6):
        before = faults()
        block = libc.malloc(96 * 2**20)
        ctypes.memset(block, 1, 96 * 2**20)
        libc.free(block)
        found.append(faults() - before)

found = []
worker = threading.Thread(target=step)
worker.start()
worker.join()
print(int(kept), found[-1])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="settings of glibc")
def test_a_block_that_a_thread_takes_again_is_the_same_pages():
    kept, faults = map(int, subprocess.check_output([sys.executable, "-c", TOUCHED], text=True).split())
    if not kept:
        pytest.skip("another malloc, or a machine with an accelerator")
    assert faults < 24_576 / 10  # pages of 4 KiB


def test_memory_is_kept_before_a_thread_is_started(tmp_path, monkeypatch):
    seen: list[list[str]] = []
    monkeypatch.setattr(
        host_memory, "keep_memory", lambda: seen.append([thread.name for thread in threading.enumerate()])
    )
    composed = compose.compose(["recipe=mlp_cls", "data=breast_cancer"])
    with open_run.opened(composed, tmp_path / "run", Options()):
        assert "signals" in [thread.name for thread in threading.enumerate()]
    assert len(seen) == 1 and "signals" not in seen[0]
