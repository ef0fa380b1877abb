"""What the processes of a sweep compile: each program once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bigctl.errors import ConfigError
from bigctl.sweeps.packed import compiling

PROCESS = """
import sys, time
from pathlib import Path
from bigctl.sweeps.packed import compiling
folder, me = Path(sys.argv[1]), sys.argv[2]
def part(name):
    def compile():
        first = not (folder / name).exists()
        if first:
            (folder / name).touch()
            time.sleep(0.5)
        with (folder / "log").open("a") as log:
            log.write(f"{me} {name} {'compiles' if first else 'reads'}\\n")
    return compile
(folder / f"ready-{me}").touch()
while len(list(folder.glob("ready-*"))) < 2:
    time.sleep(0.01)
compiling.compile_all({name: part(name) for name in "abc"}, folder)
"""


def test_each_program_is_compiled_by_one_process_and_found_by_the_other(tmp_path: Path) -> None:
    both = [subprocess.Popen([sys.executable, "-c", PROCESS, str(tmp_path), me]) for me in ("one", "two")]
    assert [process.wait(60) for process in both] == [0, 0]
    log = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    for name in "abc":
        assert sorted(did for _, what, did in log if what == name) == ["compiles", "reads"]
    assert len({who for who, _, did in log if did == "compiles"}) == 2, "one has done all of it"


def test_a_process_that_is_killed_while_it_compiles_holds_up_nobody(tmp_path: Path) -> None:
    lives = "import sys, time; from pathlib import Path; from bigctl.sweeps.packed import compiling\n"
    lives += "def part():\n    print('compiling', flush=True)\n    time.sleep(600)\n"
    lives += "compiling.compile_all({'a': part}, Path(sys.argv[1]))"
    with subprocess.Popen([sys.executable, "-c", lives, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "compiling\n"
        other.kill()
    done: list[str] = []
    compiling.compile_all({"a": lambda: done.append("a")}, tmp_path)
    assert done == ["a"]


def test_one_that_waits_for_another_stops_waiting_when_it_is_asked_to(tmp_path: Path) -> None:
    asked: list[bool] = []

    def waits() -> None:
        def stopped() -> bool:
            asked.append(True)
            return len(asked) > 5

        compiling.compile_all({"a": lambda: asked.clear()}, tmp_path, stopped=stopped)

    compiling.compile_all({"a": waits}, tmp_path)
    assert len(asked) > 5, "it went on, though the other has it still"


@pytest.mark.parametrize("folder", [None, Path("no/such/folder")])
def test_where_no_lock_can_be_had_all_is_compiled_and_what_fails_is_left_to_the_trials(folder: Path | None) -> None:
    done: list[str] = []

    def refused() -> None:
        raise ConfigError("there is no memory for it", where="packed trials")

    compiling.compile_all({"a": refused, "b": lambda: done.append("b")}, folder)
    assert done == ["b"]
