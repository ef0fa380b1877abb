"""A run that is stuck says so: by threads, by a callback that sleeps, and by processes that are stopped."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from bigctl.parallel.cluster import ClusterInfo
from bigctl.parallel.distributed import SINGLE_PROCESS, ProcessGroup
from bigctl.training import stuck
from bigctl.training.stuck import Pace, StuckWatch
from tests.conftest import Cli
from tests.training.test_processes import Service, end, start, wait_for_checkpoint

pytestmark = pytest.mark.fewer


def test_the_limit_follows_the_pace_of_the_run() -> None:
    own, given = Pace(None), Pace(30.0)
    assert own.limit(stuck.STEPS) is None and given.limit(stuck.STEPS) == 30
    for seconds in (1.0, 1.0, 1.0, 9.0, 1.0):
        own.took(stuck.STEPS, seconds)
    assert own.limit(stuck.STEPS) == stuck.LEAST  # 20 x 1, 5 x 9
    for seconds in (40.0,) * 20:
        own.took(stuck.STEPS, seconds)
    assert own.limit(stuck.STEPS) == 20 * 40
    assert own.limit("evaluating") == given.limit("evaluating") == stuck.FIRST
    for pace in (own, given):
        pace.took("evaluating", 2.0)
    assert (own.limit("evaluating"), given.limit("evaluating")) == (stuck.LEAST, 32)
    own.took("evaluating", 90.0)
    assert own.limit("evaluating") == 900


def a_place_to_sleep_in(seconds: float) -> None:
    time.sleep(seconds)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (stuck, __import__("bigctl.parallel.distributed", fromlist=["POLL"])):
        monkeypatch.setattr(module, "POLL", 0.05)
    monkeypatch.setattr(stuck, "_SILENT", 0.5)


def fitted(groups: list[ProcessGroup], timeout: float, sleeper: int, mute: int | None = None) -> dict[int, str]:
    """What each of these says: one sleeps before its fourth step, and none goes further than one step beyond it."""
    said: dict[int, str] = {}
    reached, done = [0] * len(groups), threading.Event()

    def fit(index: int) -> None:
        def ended(sentence: str, stack: str) -> None:
            said[index] = sentence
            watch.close()
            if len(said) == len(groups) - (mute is not None):
                done.set()

        watch = StuckWatch(groups[index], timeout, 0, warn=said.setdefault(index, "").join, end=ended)
        said.pop(index)
        for step in range(1, 100):
            while index != sleeper and step > reached[sleeper] + 1 and not done.wait(0.01):
                pass
            if index == sleeper and step == 4:
                if mute is not None:  # as if the whole process were stopped
                    watch.close()
                    groups[index].leaving.set()
                a_place_to_sleep_in(30) if not done.wait(0.2) and mute is None else done.wait(30)
            if done.is_set():
                return
            reached[index] = step
            watch.stepped(step)
            time.sleep(0.01)

    for index in range(len(groups)):
        threading.Thread(target=fit, args=(index,), daemon=True).start()
    assert done.wait(25), said
    return said


def test_all_name_the_process_that_does_not_come_and_where_it_stands(quick: None) -> None:
    service = Service()
    groups = [ProcessGroup(ClusterInfo(index, 3, "here:1"), service) for index in range(3)]
    said = fitted(groups, 2.0, sleeper=1)
    for sentence in said.values():
        assert "process 1 of 3 did not come past step 3" in sentence
        assert "process 1 stands in a_place_to_sleep_in (training/test_stuck.py" in sentence
    for group in groups:
        group.leaving.set()


def test_a_process_that_does_not_answer_is_named(quick: None) -> None:
    service = Service()
    groups = [ProcessGroup(ClusterInfo(index, 3, "here:1"), service) for index in range(3)]
    said = fitted(groups, 2.0, sleeper=2, mute=2)
    assert set(said) == {0, 1} and all("process 2 does not answer" in sentence for sentence in said.values()), said
    for group in groups:
        group.leaving.set()


def test_one_that_still_compiles_is_waited_for_until_it_does_not_answer(quick: None) -> None:
    service = Service()
    groups = [ProcessGroup(ClusterInfo(index, 2, "here:1"), service) for index in range(2)]
    said: list[str] = []
    slow = StuckWatch(groups[1], 1.0, 0, warn=said.append, end=lambda *why: said.append("slow"))
    slow.doing("compiling")  # for the first time
    ahead = StuckWatch(groups[0], 1.0, 0, warn=said.append, end=lambda sentence, stack: said.append(sentence))
    ahead.stepped(1)
    time.sleep(3)
    assert said == []
    slow.close()  # as if the whole process were stopped
    groups[1].leaving.set()
    deadline = time.monotonic() + 20
    while not said and time.monotonic() < deadline:
        time.sleep(0.05)
    ahead.close()
    groups[0].leaving.set()
    assert said and "process 1 does not answer" in said[0]


def test_slow_steps_and_a_process_that_was_stopped_are_no_alarm(quick: None) -> None:
    said: list[str] = []
    watch = StuckWatch(SINGLE_PROCESS, 1.5, 0, warn=said.append, end=lambda sentence, stack: said.append(sentence))
    for step in range(1, 5):
        time.sleep(0.8)
        watch.stepped(step)
    watch.close()
    assert said == []


SLEEPY = """
import time
from bigctl.config import schema

