"""Several processes train one run: who they are, where they stop, and what becomes of them when one is killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bigctl
from bigctl.config.schema import Config
from bigctl.engine import same_start
from bigctl.errors import ConfigError, RunHeld, TrainingFailed
from bigctl.parallel import cluster
from bigctl.parallel.cluster import ClusterInfo
from bigctl.parallel.distributed import ProcessGroup
from bigctl.runs import manifest
from bigctl.training.signals import StopRequest
from bigctl.training.stopping import SharedStop
from tests import forked
from tests.conftest import Cli

pytestmark = pytest.mark.fewer
SLURM = {
    "SLURM_JOB_ID": "4100", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[007-008],other", "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}  # fmt: skip
BY_HAND = {"JAX_COORDINATOR_ADDRESS": "first:1234", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "JAX_NUM_P", "JAX_PROCESS", "JAX_COORD", "JOB_")):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        (BY_HAND, ClusterInfo(1, 2, "first:1234")),
        (SLURM, ClusterInfo(3, 4, "gpu007:61444", [1])),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "1(x4)"}, ClusterInfo(3, 4, "gpu007:61444")),
        ({**SLURM, "JAX_NUM_PROCESSES": "1"}, None),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}, None),  # a batch script, without srun
        ({**BY_HAND, "JAX_PROCESS_ID": "", "JOB_COMPLETION_INDEX": "0"}, ClusterInfo(0, 2, "first:1234")),
    ],
)
def test_the_environment_says_which_process_this_is(environment: Any, variables: dict[str, str], expected: Any) -> None:
    for name, value in variables.items():
        environment.setenv(name, value)
    assert cluster.read_cluster_info() == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"JAX_NUM_PROCESSES": ""}, "number of processes is not"),
        ({"JAX_PROCESS_ID": ""}, "JAX_NUM_PROCESSES: 2 processes"),
        ({"JAX_PROCESS_ID": "2"}, "2 is none of 2"),
        ({"JAX_PROCESS_ID": "one"}, "'one' is no number"),
        ({"JAX_COORDINATOR_ADDRESS": "first"}, "without a port"),
    ],
)
def test_half_a_setting_is_refused(environment: Any, changes: dict[str, str], message: str) -> None:
    for name, value in {**BY_HAND, **changes}.items():
        environment.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        cluster.read_cluster_info()


class Service:
    """What jax's coordination service does, within one process."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.changed = threading.Condition()

    def key_value_set(self, name: str, value: str, allow_overwrite: bool = False) -> None:
        with self.changed:
            if name in self.values and not allow_overwrite:
                raise RuntimeError("ALREADY_EXISTS")
            self.values[name] = value
            self.changed.notify_all()

    def blocking_key_value_get(self, name: str, milliseconds: int) -> str:
        with self.changed:
            if not self.changed.wait_for(lambda: name in self.values, milliseconds / 1000):
                raise RuntimeError("DEADLINE_EXCEEDED")
            return self.values[name]

    def key_value_dir_get(self, folder: str) -> list[tuple[str, str]]:
        with self.changed:
            return [item for item in self.values.items() if item[0].startswith(f"{folder}/")]


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ProcessGroup]]:
    for module in ("bigctl.parallel.distributed", "bigctl.training.stopping"):
        monkeypatch.setattr(f"{module}.POLL", 0.01)
    service = Service()
    made = [ProcessGroup(ClusterInfo(index, 3, "here:1"), service) for index in range(3)]
    yield made
    for group in made:
        group.leaving.set()


def test_all_processes_stop_after_the_same_step(groups: list[ProcessGroup]) -> None:
    """Each at a pace of its own, in dispatches of its own; one is asked."""
    requests = [StopRequest() for _ in groups]
    stopped: dict[int, int] = {}

    def train(index: int, stop: SharedStop, pace: float, size: int) -> None:
        steps = 0
        while steps < 100_000 and not stop.reached(steps):
            steps += stop.room(steps, size)
            time.sleep(pace)
            if index == 1 and steps >= 30:
                requests[1].exit_code, requests[1].reason = 75, "SIGTERM"
        stopped[index] = steps

    stops = [SharedStop(request, group) for request, group in zip(requests, groups, strict=True)]
    paces = [(0.0001, 7), (0.002, 1), (0.001, 3)]
    threads = [threading.Thread(target=train, args=(i, stops[i], *paces[i]), daemon=True) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(set(stopped.values())) == 1 and len(stopped) == 3 and 30 <= stopped[0] < 100_000
    assert [(stop.exit_code, stop.reason) for stop in stops] == [(75, "SIGTERM")] * 3


def test_what_the_first_finds_and_what_it_fails_with_is_that_of_all(groups: list[ProcessGroup]) -> None:
    def held() -> int:
        raise RunHeld("is in use", where="runs/a", hint="wait")

    assert groups[0].first(lambda: {3}, pack=list, unpack=set) == {3}
    with pytest.raises(RunHeld):
        groups[0].first(held)
    for group in groups[1:]:
        assert group.first(lambda: {4}, pack=list, unpack=set) == {3}
        with pytest.raises(RunHeld) as caught:
            group.first(lambda: 4)
        assert (caught.value.where, caught.value.hint, caught.value.exit_code) == ("runs/a", "wait", 5)


def test_a_process_that_was_started_otherwise_is_refused_by_name(groups: list[ProcessGroup]) -> None:
    config = bigctl.compose(["recipe=mlp_cls", "data=csv", "data.path=a.csv", "data.label=kind"])
    moved = replace(config, data=replace(config.data, path="b.csv"))
    slower = replace(config, optimizer=replace(config.optimizer, lr=0.5))
    told: dict[int, str] = {}

    def start(index: int, config: Config) -> None:
        try:
            same_start.require(groups[index], config)
        except ConfigError as error:
            told[index] = str(error)

    for configs in ((config, moved, config), (config, config, slower)):
        threads = [threading.Thread(target=start, args=item, daemon=True) for item in enumerate(configs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert (len(told) == 3) == (configs[2] is slower), told
        groups[0].client.values.clear()
    assert len(set(told.values())) == 1 and "process 2 was started otherwise than process 0: optimizer.lr: " in told[0]
    here = same_start.Started.here(config)
    assert here.differences(replace(here, versions={**here.versions, "jax": "0.0.1"}))[0].endswith("-> 0.0.1")


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("Gloo all-reduce failed: Connection reset by peer"), True),
        (TrainingFailed("checkpoint 40 could not be saved: [127.0.0.1]:1154: Connection reset by peer"), True),
        (TrainingFailed("checkpoint 40 could not be saved: No space left on device"), False),
        (RunHeld("is in use: connection reset"), False),
        (RuntimeError("boom"), False),
    ],
)
def test_whichever_notices_first_that_another_process_has_gone_says_that(error: Exception, lost: bool) -> None:
    group = ProcessGroup(ClusterInfo(0, 1, "here:1"), Service())  # no others, who would end with it
    said = group.failed(error)
    group.leaving.set()
    assert ("another process of the run has ended" in str(said)) == lost and (said is error) != lost


