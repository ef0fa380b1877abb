"""Jobs run where they are put, and nowhere else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from bigctl.errors import ConfigError
from bigctl.sweeps.execution import forking as forking_module
from bigctl.sweeps.execution import local
from bigctl.sweeps.execution.forking import Forked
from bigctl.sweeps.execution.local import Job, Local, Slot
from bigctl.training.checkpoints import arrays


def wait(job: Job) -> int:
    deadline = time.monotonic() + 120
    while (code := job.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return code


def test_a_job_runs_on_its_own_cores_and_gives_its_slot_back(tmp_path: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    executor = Local(len(cores), look=lambda: (cores, []))
    say = "import os; print(sorted(os.sched_getaffinity(0)), os.getpgid(0) == os.getpid())"
    for turn in range(2):
        jobs = [executor.start([sys.executable, "-c", say], folder=tmp_path, log=tmp_path / f"{c}.log") for c in cores]
        assert [wait(job) for job in jobs] == [0] * len(cores)
        assert {job.place for job in jobs} == {f"cores {core}" for core in cores}
        found = [(tmp_path / f"{c}.log").read_text().splitlines() for c in cores]
        assert sorted(lines[turn] for lines in found) == sorted(f"[{core}] True" for core in cores)
    assert sorted(os.sched_getaffinity(0)) == cores, "this process stays where it was"


def test_a_command_alone_has_the_whole_machine(tmp_path: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    executor = Local(len(cores), look=lambda: (cores, []))
    say = "import os; print(sorted(os.sched_getaffinity(0)))"
    assert wait(executor.alone([sys.executable, "-c", say], folder=tmp_path, log=tmp_path / "log")) == 0
    assert (tmp_path / "log").read_text() == f"{cores}\n"


def test_a_job_is_asked_to_leave_or_ended(tmp_path: Path) -> None:
    executor = Local(1)
    sleep = [sys.executable, "-c", "print('here', flush=True); import time; time.sleep(60)"]
    for end, number in (("terminate", signal.SIGTERM), ("kill", signal.SIGKILL)):
        job = executor.start(sleep, folder=tmp_path, log=tmp_path / end)
        while not (tmp_path / end).exists() or not (tmp_path / end).read_text():
            time.sleep(0.01)
        assert job.poll() is None
        getattr(job, end)()
        assert wait(job) == -number
        job.terminate()  # one that has ended is left alone


def test_a_job_keeps_out_of_places_that_are_taken_where_it_can(tmp_path: Path) -> None:
    executor = Local(2, look=lambda: ([], ["0", "1"]))
    jobs = [executor.start(["true"], folder=tmp_path, log=tmp_path / "log", avoid={"gpu 0"}) for _ in range(2)]
    assert [job.place for job in jobs] == ["gpu 1", "gpu 0"] and [wait(job) for job in jobs] == [0, 0]


def test_the_machine_is_cut_into_equal_parts() -> None:
    assert local.divide(2, [0, 1, 2, 3], []) == [Slot((0, 1)), Slot((2, 3))]
    assert local.divide(3, [0, 1, 2, 3], []) == [Slot((0,)), Slot((1,)), Slot((2,))]
    assert local.divide(3, [5, 7], []) == [Slot((5,)), Slot((7,)), Slot((5,))]
    shared = local.divide(3, list(range(6)), ["0", "4"])
    assert [(slot.gpu, slot.share) for slot in shared] == [("0", 0.5), ("4", 0.5), ("0", 0.5)]
    assert shared[2].cores == (4, 5) and shared[2].place == "gpu 0"
    assert shared[2].environment()["CUDA_VISIBLE_DEVICES"] == "0"
    assert shared[2].environment()["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.450"
    assert Slot((0, 1, 2, 5)).place == "cores 0-2,5"


def test_auto_takes_one_job_a_gpu_or_a_core() -> None:
    assert Local(None, look=lambda: (list(range(64)), ["0", "1", "2"])).slots == 3
    assert 1 <= Local(None, look=lambda: ([0, 1], [])).slots <= 2


def test_auto_takes_no_more_jobs_than_are_of_use_but_one_for_each_gpu() -> None:
    assert Local(None, most=1, look=lambda: ([0, 1], [])).slots == 1
    assert Local(None, most=1, look=lambda: ([0, 1], ["0", "1"])).slots == 2
    assert Local(4, most=1, look=lambda: ([0, 1], [])).slots == 4, "what is asked for is done"


def test_a_tpu_has_one_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert not local.has_tpu(tmp_path)
    (tmp_path / "vfio").mkdir()
    (tmp_path / "vfio/vfio").touch()
    assert not local.has_tpu(tmp_path), "every machine with the driver has this one"
    (tmp_path / "vfio/0").touch()
    assert local.has_tpu(tmp_path)
    (tmp_path / "vfio/0").rename(tmp_path / "accel0")
    assert local.has_tpu(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert not local.has_tpu(tmp_path)
    monkeypatch.setattr(local, "has_tpu", lambda: True)
    assert Local(None, look=lambda: ([0, 1, 2, 3], [])).slots == 1


def test_gpus_are_those_that_may_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert local.machine()[1] == ["2", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local.machine()[1] == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert local.machine()[1] == []


def test_a_hundred_jobs_on_two_cores_are_refused() -> None:
    with pytest.raises(ConfigError, match="100 jobs on 2 cores"):
        Local(100, look=lambda: ([0, 1], []))


# ---------------------------------------------------------------------------------------------------- forked processes


@pytest.fixture(scope="module")
def forking() -> Local:
    """One core a job, and one process that trials are forked from."""
    return Local(1, look=lambda: (sorted(os.sched_getaffinity(0))[:1], []))


def ours(*words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "bigctl", *words]


def test_a_forked_command_is_what_a_process_of_its_own_is(
    forking: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tell.py").write_text(
        "import os, sys\n"
        "print(os.environ['TOLD'], os.getcwd(), sorted(os.sched_getaffinity(0)), os.getsid(0) == os.getpid())\n"
    )
    monkeypatch.setenv("TOLD", "yes")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    words = ["show", "recipe=mlp_cls", "--plugin", "tell"]
    found = []
    for name in ("forked", "plain"):
        if name == "plain":
            monkeypatch.setattr(local, "fits", lambda command: False)
        job = forking.start(ours(*words), folder=tmp_path, log=tmp_path / name)
        assert wait(job) == 0
        found.append((tmp_path / name).read_text())
        assert isinstance(job._process, Forked) is (name == "forked")
    told = [text.splitlines()[0].split("True")[0] for text in found]
    assert told[0] == told[1] == f"yes {tmp_path} {sorted(os.sched_getaffinity(0))[:1]} "
    assert found[0].splitlines()[1:] == found[1].splitlines()[1:] and "recipe" in found[0]


def test_a_forked_command_ends_as_a_process_does(forking: Local, tmp_path: Path) -> None:
    refused = forking.start(ours("show", "recipe=none_such"), folder=tmp_path, log=tmp_path / "refused")
    assert wait(refused) == 2 and "none_such" in (tmp_path / "refused").read_text()
    long = ours("train", "recipe=mlp_cls", "train.steps=100_000_000", "--run-dir", "long", "--quiet")
    for end, code in (("terminate", 75), ("kill", -signal.SIGKILL)):
        job = forking.start(long, folder=tmp_path, log=tmp_path / end)
        while not (tmp_path / "long" / "metrics.jsonl").exists():
            assert job.poll() is None
            time.sleep(0.01)
        getattr(job, end)()
        assert wait(job) == code
        shutil.rmtree(tmp_path / "long")


def test_a_child_outlives_the_process_it_was_forked_from_and_the_next_finds_another(
    forking: Local, tmp_path: Path
) -> None:
    train = ours("train", "recipe=mlp_cls", "train.steps=100_000_000", "--run-dir", "run", "--quiet")
    job = forking.start(train, folder=tmp_path, log=tmp_path / "log")
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not metrics.exists() or not metrics.stat().st_size:
        assert job.poll() is None
        time.sleep(0.01)
    forking._nursery._process.kill()
    assert job.poll() is None
    job.terminate()
    assert wait(job) == -signal.SIGKILL, "nobody has seen how it ended"
    assert list((tmp_path / "run" / "checkpoints").glob("[0-9]*")), "it has saved"
    assert wait(forking.start(ours("show", "recipe=mlp_cls"), folder=tmp_path, log=tmp_path / "next")) == 0


def test_a_command_that_could_not_be_forked_is_started_in_the_plain_way(tmp_path: Path) -> None:
    executor = Local(1)
    executor._nursery = forking_module.Nursery()
    executor._nursery._process.kill()
    job = executor.start(ours("show", "recipe=mlp_cls"), folder=tmp_path, log=tmp_path / "log")
    assert wait(job) == 0 and "recipe" in (tmp_path / "log").read_text()


def test_what_is_expected_is_forked_from_a_process_that_was_begun_before(tmp_path: Path) -> None:
    executor = Local(1, look=lambda: (sorted(os.sched_getaffinity(0))[:1], []))
    executor.expect()
    assert executor._nursery is not None
    begun = executor._nursery._process.pid
    executor.settle(numbers=NUMBERS)
    job = executor.start(ours("show", "recipe=mlp_cls"), folder=tmp_path, log=tmp_path / "log")
    assert wait(job) == 0 and executor._nursery._process.pid == begun
    executor.close()
    assert executor._nursery is None


def test_what_was_expected_and_does_not_come_leaves_no_process() -> None:
    executor = Local(None, look=lambda: ([0, 1], []))
    executor.expect()
    assert executor._nursery is not None
    process = executor._nursery._process
    executor.settle(most=1)  # one job with all cores is another process than two with one each
    assert executor._nursery is None and process.returncode == -signal.SIGKILL
    executor.expect()
    assert executor._nursery is not None
    process = executor._nursery._process
    executor.settle(most=1)
    assert process.poll() is None, "nothing else is known than before"
    executor.close()
    assert process.returncode == -signal.SIGKILL


# ------------------------------------------------------------------------------------------ one trial after another


NUMBERS = ("seed", "optimizer.lr", "model.dropout")
TRIAL = (
    "train", "recipe=mlp_cls", "data=breast_cancer", "model.hidden=[8]", "model.dropout=0.2", "mesh=single",
    "train.epochs=null", "train.steps=40", "eval.every=20", "eval.test=false", "--quiet",
)  # fmt: skip


@pytest.fixture(scope="module")
def staying() -> Local:
    return Local(1, numbers=NUMBERS, look=lambda: (sorted(os.sched_getaffinity(0))[:1], []))


def trained(executor: Local, folder: Path, name: str, *words: str) -> Job:
    command = ours(*TRIAL, *words, "--run-dir", str(folder / name))
    job = executor.start(command, folder=folder, log=folder / f"{name}.log")
    assert wait(job) == 0, (folder / f"{name}.log").read_text()
    return job


def pid(job: Job) -> int | None:
    return job._process.pid  # type: ignore[attr-defined]


def has_ended(job: Job) -> bool:
    """Whether there is no such process, or nobody has seen yet that it has ended."""
    try:
        return Path(f"/proc/{pid(job)}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def weights(run: Path) -> dict[str, bytes]:
    newest = max((run / "checkpoints").glob("[0-9]*"))
    names = list(json.loads((newest / "meta.json").read_text())["shapes"])
    return {name: values.tobytes() for name, values in arrays.read_arrays(newest, names, None).items()}


def test_a_process_that_stays_trains_each_trial_as_one_of_its_own_does(staying: Local, tmp_path: Path) -> None:
    given = {"one": ("optimizer.lr=0.01", "seed=0"), "two": ("optimizer.lr=0.03", "seed=1")}
    jobs = [trained(staying, tmp_path, name, *words) for name, words in given.items()]
    assert pid(jobs[0]) == pid(jobs[1])
    alone = Local(1, look=lambda: (sorted(os.sched_getaffinity(0))[:1], []))
    trained(alone, tmp_path, "alone", *given["two"])
    assert weights(tmp_path / "two") == weights(tmp_path / "alone")
    assert weights(tmp_path / "two") != weights(tmp_path / "one")
    for name in given:
        assert f"/{name}: 40 steps" in (tmp_path / f"{name}.log").read_text()
    assert [job.poll() for job in jobs] == [0, 0], "the ends of trials are still known"


def test_only_what_differs_in_numbers_is_trained_in_the_same_process(staying: Local, tmp_path: Path) -> None:
    off = [trained(staying, tmp_path, value, f"model.dropout={value}") for value in ("0.1", "0")]
    assert pid(off[0]) == pid(off[1])
    alone = Local(1, look=lambda: (sorted(os.sched_getaffinity(0))[:1], []))
    trained(alone, tmp_path, "alone", "model.dropout=0")
    assert weights(tmp_path / "0") == weights(tmp_path / "alone"), "no dropout at all is another program"
    refused = staying.start(ours(*TRIAL, "model.norm=none_such"), folder=tmp_path, log=tmp_path / "refused.log")
    assert wait(refused) == 2 and pid(refused) != pid(off[0])
    assert has_ended(off[0]), "it holds nothing any more"
    assert not staying._stayed


def test_a_process_that_stays_can_be_killed_and_ends_when_nothing_is_left(staying: Local, tmp_path: Path) -> None:
    first = trained(staying, tmp_path, "first")
    first.kill()  # its trial has ended, so nothing happens
    assert not has_ended(first)
    os.kill(pid(first) or 0, signal.SIGKILL)
    assert staying._stayed[0][1]._gone(wait=60)
    again = trained(staying, tmp_path, "again")
    assert pid(again) != pid(first)
    assert not has_ended(again)
    staying.rest()
    assert has_ended(again)
