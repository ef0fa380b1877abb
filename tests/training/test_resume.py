"""A run that is cut off at any step and started again is the run that was never cut off, to the last bit."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bigctl
from bigctl.cli.main import main
from bigctl.errors import Preempted
from bigctl.training.checkpoints.arrays import read_arrays
from bigctl.training.checkpoints.store import Checkpoints
from bigctl.training.feed import LoopFeed, ResidentFeed
from tests import beside
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
    "packed texts": [
        "recipe=bert_cls", "model=bert_tiny", "model.layers=1", "model.width=16", "model.heads=2",
        "model.intermediate=32", "model.positions=32", "recipe.tokenizer.type=words", "recipe.tokenizer.size=64",
        "recipe.tokenizer.max_length=32", "train.batch_size=16", "train.steps=40", "train.log_every=6",
        "eval.every=20", "checkpoint.every=10",
    ],
}  # fmt: skip


def state_of(run: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Every array of a run's last checkpoint, as it was saved, and its progress."""
    saved = Checkpoints(run / "checkpoints").find("last")
    return read_arrays(saved.path, list(saved.meta["shapes"]), None), saved.meta["progress"]


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
def test_stopping_at_every_odd_step_changes_no_bit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train in slices that end by a signal at a step of no cadence at all."""
    texts = write(tmp_path) if name.endswith("texts") else []
    config = bigctl.compose([*RECIPES[name], *texts, "train.tensorboard=false"])
    bigctl.train(config, tmp_path / "whole", quiet=True)
    cuts, stops = [3, 17, 31], 0
    for feed in (LoopFeed, ResidentFeed):
        monkeypatch.setattr(feed, "advance", _cutting(feed.advance, cuts, config.train.batch_size))
    while True:
        try:
            bigctl.train(config, tmp_path / "sliced", quiet=True)
            break
        except Preempted as error:
            assert error.exit_code == 75
            stops += 1
    assert stops == 3  # it was really cut
    assert_same_run(tmp_path / "whole", tmp_path / "sliced")


def _cutting(original: Callable[..., Any], cuts: list[int], batch_size: int) -> Callable[..., Any]:
    """A feed's `advance` that goes no further than the next cut and then sends the signal."""

    def advance(self: Any, state: Any, position: int, limit: int) -> Any:
        step = position // batch_size
        if cuts and step < cuts[0]:
            limit = min(limit, cuts[0] - step)
        state, count = original(self, state, position, limit)
        if cuts and step + count >= cuts[0]:
            cuts.pop(0)
            os.kill(os.getpid(), signal.SIGTERM)
        return state, count

    return advance


def test_killed_runs_end_as_the_undisturbed_one(tmp_path: Path) -> None:
    overrides = ["recipe=cnn_cls", "data=digits", "train.steps=240", "train.log_every=7", "checkpoint.every=20",
                 "eval.every=40", "model.channels=[4]", "model.hidden=[8]", "model.dropout=0.1",
                 "train.tensorboard=false"]  # fmt: skip
    command = Cli(tmp_path)
    command("train", *overrides, "--name", "whole")
    run = tmp_path / "runs" / "killed"
    codes = []
    for attempt, number in enumerate([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]):
        process = subprocess.Popen(
            command.command("train", *overrides, "--name", "killed", "--quiet"),
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ,
        )  # fmt: skip
        codes.append(interrupt(process, run, step=attempt + 1, number=number))
    assert codes[0] == -signal.SIGKILL, codes  # at the least the first one was caught in the act
    command("train", *overrides, "--name", "killed")
    assert_same_run(tmp_path / "runs" / "whole", run)


RUN = [
    "recipe=mlp_cls", "model.hidden=[8]", "train.steps=40", "schedule.horizon=60", "checkpoint.every=10",
    "eval.every=40", "train.tensorboard=false", "--name", "a",
]  # fmt: skip


def steps(number: int) -> list[str]:
    return [f"train.steps={number}" if key.startswith("train.steps") else key for key in RUN]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run `a` of 40 steps and what its command has told."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.chdir(folder)
        assert main(["train", *RUN, "--json"]) == 0
    (folder / "told.json").write_text(out.getvalue())
    return folder


@pytest.fixture
def command(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> beside.Command:
    return beside.commands(made, tmp_path, monkeypatch, capsys)


def test_the_same_command_again_is_a_no_op(command: beside.Command) -> None:
    before = {p: p.stat().st_mtime_ns for p in Path("runs").rglob("*") if p.is_file() and p.name != ".lock"}
    second = command("train", *RUN, "--json")
    after = {p: p.stat().st_mtime_ns for p in Path("runs").rglob("*") if p.is_file() and p.name != ".lock"}
    assert second.pop("already_complete") is True
    assert json.loads(Path("told.json").read_text()) == second
    assert before == after


def test_a_longer_run_goes_on_from_the_shorter_one_with_its_schedule(command: beside.Command) -> None:
    summary = command("train", *steps(60), "--json")
    assert summary["resumed_from"] == 40 and summary["step"] == 60
    command("train", *steps(60)[:-1], "straight")
    grown, straight = (state_of(Path("runs") / name)[0] for name in ("a", "straight"))
    for name, value in straight.items():
        if name.startswith("params"):
            np.testing.assert_array_equal(value, grown[name], err_msg=name)


def test_a_changed_learning_rate_is_refused_unless_allowed(command: beside.Command) -> None:
    changed = ["train", *steps(50), "optimizer.lr=0.01"]
    message = command(*changed, code=2)
    assert "optimizer.lr" in message and "--allow-drift optimizer.lr" in message
    command(*changed, "--allow-drift", "optimizer.lr")


def test_another_model_is_refused(command: beside.Command) -> None:
    assert "model.hidden" in command("train", *steps(50), "model.hidden=[4]", code=2)


def test_damaged_checkpoint_is_named_and_the_one_before_is_used(command: beside.Command) -> None:
    run = Path("runs/a")
    victim = max((p for p in (run / "checkpoints/000000040").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(bytes(content))
    told = command("train", *steps(50), "--quiet")
    assert json.loads((run / "summary.json").read_text())["resumed_from"] == 30
    assert victim.name in told and "step 30 is used instead" in told
    assert victim.name in (run / "log.txt").read_text()
    for marker in run.glob("checkpoints/*/manifest-0.json"):
        marker.unlink()
    before = sorted(run.glob("checkpoints/*/*"))
    message = command("train", *steps(60), code=2)
    assert "no checkpoint is whole" in message and message.count("manifest-0.json is missing") == 2
    assert sorted(run.glob("checkpoints/*/*")) == before


def test_divergence_names_the_step_and_keeps_the_last_good_checkpoint(command: beside.Command) -> None:
    overrides = [*RUN[:-1], "diverging", "optimizer=sgd", "optimizer.lr=1e30"]
    assert "not finite at step" in command("train", *overrides, code=1)
    assert json.loads(Path("runs/diverging/run.json").read_text())["status"] == "diverged"
    assert "diverged" in command("train", *overrides, code=1)