# ---------------------------------------------------------------------------------------------------- real processes

TRAIN = [
    "train", "recipe=mlp_cls", "data=breast_cancer", "train.batch_size=64", "train.steps=300", "data.resident_mib=0",
    "train.log_every=10", "eval.every=100", "checkpoint.every=20", "--name", "run",
]  # fmt: skip


def start(bigctl: Cli, folder: Path, *more: str) -> list[subprocess.Popen[str]]:
    """Two processes that train together, one device each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(exist_ok=True)
    common = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "JAX_NUM_PROCESSES": "2"}
    common |= forked.flags(common)
    common["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{port}"
    return [
        subprocess.Popen(
            bigctl.command(*TRAIN, *more), cwd=folder, env={**common, "JAX_PROCESS_ID": str(index)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for index in range(2)
    ]  # fmt: skip


def end(pair: list[subprocess.Popen[str]]) -> tuple[list[int], list[str], list[str]]:
    said = [process.communicate(timeout=120) for process in pair]
    return [process.returncode for process in pair], [out for out, _ in said], [err for _, err in said]


def wait_for_checkpoint(run: Path) -> None:
    deadline = time.monotonic() + 90
    while not any(manifest.committed(folder) for folder in run.glob("checkpoints/[0-9]*")):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def losses(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def assert_same_losses(run: Path, whole: Path) -> None:
    found, expected = losses(run), losses(whole)
    assert list(found) == list(expected) and len(expected) == 30
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-4)


@pytest.mark.slow
def test_a_run_goes_on_by_one_and_by_two_after_one_of_two_is_killed(bigctl: Cli) -> None:
    bigctl(*TRAIN, "--quiet", env={"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""})
    whole = bigctl.folder / "runs" / "run"
    for killed, together in ((1, True), (0, False)):
        folder = bigctl.folder / f"killed{killed}"
        pair = start(bigctl, folder)
        run = folder / "runs" / "run"
        wait_for_checkpoint(run)
        pair[killed].kill()
        codes, _, errors = end(pair)
        assert codes[killed] == -signal.SIGKILL and codes[1 - killed] == 6
        assert "another process of the run has ended" in errors[1 - killed]
        assert "Traceback" not in errors[1 - killed] and not (run / "summary.json").exists()
        if together:
            pair = start(bigctl, folder)
            codes, outputs, errors = end(pair)
            assert codes == [0, 0], errors
            assert "resuming from step" in errors[0] and outputs[1] == errors[1] == ""
        else:
            done = Cli(folder)(*TRAIN, env={"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""})
            assert "data 2" in done.stderr, done.stderr
        assert_same_losses(run, whole)
        assert json.loads((run / "run.json").read_text())["status"] == "complete"
        bigctl("verify", str(run))


@pytest.mark.slow
def test_a_signal_to_one_stops_both_and_another_holder_turns_both_away(bigctl: Cli) -> None:
    pair = start(bigctl, bigctl.folder, "train.steps=100000")
    run = bigctl.folder / "runs" / "run"
    wait_for_checkpoint(run)
    others = start(bigctl, bigctl.folder, "train.steps=100000")
    codes, _, errors = end(others)
    assert codes == [5, 5] and "in use by process" in errors[0] and errors[1] == "", errors
    pair[1].terminate()
    codes, _, errors = end(pair)
    assert codes == [75, 75] and "stopped by SIGTERM at step" in errors[0] and errors[1] == "", errors
    bigctl("verify", str(run))


@pytest.mark.slow
def test_a_process_that_waits_in_vain_says_so(bigctl: Cli) -> None:
    pair = start(bigctl, bigctl.folder, "mesh.wait=2")
    pair[0].kill()
    codes, _, errors = end(pair)
    assert codes[1] == 6 and "process 1 of 2: not all came within 2 s" in errors[1], errors
    assert not (bigctl.folder / "runs").exists()
