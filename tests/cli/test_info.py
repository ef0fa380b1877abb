"""`bigctl info` on runs in every state that a run can be found in."""

from __future__ import annotations

import fcntl
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bigctl.runs import manifest
from tests.conftest import Cli

TINY = ("recipe=mlp_cls", "data=breast_cancer", "train.steps=20", "checkpoint.every=10", "eval.every=10")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One complete run, which the tests copy."""
    folder = tmp_path_factory.mktemp("trained")
    Cli(folder)("train", *TINY, "--name", "tiny", "--quiet")
    return folder / "runs" / "tiny"


@pytest.fixture
def tiny(bigctl: Cli, trained: Path) -> Path:
    return Path(shutil.copytree(trained, bigctl.folder / "runs" / "tiny"))


def record(run: Path, **values: Any) -> None:
    file = run / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_complete_run_tells_what_came_out_and_what_it_was_made_with(bigctl: Cli, tiny: Path) -> None:
    facts = bigctl.json("info", "tiny")
    summary = json.loads((tiny / "summary.json").read_text())
    assert (facts["status"], facts["step"], facts["total"]) == ("complete", 20, 20)
    assert facts["metrics"] == summary["metrics"] and facts["selected_step"] == summary["selected_step"]
    assert facts["parameters"] == summary["parameters"] and facts["packages"]["jax"]
    assert facts["data"]["sizes"]["train"] == summary["data"]["train"]
    assert facts["data"]["fingerprint"] == summary["data"]["fingerprint"]
    assert [s["step"] for s in facts["starts"]] == [0] and facts["starts"][0]["argv"][:2] == ["bigctl", "train"]
    assert {c["step"] for c in facts["checkpoints"] if c["committed"] and c["bytes"] > 1000} == {10, 20}
    text = bigctl("info", "runs/tiny").stdout
    for part in ("complete, step 20 of 20", "test/accuracy", "train.steps=20", "jax ", "fingerprint", "1 cpu"):
        assert part in text


def test_killed_run_tells_how_to_go_on(bigctl: Cli, tiny: Path) -> None:
    record(tiny, status="running")
    (tiny / "summary.json").unlink()
    (tiny / "checkpoints" / "000000020" / manifest.MANIFEST).unlink()
    out = bigctl("info", "tiny").stdout
    assert "partial, step 20 of 20" in out and "to resume: bigctl train recipe=mlp_cls" in out
    facts = bigctl.json("info", "tiny")
    assert [(c["step"], c["committed"]) for c in facts["checkpoints"]] == [(10, True), (20, False)]
    assert facts["metrics"]["val/accuracy"] > 0.3  # from the checkpoint that is whole


def test_failed_run_tells_why_and_where_the_log_is(bigctl: Cli, tiny: Path) -> None:
    record(tiny, status="failed", message="the disk is full", exit_code=1)
    out = bigctl("info", "tiny").stdout
    assert "failed" in out and "the disk is full" in out and "log: runs/tiny/log.txt" in out


def test_running_run_names_the_process(bigctl: Cli, tiny: Path) -> None:
    record(tiny, status="running")
    with (tiny / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("process 4711 on here")
        lock.flush()
        assert "in use by process 4711 on here" in bigctl("info", "tiny").stdout


@pytest.mark.parametrize("lost", ["summary.json", "metrics.jsonl", "config.yaml", "checkpoints", "log.txt", ".lock"])
def test_nothing_but_the_record_is_needed(bigctl: Cli, tiny: Path, lost: str) -> None:
    path = tiny / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert bigctl.json("info", "tiny")["status"] == "complete"


def test_run_killed_right_after_its_record_was_made_is_shown(bigctl: Cli) -> None:
    run = bigctl.folder / "runs" / "young"
    run.mkdir(parents=True)
    (run / "run.json").write_text('{"schema": 1, "created": 1.0, "status": "running", "recipe": "mlp_cls"}')
    assert "partial, no step recorded" in bigctl("info", "young").stdout


@pytest.mark.parametrize("content", ["", "{", "[]", '{"starts": 3, "data": []}', '{"starts": [{}]}'])
def test_damaged_record_is_one_clear_line(bigctl: Cli, tiny: Path, content: str) -> None:
    (tiny / "run.json").write_text(content)
    done = bigctl("info", "tiny", code=2)
    assert "runs/tiny/run.json" in done.stderr and len(done.stderr.splitlines()) <= 2 and not done.stdout


def test_missing_run_is_answered_with_close_names(bigctl: Cli, tiny: Path) -> None:
    assert "tiny" in bigctl("info", "tiy", code=2).stderr


def test_metrics_stand_in_columns_and_the_data_is_named(bigctl: Cli, tiny: Path) -> None:
    lines = bigctl("info", "tiny").stdout.splitlines()
    scores = [line for line in lines if line[13:].startswith(("test/", "val/")) and "this run" not in line]
    assert len({len(line) for line in scores}) == 1 and len(scores) > 10
    data = lines.index(next(line for line in lines if line.startswith("data ")))
    assert "Wisconsin" in lines[data] and "examples: train " in lines[data + 1]
