"""The ledger of wall time: what a start leaves however it ends, and what all of them come to."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bigctl.cli.main import main
from bigctl.runs import goodput, listing
from bigctl.runs.directory import RunDirectory


def entry(first: int, last: int, **parts: float) -> dict[str, object]:
    return {"begun": 1e9, "first": first, "last": last, "parts": parts}


def run_with(folder: Path, *starts: object) -> RunDirectory:
    run = RunDirectory(folder)
    run.goodput.write_text(json.dumps({"starts": starts}))
    return run


def test_steps_that_are_made_again_are_lost(tmp_path: Path) -> None:
    run = run_with(
        tmp_path,
        entry(0, 100, steps=50.0, saving=10.0),
        entry(80, 80, steps=5.0),
        entry(80, 200, steps=60.0, finish=5.0),
    )
    found = goodput.of_run(run)
    assert found is not None and (found.starts, found.wall, found.lost) == (3, 130, 10)
    assert found.share == pytest.approx((115 - 10) / 130) and sum(found.parts.values()) == found.wall
    assert (
        found.said
        == "81% of 2:10 in 3 starts: steps 1:55, saving 0:10, finish 0:05, of the steps lost to restarts 0:10"
    )


def test_a_list_of_runs_tells_the_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("known", "unknown"):
        (tmp_path / name).mkdir()
        RunDirectory(tmp_path / name).update_record(status="complete", config_hash="0", recipe="mlp_cls")
    run_with(tmp_path / "known", entry(0, 100, steps=30.0, compiling=10.0))
    shares = {row.name: row.goodput for row in listing.rows(tmp_path)}
    assert shares == {"known": pytest.approx(0.75), "unknown": None}
    assert main(["runs", "--root", str(tmp_path)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "status", "recipe", "step", "best", "goodput", "age"]
    assert ["75%" in line for line in sorted(lines)] == [True, False]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"starts": 3}', '{"starts": []}', '{"starts": [{"first": -1}]}'])
def test_a_damaged_ledger_is_none(tmp_path: Path, content: str) -> None:
    run = RunDirectory(tmp_path)
    assert goodput.of_run(run) is None
    run.goodput.write_text(content)
    assert goodput.of_run(run) is None


def test_what_is_on_disk_is_never_far_behind_and_adds_up(tmp_path: Path) -> None:
    run = run_with(tmp_path, entry(0, 10, steps=1.0))
    began, parts = time.monotonic() - 2, {"compiling": 0.25, "saving": 0.05}
    with goodput.kept(run, began, 5, lambda: (parts, 7)):
        time.sleep(0.4)
        found = goodput.of_run(run)  # as a kill would leave it here
        assert found is not None and found.starts == 2 and found.lost == pytest.approx(0.5)
        assert found.parts["start-up"] == pytest.approx(2, abs=0.2) and found.parts["compiling"] == 0.25
    goodput.finished(run, began)
    found = goodput.of_run(run)
    assert found is not None and found.wall - 1 == pytest.approx(time.monotonic() - began, abs=0.2)
    assert [path.name for path in tmp_path.iterdir()] == ["goodput.json"]


def test_a_command_counts_from_the_start_of_its_process() -> None:
    late = "import time; time.sleep(0.5); from bigctl.cli import main; print(time.monotonic() - main.STARTED)"
    told = subprocess.run([sys.executable, "-c", late], capture_output=True, text=True, check=True, timeout=60).stdout
    assert 0.5 < float(told) < 50


def test_a_process_that_follows_keeps_none(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, writes=False)
    with goodput.kept(run, time.monotonic(), 0, lambda: ({}, 0)):
        time.sleep(0.2)
    assert not run.goodput.exists()


@pytest.mark.parametrize("part", [None, -5.0])
def test_a_ledger_with_a_part_that_is_no_time_ends_no_training(tmp_path: Path, part: float | None) -> None:
    run = run_with(tmp_path, {**entry(0, 10), "parts": {"steps": part, "saving": 2.0}})
    goodput.finished(run, time.monotonic() - 5)
    found = goodput.of_run(run)
    assert found is not None and found.parts["steps"] == 0 and found.parts["finish"] == pytest.approx(3, abs=0.2)
