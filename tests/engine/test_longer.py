"""A run that is made longer, or judged otherwise: how long it is then, and which checkpoint is its best."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest

from bigctl.cli.main import main
from bigctl.config import cadence, schema
from bigctl.config.cadence import Done
from bigctl.config.compose import compose
from bigctl.engine import selection, so_far
from bigctl.runs.directory import RunDirectory
from bigctl.training import early_stop
from bigctl.training.state import Progress
from tests.beside import Command, commands

SMALL = ["model.hidden=[4]", "train.tensorboard=false", "schedule=constant", "--quiet", "--name", "a"]
RUN = Path("runs/a")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that learns nothing and stopped after its second evaluation, at step 4 of 60 epochs."""
    folder = tmp_path_factory.mktemp("stopped")
    rule = ["train.epochs=60", "eval.every=2", "train.early_stop.patience=1", "optimizer.lr=1e-30"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "recipe=mlp_cls", *rule, *SMALL]) == 0
    return folder


@pytest.fixture
def command(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Run a command beside a copy of that run; gives its summary, or what it says where it fails."""
    run = commands(stopped, tmp_path, monkeypatch, capsys)

    def run_or_fail(*arguments: str, code: int = 0) -> Any:
        return run(*arguments, "--quiet", *(["--json"] if code == 0 else []), code=code)

    return run_or_fail


# --- stopped early ----------------------------------------------------------------------------------------------------


def test_a_run_that_stopped_early_goes_on_when_its_rule_is_taken_back(command: Command) -> None:
    assert command("resume", "a")["already_complete"]
    assert "no better val/accuracy in 1 evaluations; to make it longer" in command(
        "resume", "a", "train.epochs=120", code=2
    )
    allowed = ["train.early_stop.patience=null", "--allow-drift", "train.early_stop.patience"]
    summary = command("resume", "a", "train.steps=6", *allowed)
    assert (summary["step"], summary["stopped"], summary["resumed_from"]) == (6, "", 4)


@pytest.mark.parametrize(
    ("rule", "goes_on"),
    [
        ({"patience": 3}, False),
        ({"patience": 4}, True),
        ({"target": 0.9}, True),
        ({"target": 0.5}, False),
        ({}, True),
    ],
)
def test_what_stopped_is_judged_by_the_rule_of_today(rule: dict[str, Any], goes_on: bool) -> None:
    why = early_stop.still(schema.EarlyStop(**rule), "val/f1", "max", "no better val/f1 in 3 evaluations", 0.6, 3)
    assert (why == "") == goes_on


def test_a_target_that_was_reached_stays_reached() -> None:
    rule = schema.EarlyStop(target=0.9, min_delta=0.1)
    assert early_stop.still(rule, "val/f1", "max", "val/f1 reached 0.9", 0.85, 1)
    assert not early_stop.still(schema.EarlyStop(target=0.95), "val/f1", "max", "val/f1 reached 0.9", 0.91, 1)


def test_clipping_is_added_to_a_run_that_is_resumed_and_taken_away(command: Command) -> None:
    allowed = [f for key in ("optimizer.clip", "train.early_stop.patience") for f in ("--allow-drift", key)]
    on = command("resume", "a", "train.steps=5", "optimizer.clip=1", "train.early_stop.patience=null", *allowed)
    off = command("resume", "a", "train.steps=6", "optimizer.clip=null", *allowed)
    assert (on["resumed_from"], on["step"], off["resumed_from"], off["step"]) == (4, 5, 5, 6)


# --- epochs -----------------------------------------------------------------------------------------------------------


@functools.cache
def base() -> schema.Config:
    return compose(["recipe=mlp_cls"]).config


def config(epochs: float, batch_size: int) -> schema.Config:
    return dataclasses.replace(base(), train=schema.Train(epochs=epochs, batch_size=batch_size))


def test_epochs_are_counted_in_examples_whatever_the_batches_were() -> None:
    assert cadence.total_steps(config(10, 64), 409, Done(16, 16 * 128)) == 16 + 32
    assert cadence.total_steps(config(10, 16), 409, Done(16, 16 * 128)) == 16 + 128
    assert cadence.total_steps(config(5, 16), 409, Done(16, 16 * 128)) == 16  # nothing is left


@pytest.mark.parametrize("batch_size", [3, 7, 32, 64])
def test_a_length_does_not_depend_on_where_the_run_was_cut(batch_size: int) -> None:
    for examples in (20, 101, 102, 409):
        for before in (0, 5):
            whole = cadence.total_steps(config(2.5, batch_size), examples, Done(before, before * 2))
            for step in range(before, whole):
                done = Done(step, before * 2 + (step - before) * batch_size)
                assert cadence.total_steps(config(2.5, batch_size), examples, done) == whole


def test_rewinds_leave_the_length_as_it_is() -> None:
    saved = config(2, 32)
    assert so_far._counted({"step": 10, "position": 640, "passed_over": 320, "rewinds": 1}, saved) == Done(10, 320)
    assert so_far._counted({"step": 10, "position": 640, "rewinds": 1}, saved) == Done(10, 320)
    assert so_far._counted({"step": 10, "position": 640}, config(2, 64)) == Done(10, 640)


def test_a_run_resumed_with_another_batch_size_ends_at_its_epochs(command: Command) -> None:
    before = json.loads((RUN / "checkpoints/000000004/meta.json").read_text())["progress"]
    allowed = ["--allow-drift", "train.batch_size", "--allow-drift", "train.early_stop.patience"]
    drift = ["train.batch_size=16", "train.epochs=6", "train.early_stop.patience=null", *allowed]
    summary = command("resume", "a", *drift)
    assert before["position"] == 4 * 32 and summary["epoch"] == pytest.approx(6, abs=0.08)
    again = command("resume", "a", *drift)
    assert again["already_complete"] and so_far.progress(RunDirectory(RUN))["step"] == summary["step"]


# --- selection --------------------------------------------------------------------------------------------------------

LINES = [
    {"step": 10, "val/f1": 0.9, "val/auc": 0.5, "val/loss": 1.0},
    {"step": 15, "train/loss": 1.0},
    {"step": 20, "val/f1": 0.7, "val/auc": 0.6, "val/loss": 0.9},
    {"step": 30, "val/f1": 0.6, "val/auc": 0.7, "val/loss": 0.8},
    {"step": 40, "val/f1": None, "val/auc": 0.6, "val/loss": 0.7},
]


def judged(progress: Progress, metric: str, mode: str = "max") -> tuple[Progress, str]:
    before = {"metric": "val/auc", "mode": "max"}
    return selection.carried_over(progress, metric, mode, before=before, lines=lambda: LINES, kept=[20, 30, 40])


def by_auc(**more: Any) -> Progress:
    return Progress(step=40, position=99, best=0.7, best_step=30, stale=1, best_metrics=dict(LINES[3]), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("told", [{"metric": "val/auc", "mode": "max"}, {}])
def test_another_metric_has_a_mark_of_its_own(told: dict[str, str]) -> None:
    found, said = judged(by_auc(**told), "val/f1")
    assert (found.best, found.best_step, found.stale, found.step) == (0.7, 20, 1, 40)
    assert found.best_metrics["val/f1"] == 0.7 and found.metric == "val/f1" and "0.7 at step 20" in said
    found, _ = judged(by_auc(**told), "val/auc", "min")
    assert (found.best, found.best_step, found.stale) == (0.6, 40, 0)  # of equals the one of lower loss
    assert judged(by_auc(**told), "val/new")[0].best is None


@pytest.mark.parametrize("told", [{"metric": "val/auc", "mode": "max"}, {}])
def test_the_same_metric_keeps_its_mark(told: dict[str, str]) -> None:
    found, said = judged(by_auc(**told), "val/auc")
    assert found == by_auc(metric="val/auc", mode="max") and said == ""


def test_a_metric_that_is_no_number_is_warned_of_once_and_selects_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [f"{i % 7},{i % 2}" for i in range(64)] + [f"{i},1" for i in range(16)]
    Path("t.csv").write_text("\n".join(["a,y", *rows]) + "\n")
    splits = ["data.train=train[:64]", "data.validation=train[64:72]", "data.test=train[72:]", "eval.test=false"]
    data = ["data=csv", "data.path=t.csv", "data.label=y", *splits]
    steps = ["train.steps=6", "eval.every=2", "eval.metric=val/roc_auc", "train.batch_size=8"]
    assert main(["train", "recipe=mlp_cls", *data, *steps, *SMALL, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err.count("val/roc_auc is nan at step 2: it selects no checkpoint") == 1, err
    assert json.loads(out)["selected_step"] == 6
    assert so_far.progress(RunDirectory(RUN))["best"] is None and math.isnan(Progress().best or math.nan)
