"""SLURM jobs: scripts as submitit writes them, and real processes on a stand-in cluster of shell scripts."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bigctl.errors import ConfigError, TrainingFailed
from bigctl.sweeps.execution import slurm
from bigctl.sweeps.execution.slurm import Slurm, SlurmJob, parse, submission

_SCRIPTS = {
    "sbatch": """
        [ -e "$CLUSTER/full" ] && { echo "sbatch: error: Batch job submission failed: Invalid partition" >&2; exit 1; }
        id=$(( $(cat $CLUSTER/last 2>/dev/null || echo 100) + 1 )); echo $id > $CLUSTER/last; cp "$1" $CLUSTER/$id.sh
        echo "Submitted batch job $id"
        if [ -e "$CLUSTER/busy" ]; then echo PENDING > $CLUSTER/$id.state; exit; fi
        echo RUNNING > $CLUSTER/$id.state
        export SLURM_JOB_ID=$id SLURM_JOB_NODELIST=here SLURM_NTASKS=1
        (setsid bash $CLUSTER/$id.sh; echo FAILED > $CLUSTER/$id.state) > /dev/null 2>&1 &""",
    "srun": """
        while :; do case "$1" in --unbuffered) shift;; --output|--error) shift 2;; *) break;; esac; done
        echo $$ > $CLUSTER/$SLURM_JOB_ID.task
        SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 exec "$@" > $CLUSTER/$SLURM_JOB_ID.out 2>&1""",
    "squeue": """
        for file in $CLUSTER/*.state; do
            case $(cat $file) in RUNNING|PENDING) echo "$(basename $file .state) $(cat $file)";; esac
        done""",
    "sacct": """
        for word; do case "$word" in --jobs=*) cat $CLUSTER/${word#--jobs=}.state;; esac; done""",
    "scancel": """
        for word; do case "$word" in --signal=*) number=${word#--signal=};; [0-9]*) id=$word;; esac; done
        if [ -z "$number" ]; then echo "CANCELLED by 0" > $CLUSTER/$id.state; exit; fi
        task=$(cat $CLUSTER/$id.task)
        [ $number = KILL ] && task=-$(ps -o pgid= -p $task | tr -d " ")  # all of it
        kill -$number -- $task""",
}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a cluster's commands, on PATH."""
    pytest.importorskip("submitit")
    folder = tmp_path / "cluster"
    folder.mkdir()
    for name, body in _SCRIPTS.items():
        (folder / name).write_text("#!/bin/bash\n" + body + "\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("CLUSTER", str(folder))
    monkeypatch.setattr(slurm, "LOOK", 0.1)
    monkeypatch.setattr(slurm, "LAG", 0.5)
    return folder


def start(tmp_path: Path, code: str, **given: str) -> SlurmJob:
    command = [sys.executable, "-c", code]
    return Slurm(given, 2).start(command, folder=tmp_path, log=tmp_path / "logs.log")


def wait(job: SlurmJob, seconds: float = 120) -> int | None:
    deadline = time.monotonic() + seconds
    while (code := job.poll()) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return code


def until(path: Path, text: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if path.exists() and text in path.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} never says {text!r}")


def test_the_script_asks_for_what_was_given(cluster: Path, tmp_path: Path) -> None:
    given = parse("partition=gpu,time=90,gpus=2,cpus=4,mem=16GB,account=lab,reservation=june")
    script: Any = Slurm(given, 4).executor(tmp_path / "slurm", "bigctl-0123")._make_submission_file_text("run", "0")
    asked = {line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")}
    assert asked >= {
        "partition=gpu", "time=90", "gpus-per-node=2", "cpus-per-task=4", "mem=16GB", "account=lab", "reservation=june",
        "no-requeue", "signal=USR1@60", "nodes=1", "job-name=bigctl-0123",
    }  # fmt: skip
    assert not any(line.startswith("wckey") for line in asked)


def test_without_a_time_the_cluster_decides(cluster: Path, tmp_path: Path) -> None:
    script: Any = Slurm({}, 1).executor(tmp_path / "slurm", "x")._make_submission_file_text("run", "0")
    assert "--time" not in script


@pytest.mark.parametrize(
    "text, told",
    [
        ("partion=gpu", ["partion", "did you mean partition"]),
        ("colour=red", ["colour", "partition", "time"]),
        ("gpus=two", ["gpus", "two", "whole number"]),
        ("time=soon", ["time", "soon", "minutes"]),
        ("mem=lots", ["mem", "lots", "16GB"]),
        ("partition", ["partition", "time=60"]),
        ("partition=", ["partition=", "time=60"]),
    ],
)
def test_a_parameter_that_cannot_be_is_named(text: str, told: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        submission(parse(text))
    assert all(word in str(caught.value) for word in ["--slurm", *told])


def test_a_machine_without_slurm_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="no sbatch on PATH.*login node"):
        Slurm({}, 1)


def test_a_job_runs_the_command_in_the_folder_and_gives_its_exit_code(cluster: Path, tmp_path: Path) -> None:
    job = start(tmp_path, "import os, sys; print('in', os.getcwd()); sys.exit(3)")
    assert job.place == "slurm 101" and job.poll() is None
    assert wait(job) == 3
    assert (tmp_path / "logs.log").read_text() == f"in {tmp_path}\n"
    assert job.poll() == 3


_SAVES = """
import signal, sys, time
def leave(number, frame):
    print("saved", signal.Signals(number).name, flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, leave)
signal.signal(signal.SIGUSR1, leave)
print("begun", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["terminate", "time is over"])
def test_a_job_that_has_to_leave_saves_and_leaves_with_75(cluster: Path, tmp_path: Path, how: str) -> None:
    job = start(tmp_path, _SAVES)
    until(tmp_path / "logs.log", "begun")
    if how == "terminate":
        job.terminate()
    else:
        os.kill(int((cluster / "101.task").read_text()), signal.SIGUSR1)
    assert wait(job) == 75
    assert ("saved SIGTERM" if how == "terminate" else "saved SIGUSR1") in (tmp_path / "logs.log").read_text()


@pytest.mark.parametrize("state, code", [("OUT_OF_MEMORY", -9), ("NODE_FAIL", 75), ("TIMEOUT", 75), ("FAILED", 1)])
def test_a_job_that_could_say_nothing_any_more_has_ended_as_accounting_says(
    cluster: Path, tmp_path: Path, state: str, code: int
) -> None:
    (cluster / "busy").touch()
    job = start(tmp_path, "pass")
    (cluster / "101.state").write_text("RUNNING\n")
    assert job.poll() is None
    (cluster / "101.state").write_text(f"{state}\n")
    assert wait(job) == code


def test_a_job_that_waits_is_taken_back_and_one_that_is_killed_ends(cluster: Path, tmp_path: Path) -> None:
    (cluster / "busy").touch()
    waiting = start(tmp_path, "pass")
    waiting.terminate()
    assert (cluster / "101.state").read_text().startswith("CANCELLED")
    assert wait(waiting) == 75
    (cluster / "busy").unlink()
    killed = start(tmp_path, _SAVES)
    until(cluster / "102.task", "")
    killed.kill()
    assert wait(killed) not in (None, 0, 75)


def test_a_cluster_that_takes_no_job_says_why(cluster: Path, tmp_path: Path) -> None:
    (cluster / "full").touch()
    with pytest.raises(TrainingFailed, match="Invalid partition.*--slurm"):
        start(tmp_path, "pass")
