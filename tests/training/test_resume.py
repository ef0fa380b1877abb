"""A run that is cut off at any step and started again is the run that was never cut off, to the last bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Cli
from tests.training.test_text_training import write

pytestmark = pytest.mark.optimized  # no bit changes in the programs that users have

RECIPES = {
    "mlp": ["recipe=mlp_cls", "train.steps=60", "train.log_every=7", "eval.every=20", "checkpoint.every=15"],
    "cnn": [
        "recipe=cnn_cls", "data=digits", "model.channels=[8,16]", "model.norm=batch", "model.dropout=0.2",
        "train.steps=60", "train.log_every=7", "train.ema=0.9", "eval.every=20", "checkpoint.every=15",
    ],
    "accumulated": [
        "recipe=mlp_cls", "optimizer=muon", "optimizer.clip=1", "train.accumulate=4", "train.steps=40",
        "train.log_every=6", "eval.every=20", "checkpoint.every=10",
    ],
    "texts": [
        "recipe=lstm_cls", "recipe.tokenizer.size=64", "recipe.bucketing.shapes=2", "model.embedding=8",
        "model.hidden=8", "train.batch_size=16", "train.steps=40", "train.log_every=6", "eval.every=20",
        "checkpoint.every=10",
    ],
}  # fmt: skip

_STATE_OF = """
import sys, json, numpy as np
from bigctl.engine import experiment
from bigctl.runs import directory
from bigctl.config import compose
from bigctl.training.checkpoints.arrays import flatten
from bigctl.training.checkpoints.store import Checkpoints
run = directory.RunDirectory(directory.Path(sys.argv[1]))
config = compose.from_yaml(run.config.read_text(), where="config")
built = experiment.build(config)
store = Checkpoints(run.checkpoints)
saved = store.find("last")
state = store.restore(saved, built.programs.abstract_state)
np.savez(sys.argv[2], **{name.replace("/", "|"): np.asarray(leaf) for name, leaf in flatten(state).items()})
print(json.dumps(saved.meta["progress"]))
"""


def state_of(run: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Every array of a run's last checkpoint, and its progress; read in a process of its own."""
    target = run / "state.npz"
    done = subprocess.run([sys.executable, "-c", _STATE_OF, str(run), str(target)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(np.load(target)), json.loads(done.stdout)


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """All lines of metrics.jsonl, without what measures time."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("perf/")} for line in lines]


def assert_same_run(a: Path, b: Path) -> None:
    state_a, progress_a = state_of(a)
    state_b, progress_b = state_of(b)
    assert state_a.keys() == state_b.keys()
    for name, value in state_a.items():
        np.testing.assert_array_equal(value, state_b[name], err_msg=name)
    assert progress_a == progress_b
    assert metrics_of(a) == metrics_of(b)
    scores = [json.loads((run / "summary.json").read_text())["metrics"] for run in (a, b)]
    assert scores[0] == scores[1]


def interrupt(process: subprocess.Popen[str], run: Path, *, step: int, number: int) -> int:
    """Send a signal once the run has logged some step; gives the exit code."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
        checkpoints = list(run.glob("checkpoints/*/manifest-0.json"))
        if lines or checkpoints or step == 0:
            time.sleep(random.Random(step).random() * 0.3)
            process.send_signal(number)
            break
        time.sleep(0.005)
    process.communicate(timeout=120)
    return process.returncode


@pytest.mark.parametrize("name", ["mlp", *(pytest.param(name, marks=pytest.mark.slow) for name in [*RECIPES][1:])])
def test_stopping_at_every_odd_step_changes_no_bit(name: str, bigctl: Cli) -> None:
    """Train in slices, each a process of its own that ends at a step of no cadence at all."""
    overrides = RECIPES[name] + (write(bigctl.folder) if name == "texts" else [])
    total = next(int(o.split("=")[1]) for o in overrides if o.startswith("train.steps"))
    bigctl("train", *overrides, "--name", "whole")
    script = _SLICES.format(overrides=overrides, total=total)
    done = subprocess.run([sys.executable, "-c", script], cwd=bigctl.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) >= 4  # it was really cut
    assert_same_run(bigctl.folder / "runs" / "whole", bigctl.folder / "runs" / "sliced")


_SLICES = """
import json, os, signal, pathlib
import bigctl
from bigctl.errors import Preempted
from bigctl.training import signals
config = bigctl.compose({overrides!r})
cuts, stops = [3, 11, 17, 31], 0
from bigctl.training.feed import LoopFeed, ResidentFeed
def cutting(cls):
    original = cls.advance
    def advance(self, state, position, limit):
        step = position // config.train.batch_size
        if cuts and step < cuts[0]:
            limit = min(limit, cuts[0] - step)
        state, count = original(self, state, position, limit)
        if cuts and step + count >= cuts[0]:
            cuts.pop(0)
            os.kill(os.getpid(), signal.SIGTERM)
        return state, count
    cls.advance = advance
for cls in (LoopFeed, ResidentFeed):
    cutting(cls)
while True:
    try:
        bigctl.train(config, "runs/sliced", quiet=True)
        break
    except Preempted as error:
        assert error.exit_code == 75
        stops += 1
print(json.dumps(stops))
"""


def test_killed_runs_end_as_the_undisturbed_one(bigctl: Cli) -> None:
    overrides = ["recipe=cnn_cls", "data=digits", "train.steps=240", "train.log_every=7", "checkpoint.every=20",
                 "eval.every=40", "model.channels=[8,16]", "model.dropout=0.1"]  # fmt: skip
    bigctl("train", *overrides, "--name", "whole")
    run = bigctl.folder / "runs" / "killed"
    codes = []
    for attempt, number in enumerate([signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM]):
        process = subprocess.Popen(
            bigctl.command("train", *overrides, "--name", "killed", "--quiet"),
            cwd=bigctl.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ,
        )  # fmt: skip
        codes.append(interrupt(process, run, step=attempt + 1, number=number))
    assert codes[0] == -signal.SIGKILL, codes  # at the least the first one was caught in the act
    bigctl("train", *overrides, "--name", "killed")
    assert_same_run(bigctl.folder / "runs" / "whole", run)


def test_the_same_command_again_is_a_no_op(bigctl: Cli) -> None:
    overrides = ["recipe=mlp_cls", "train.steps=20"]
    first = bigctl.json("train", *overrides)
    before = {p: p.stat().st_mtime_ns for p in (bigctl.folder / "runs").rglob("*") if p.is_file() and p.name != ".lock"}
    second = bigctl.json("train", *overrides)
    after = {p: p.stat().st_mtime_ns for p in (bigctl.folder / "runs").rglob("*") if p.is_file() and p.name != ".lock"}
    assert second.pop("already_complete") is True
    assert first == second
    assert before == after


def test_a_longer_run_goes_on_from_the_shorter_one_with_its_schedule(bigctl: Cli) -> None:
    run = ["recipe=mlp_cls", "--name", "grown"]
    bigctl("train", *run, "train.steps=40", "schedule.horizon=60")
    summary = bigctl.json("train", *run, "train.steps=60", "schedule.horizon=60")
    assert summary["resumed_from"] == 40 and summary["step"] == 60
    bigctl("train", "recipe=mlp_cls", "--name", "straight", "train.steps=60", "schedule.horizon=60")
    grown, straight = (state_of(bigctl.folder / "runs" / name)[0] for name in ("grown", "straight"))
    for name, value in straight.items():
        if name.startswith("params"):
            np.testing.assert_array_equal(value, grown[name], err_msg=name)


def test_a_changed_learning_rate_is_refused_unless_allowed(bigctl: Cli) -> None:
    bigctl("train", "recipe=mlp_cls", "train.steps=20", "--name", "a")
    changed = ["train", "recipe=mlp_cls", "train.steps=30", "optimizer.lr=0.01", "--name", "a"]
    message = bigctl(*changed, code=2).stderr
    assert "optimizer.lr" in message and "--allow-drift optimizer.lr" in message
    bigctl(*changed, "--allow-drift", "optimizer.lr")


def test_another_model_is_refused(bigctl: Cli) -> None:
    bigctl("train", "recipe=mlp_cls", "train.steps=20", "--name", "a")
    message = bigctl("train", "recipe=mlp_cls", "train.steps=30", "model.hidden=[8]", "--name", "a", code=2).stderr
    assert "model.hidden" in message


def test_a_run_in_use_is_refused_and_says_by_whom(bigctl: Cli) -> None:
    overrides = ["recipe=mlp_cls", "train.steps=1000000", "eval.every=100000"]
    process = subprocess.Popen(
        bigctl.command("train", *overrides, "--name", "busy"), cwd=bigctl.folder, stderr=subprocess.DEVNULL
    )
    try:
        while not (bigctl.folder / "runs/busy/run.json").exists():
            time.sleep(0.02)
        message = bigctl("train", *overrides, "--name", "busy", code=5).stderr
        assert f"process {process.pid}" in message
    finally:
        process.terminate()
        assert process.wait(60) == 75


def test_damaged_checkpoint_is_named_and_the_one_before_is_used(bigctl: Cli) -> None:
    overrides = ["recipe=mlp_cls", "train.steps=40", "checkpoint.every=10", "eval.every=40", "--name", "a"]
    bigctl("train", *overrides)
    newest = bigctl.folder / "runs/a/checkpoints/000000040"
    victim = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(bytes(content))
    longer = [o.replace("steps=40", "steps=50") for o in overrides]
    done = bigctl("train", *longer, "--json", "--quiet")
    assert json.loads(done.stdout)["resumed_from"] == 30
    assert victim.name in done.stderr and "step 30 is used instead" in done.stderr
    assert victim.name in (bigctl.folder / "runs/a/log.txt").read_text()
    for marker in bigctl.folder.glob("runs/a/checkpoints/*/manifest-0.json"):
        marker.unlink()
    before = sorted(bigctl.folder.glob("runs/a/checkpoints/*/*"))
    message = bigctl("train", *(o.replace("steps=40", "steps=60") for o in overrides), code=2).stderr
    assert "no checkpoint is whole" in message and message.count("manifest-0.json is missing") == 2
    assert sorted(bigctl.folder.glob("runs/a/checkpoints/*/*")) == before


def test_divergence_names_the_step_and_keeps_the_last_good_checkpoint(bigctl: Cli) -> None:
    overrides = ["recipe=mlp_cls", "optimizer=sgd", "optimizer.lr=1e30", "train.steps=50", "--name", "a"]
    message = bigctl("train", *overrides, code=1).stderr
    assert "not finite at step" in message
    assert json.loads((bigctl.folder / "runs/a/run.json").read_text())["status"] == "diverged"
    assert "diverged" in bigctl("train", *overrides, code=1).stderr
