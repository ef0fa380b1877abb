"""Promises of `host_memory`: a training process keeps the memory of its steps."""

from __future__ import annotations

import os
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


SIZES = """
import ctypes, sys
from bigctl.parallel import host_memory

kept = host_memory.keep_memory()
libc = host_memory._malloc()

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

def touched(mib):
    block = libc.malloc(mib * 2**20)
    ctypes.memset(block, 1, mib * 2**20)
    return block

small, before = [], resident()
if sys.argv[1] == "apart":
    host_memory.set_apart()
for size in (80, 120, 160):
    for _ in range(2):
        step = touched(size)
        small += [libc.malloc(count) for count in (5_000, 70_000, 300_000)]
        libc.free(step)
print(int(kept), round(resident() - before))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="settings of glibc")
def test_steps_of_several_sizes_take_the_memory_of_the_largest():
    def grown(how: str) -> int:
        kept, mib = map(int, subprocess.check_output([sys.executable, "-c", SIZES, how], text=True).split())
        if not kept:
            pytest.skip("another malloc, or a machine with an accelerator")
        return mib

    assert grown("apart") < 200  # MiB: the largest step takes 160
    assert grown("as it comes") > 220


HOLES = """
import random, sys
from bigctl.parallel import host_memory

kept = host_memory.keep_memory()
libc = host_memory._malloc()
generator = random.Random(0)
blocks = [libc.malloc(int(2 ** generator.uniform(8, 16))) for _ in range(40_000)]
for block in blocks[::2]:
    libc.free(block)
host_memory.give_back()
holes = [host_memory._free_blocks()[0]]
host_memory.fill_holes(int(sys.argv[1]))
holes.append(host_memory._free_blocks()[0])
highest = max(blocks)
small, between, large = (libc.malloc(size) for size in (100_000, 30_000_000, 100 * 2**20))
for block in (small, between, large):
    libc.free(block)
filled = len(host_memory._filling)
host_memory.open_holes()
holes.append(host_memory._free_blocks()[0])
with open("/proc/self/statm") as file:
    mapped = int(file.read().split()[0]) * 4096 >> 20
print(int(kept), filled, *holes, int(min(small, between, large) > highest), len(host_memory._filling), mapped)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="settings of glibc")
@pytest.mark.parametrize("size", [8 * 2**20, 100 * 2**20, 3 * 2**30], ids=["small", "kept", "given back"])
def test_holes_that_a_compiler_leaves_are_not_searched_in_each_step(size: int) -> None:
    told = subprocess.check_output([sys.executable, "-c", HOLES, str(size)], text=True)
    kept, filled, before, between, after, above, left, mapped = map(int, told.split())
    if not kept or not before:
        pytest.skip("another malloc, an older glibc, or a machine with an accelerator")
    assert before > 15_000 and filled > 10_000
    assert above and between < before  # what steps take is where no holes are
    assert after > between and not left and mapped < 4096  # MiB, of which Python and the blocks take 1,200 at most


def test_holes_are_filled_again_whatever_was_compiled_last(monkeypatch: pytest.MonkeyPatch) -> None:
    filled: list[int] = []
    monkeypatch.setattr(host_memory, "_keeps", True)
    monkeypatch.setattr(host_memory, "_largest", 0)
    monkeypatch.setattr(host_memory, "_free_blocks", lambda: (filled.append(host_memory._largest), (0, 0))[1])
    for size in (1000, 2**28, 1000):  # a small evaluation before the step, and one after it
        host_memory.fill_holes(size)
    assert filled == [2**28, 2**28]


ARENAS = """
import ctypes, os, sys
from bigctl.cli.main import main
from bigctl.parallel import host_memory

told = os.environ["TOLD"]
code = main()
libc = ctypes.CDLL(None)
libc.fopen.restype, libc.fopen.argtypes = ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_char_p]
libc.malloc_info.argtypes, libc.fclose.argtypes = [ctypes.c_int, ctypes.c_void_p], [ctypes.c_void_p]
file = libc.fopen(told.encode(), b"w")
libc.malloc_info(0, file)
libc.fclose(file)
print(code, int(host_memory.keeps()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="settings of glibc")
def test_all_threads_of_a_command_take_memory_from_one_arena(tmp_path):
    """Of any other glibc gives large blocks back to the kernel after each step."""
    told = tmp_path / "arenas.xml"
    for words in (["train", "recipe=mlp_cls", "data=breast_cancer", "train.steps=4", "--run-dir=run"], ["eval", "run"]):
        ran = subprocess.check_output(
            [sys.executable, "-c", ARENAS, *words, "--json"], text=True, cwd=tmp_path, env={**os.environ, "TOLD": told}
        )
        code, kept = map(int, ran.splitlines()[-1].split())
        assert code == 0
        if not kept:
            pytest.skip("another malloc, or a machine with an accelerator")
        assert told.read_text().count("<heap nr=") == 1, words


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="settings of glibc")
def test_so_do_those_of_a_training_from_python(tmp_path):
    told = tmp_path / "arenas.xml"
    code = ARENAS.replace("code = main()", "import bigctl\ncode = 0\nbigctl.train(bigctl.compose(sys.argv[1:]), 'run')")
    words = ["recipe=mlp_cls", "data=breast_cancer", "train.steps=4"]
    ran = subprocess.check_output(
        [sys.executable, "-c", code, *words], text=True, cwd=tmp_path, env={**os.environ, "TOLD": told}
    )
    if ran.splitlines()[-1] == "0 0":
        pytest.skip("another malloc, or a machine with an accelerator")
    assert told.read_text().count("<heap nr=") == 1


def test_memory_is_kept_before_a_thread_is_started(tmp_path, monkeypatch):
    seen: list[list[str]] = []
    monkeypatch.setattr(
        host_memory, "keep_memory", lambda: seen.append([thread.name for thread in threading.enumerate()])
    )
    composed = compose.compose(["recipe=mlp_cls", "data=breast_cancer"])
    with open_run.opened(composed, tmp_path / "run", Options()):
        assert "signals" in [thread.name for thread in threading.enumerate()]
    assert len(seen) == 1 and "signals" not in seen[0]
