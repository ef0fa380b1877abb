"""`bigctl verify-resume`: true processes are killed, and what they end as is compared."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from bigctl.cli.main import main
from bigctl.engine import crash_test
from bigctl.engine.crash_test import CrashTestResult, Kill
from bigctl.runs.comparison import Comparison
from bigctl.training import phases
from tests.conftest import Cli

pytestmark = pytest.mark.fewer

TINY = ["recipe=mlp_cls", "data=breast_cancer", "model.hidden=[8]", "train.log_every=5", "train.tensorboard=false"]


def test_bad_usage_ends_with_2_before_anything_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["verify-resume", "recipe=mlp_clss"]) == 2
    assert main(["verify-resume", *TINY, "--keep", str(tmp_path)]) == 2
    assert main(["verify-resume", *TINY, "--report", str(tmp_path)]) == 2
    errors = capsys.readouterr().err
    assert "mlp_cls" in errors and "is not empty" in errors and "is a folder" in errors
    assert main(["verify-resume", *TINY, "--kills", "0"]) == 2
    assert "'0' is no count" in capsys.readouterr().err


def test_a_difference_or_a_lost_run_is_told_and_is_no_success() -> None:
    result = CrashTestResult(
        ["bigctl"], kills=[Kill(1, "step", "save", 3, 1.5)], runs=[[Comparison("metrics.jsonl", 4)]]
    )
    assert result.ok and crash_test.summary_lines(result)[-1] == "not one bit differs"
    assert result.to_json()["phases"] == {"start-up": 0, "step": 0, "eval": 0, "save": 1, "end": 0}
    result.runs.append([Comparison("last checkpoint: parameters", 4, "params/a differs", where="params/a")])
    assert not result.ok and "params/a differs" in "\n".join(crash_test.summary_lines(result))
    assert crash_test.summary_lines(CrashTestResult(["bigctl"], lost=["exit code 1"]))[-1] == "the promise is broken"


def test_a_process_says_what_it_does_and_save_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "phase"
    assert phases.read_phase(file) == phases.Moment(phases.START, 0)
    monkeypatch.setattr(phases, "_file", None)
    monkeypatch.delenv(phases.VARIABLE, raising=False)
    assert not phases.begin()
    phases.now(phases.STEP, 3)
    assert not file.exists()
    monkeypatch.setenv(phases.VARIABLE, str(file))
    assert phases.begin()
    phases.now(phases.STEP, 3)
    with phases.during(phases.EVAL):
        assert phases.read_phase(file) == phases.Moment(phases.EVAL, 3)
        phases.saving(1)
        assert phases.read_phase(file) == phases.Moment(phases.SAVE, 3)
    phases.saving(-1)
    assert phases.read_phase(file) == phases.Moment(phases.STEP, 3)


@pytest.mark.slow
def test_killed_runs_of_a_small_experiment_do_not_differ_in_one_bit(bigctl: Cli) -> None:
    seed = random.SystemRandom().randrange(1000)
    rhythm = ["checkpoint.every=40", "eval.every=25", "train.ema=0.9", "train.steps_per_dispatch=1"]
    command = ["verify-resume", *TINY, *rhythm, "--steps", "200", "--kills", "3", "--seed", str(seed)]
    told = bigctl.json(*command, "--report", "report.json", "--keep", "kept", "--quiet")
    assert told["ok"] and told == json.loads((bigctl.folder / "report.json").read_text())
    assert len(told["kills"]) == 3 and sum(told["phases"].values()) == 3 and not told["lost"]
    compared = {found["what"]: found["count"] for found in told["runs"][0]}
    assert compared["batches.jsonl"] == 200 and compared["metrics.jsonl"] >= 40
    assert {"parameters", "optimizer state", "averaged weights", "metric sums"} <= {
        what.removeprefix("last checkpoint: ") for what in compared
    }
    batches = (bigctl.folder / "kept/straight/batches.jsonl").read_text().splitlines()
    assert len({json.loads(line)["sha256"] for line in batches}) == 200  # no two batches are the same


FORGETFUL = """
from bigctl.training.state import Progress
faithful = Progress.from_json
def shifted(values):
    progress = faithful(values)
    progress.position += 1
    return progress
Progress.from_json = staticmethod(shifted)
"""


@pytest.mark.slow
def test_a_resume_that_is_one_example_off_is_found_out(bigctl: Cli) -> None:
    (bigctl.folder / "forgetful.py").write_text(FORGETFUL)
    rhythm = ["checkpoint.every=10", "eval.every=100", "train.steps_per_dispatch=1"]
    command = ["verify-resume", *TINY, *rhythm, "--plugin", "forgetful", "--steps", "200", "--kills", "3"]
    done = bigctl(*command, code=1)
    assert "the promise is broken" in done.stdout and "DIFFERENT batches.jsonl: at step" in done.stdout


@pytest.mark.slow
def test_ctrl_c_and_sigterm_leave_no_child_behind(bigctl: Cli) -> None:
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        keep = bigctl.folder / f"kept-{number}"
        command = bigctl.command("verify-resume", *TINY, "train.steps=1000000", "--keep", str(keep))
        process = subprocess.Popen(command, cwd=bigctl.folder, stderr=subprocess.DEVNULL, start_new_session=True)
        lock, deadline = keep / "straight" / ".lock", time.monotonic() + 60
        while not (lock.exists() and lock.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        child = int(lock.read_text().split()[1])
        process.send_signal(number)
        assert process.wait(120) == code
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
