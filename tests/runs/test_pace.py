"""How long a run still takes, by what it has written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bigctl.runs import pace
from bigctl.runs.directory import RunDirectory

RECORD = {"steps": 100, "starts": [{"time": 1000.0, "step": 0}]}


def _run(folder: Path, lines: list[dict[str, float]], *, written: float) -> RunDirectory:
    run = RunDirectory(folder)
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9')
    os.utime(run.metrics, (written, written))
    return run


def test_time_left_goes_by_the_clock_of_the_last_process(tmp_path: Path) -> None:
    lines = [{"step": 10 * k, "perf/elapsed_s": 3.0 * k} for k in range(1, 4)]
    lines += [{"step": 40 + 10 * k, "perf/elapsed_s": 5.0 + 2.0 * k} for k in range(2)] + [{"step": 50, "val/loss": 1}]
    found = pace.of_run(_run(tmp_path, lines, written=2000.0), RECORD, now=2001.0)
    assert found is not None and (found.step, found.total) == (50, 100)
    assert found.remaining == pytest.approx(50 * 0.2 - 1)
    assert found.said == "step 50 of 100, about 0:09 left"


def test_run_of_an_earlier_version_goes_by_its_start(tmp_path: Path) -> None:
    run = _run(tmp_path, [{"step": 20, "train/loss": 1.0}], written=1010.0)
    found = pace.of_run(run, RECORD, now=1010.0)
    assert found is not None and found.remaining == pytest.approx(80 * 0.5)


@pytest.mark.parametrize("record", [{}, {"steps": None}, {"steps": 0}])
def test_without_a_length_there_is_no_pace(tmp_path: Path, record: dict[str, int]) -> None:
    assert pace.of_run(RunDirectory(tmp_path), record) is None


def test_nothing_is_promised_before_anything_is_logged(tmp_path: Path) -> None:
    found = pace.of_run(RunDirectory(tmp_path), {"steps": 7})
    assert found is not None and (found.said, found.remaining) == ("step 0 of 7", None)