class Sleepy(schema.Callback):
    name = "sleepy"

    def after_evaluation(self, step, metrics):
        if step >= 60:
            time.sleep(600)
"""


@pytest.mark.slow
def test_a_single_process_ends_with_the_place_it_stands_in(bigctl: Cli) -> None:
    (bigctl.folder / "sleepy.py").write_text(SLEEPY)
    shared = [
        "train",
        "recipe=mlp_cls",
        "data=breast_cancer",
        "train.steps=100",
        "eval.every=20",
        "checkpoint.every=20",
    ]
    more = ["train.callbacks=[sleepy]", "--plugin", "sleepy", "--name", "run"]
    done = bigctl(*shared, "train.step_timeout=4", *more, code=6)
    assert "nothing has come after step 60" in done.stderr and "after_evaluation (" in done.stderr, done.stderr
    assert "sleepy.py:10" in done.stderr and "goes on from the last checkpoint" in done.stderr
    record = json.loads((bigctl.folder / "runs" / "run" / "run.json").read_text())
    assert (record["status"], record["exit_code"]) == ("failed", 6) and "after step 60" in record["message"]
    assert "time.sleep(600)" in (bigctl.folder / "runs" / "run" / "log.txt").read_text()
    (bigctl.folder / "sleepy.py").write_text(SLEEPY.replace("600", "0"))
    assert "resuming from step 40" in bigctl(*shared, *more).stderr
    spent = bigctl.json("info", "run")["goodput"]
    assert spent["starts"] == 2 and sum(spent["parts"].values()) == pytest.approx(spent["wall"])
    assert spent["parts"]["steps"] > spent["lost"] > 1, spent  # 20 of 60 steps, four seconds of sleep among them
    bigctl("verify", "runs/run")


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [1, 0])
def test_a_process_that_is_stopped_is_named_by_the_other(bigctl: Cli, stopped: int) -> None:
    run = bigctl.folder / "runs" / "run"
    pair = start(bigctl, bigctl.folder, "train.steps=100000", "train.step_timeout=5")
    wait_for_checkpoint(run)
    time.sleep(2)
    os.kill(pair[stopped].pid, signal.SIGSTOP)
    try:
        _, errors = pair[1 - stopped].communicate(timeout=90)
        assert pair[1 - stopped].returncode == 6, errors
        assert f"process {1 - stopped} of 2: nothing has come after step" in errors
        assert f"process {stopped} does not answer" in errors, errors
    finally:
        pair[stopped].kill()
        pair[stopped].communicate(timeout=60)
    bigctl("verify", str(run))
    if stopped:
        assert json.loads((run / "run.json").read_text())["exit_code"] == 6
        pair = start(bigctl, bigctl.folder, "train.steps=" + str(_steps(run) + 40))
        codes, _, errors = end(pair)
        assert codes == [0, 0] and "resuming from step" in errors[0], errors


def _steps(run: Path) -> int:
    return max(int(folder.name) for folder in run.glob("checkpoints/[0-9]*") if folder.name.isdigit())
