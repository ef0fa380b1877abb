"""`bigctl runs`: nothing it finds stops the listing, nothing but runs is ever deleted."""

from __future__ import annotations

import fcntl
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bigctl import files
from bigctl.errors import ConfigError
from bigctl.runs import listing, untrusted
from tests.cli.test_info import record, trained  # noqa: F401
from tests.conftest import Cli

DAY = 86400.0


@pytest.fixture
def runs(bigctl: Cli, trained: Path) -> Path:  # noqa: F811
    """Runs in every state: done, killed, failed, old and failed, begun, unreadable; and a folder that is none."""
    root = bigctl.folder / "runs"
    for name in ("done", "killed", "failed", "ancient", "damaged"):
        shutil.copytree(trained, root / name)
    record(root / "killed", status="running")
    (root / "killed" / "summary.json").unlink()
    record(root / "failed", status="failed", message="no more space", updated=time.time())
    record(root / "ancient", status="failed", updated=time.time() - 30 * DAY)
    (root / "ancient" / "metrics.jsonl").unlink()
    (root / "damaged" / "run.json").write_text('{"status": ')
    (root / "begun").mkdir()
    (root / "begun" / ".lock").write_text("process 1 on here")
    (root / "notes").mkdir()
    (root / "notes" / "todo.txt").write_text("keep me")
    return root


def names(bigctl: Cli, *arguments: str) -> set[str]:
    return {row["name"] for row in bigctl.json("runs", *arguments)["runs"]}


def left(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


def test_every_run_is_listed_with_its_state(bigctl: Cli, runs: Path) -> None:
    rows: dict[str, Any] = {row["name"]: row for row in bigctl.json("runs")["runs"]}
    assert {name: row["status"] for name, row in rows.items()} == {
        "done": "complete", "killed": "partial", "failed": "failed", "ancient": "failed", "begun": "new",
        "damaged": "unreadable",
    }  # fmt: skip
    for name in ("done", "killed"):
        assert rows[name]["step"] == 20 and rows[name]["metric"] == "val/accuracy" and 0.3 < rows[name]["value"] <= 1
    text = bigctl("runs").stdout
    assert "no more space" in text and "30 d" in text and "unreadable" in text


def test_filter_status_and_age_select(bigctl: Cli, runs: Path) -> None:
    assert names(bigctl, "an*ent") == {"ancient"}
    assert names(bigctl, "train.steps=20", "--status", "complete") == {"done"}
    assert names(bigctl, "--status", "failed,partial") == {"killed", "failed", "ancient"}
    assert names(bigctl, "--older-than", "7d") == {"ancient"}
    assert "no runs under" in bigctl("runs", "nothing-like-it").stdout
    assert "'fialed'" in bigctl("runs", "--status", "fialed", code=2).stderr
    assert "7d" in bigctl("runs", "--older-than", "soon", code=2).stderr


def test_no_runs_is_no_error(bigctl: Cli) -> None:
    assert bigctl.json("runs") == {"root": "runs", "runs": []}


def test_another_root_can_be_listed(bigctl: Cli, runs: Path) -> None:
    shutil.move(runs, bigctl.folder / "elsewhere")
    assert "done" in names(bigctl, "--root", "elsewhere")
    assert "is not a folder" in bigctl("runs", "--root", "nowhere", code=2).stderr


def test_rm_asks_first_and_removes_only_what_was_named(bigctl: Cli, runs: Path) -> None:
    before = left(runs)
    assert "--yes" in bigctl("runs", "rm", "done", code=2).stderr
    assert left(runs) == before
    assert "freed" in bigctl("runs", "rm", "done", "runs/damaged", "--yes").stdout
    assert left(runs) == before - {"done", "damaged"}


def test_rm_refuses_what_is_no_run(bigctl: Cli, runs: Path) -> None:
    project = bigctl.folder / "project"
    project.mkdir()
    (project / "run.json").write_text('{"scripts": {}}')
    (bigctl.folder / "link").symlink_to(runs / "done")
    for name, why in (("notes", "not a run"), (str(project), "not a run"), (".", "not a run"), ("link", "a link")):
        assert why in bigctl("runs", "rm", name, "--yes", code=2).stderr
    assert "did you mean done" in bigctl("runs", "rm", "killed", "don", "--yes", code=2).stderr
    assert (runs / "notes" / "todo.txt").exists() and (project / "run.json").exists()
    assert {"done", "killed"} <= left(runs)  # one wrong name: none goes


def test_a_run_in_use_is_neither_removed_nor_pruned(bigctl: Cli, runs: Path) -> None:
    with (runs / "failed" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "in use" in bigctl("runs", "rm", "failed", "--yes", code=5).stderr
        assert "in use" in bigctl("runs", "prune", "--yes", code=1).stderr
        assert "failed" in left(runs) and "ancient" not in left(runs)


def test_prune_takes_failures_and_only_those(bigctl: Cli, runs: Path) -> None:
    before = left(runs)
    assert "would free" in bigctl("runs", "prune", "--dry-run").stdout and left(runs) == before
    done = bigctl.json("runs", "prune", "--older-than", "7d", "--yes")
    assert done["freed_bytes"] > 1000 and left(runs) == before - {"ancient"}
    bigctl("runs", "prune", "--status", "failed,partial,new", "--yes")
    assert left(runs) == {"done", "damaged", "notes"}


@pytest.mark.parametrize("keep", ["last", "best", "none"])
def test_checkpoints_of_complete_runs_are_dropped_but_one(bigctl: Cli, runs: Path, keep: str) -> None:
    steps = {c["step"]: c for c in bigctl.json("info", "done")["checkpoints"]}
    kept = {step for step, c in steps.items() if keep != "none" and c[keep]}
    assert len(steps) == 2 and len(kept) == (keep != "none")
    assert not bigctl.json("info", "done")["notes"]
    before = left(runs / "killed" / "checkpoints")
    report = bigctl.json("runs", "prune", "--keep-checkpoints", keep, "--yes")
    assert report["freed_bytes"] == sum(c["bytes"] for step, c in steps.items() if step not in kept)
    assert {int(name) for name in left(runs / "done" / "checkpoints")} == kept
    assert left(runs / "killed" / "checkpoints") == before  # it may still be resumed
    gone = json.loads((runs / "done" / "summary.json").read_text())["selected_step"] not in kept
    assert bool(bigctl.json("info", "done")["notes"]) == gone
    assert json.loads((runs / "done" / "summary.json").read_text())["step"] == 20


def test_ages_are_read_with_their_unit() -> None:
    from bigctl.cli.runs import seconds

    assert [seconds(age) for age in ("90s", "30min", "1.5h", "7d", "2w")] == [90, 1800, 5400, 7 * DAY, 14 * DAY]
    with pytest.raises(ConfigError):
        seconds("7")


def test_listing_a_run_takes_little_work_and_reads_none_of_its_metrics(
    bigctl: Cli,
    trained: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Work counted, not timed: five hundred runs are there within a second if one takes less than three thousand
    (bench_startup.py times it)."""
    for number in range(20):
        run = bigctl.folder / "runs" / f"run{number}"
        run.mkdir(parents=True)
        for name in ("run.json", "summary.json", "goodput.json", "metrics.jsonl", ".lock"):
            shutil.copy(trained / name, run / name)
    read: list[str] = []
    calls = 0
    whole = files.read_regular

    def reading(path: Path, **bounds: int) -> bytes:
        read.append(path.name)
        return whole(path, **bounds)

    def counted(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    for module in (untrusted, listing):
        monkeypatch.setattr(module, "read_regular", reading)
    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        found = listing.rows(bigctl.folder / "runs")
    finally:
        sys.setprofile(before)
    assert len(found) == 20 and {row.status for row in found} == {"complete"}
    assert sorted(read) == ["goodput.json"] * 20 + ["run.json"] * 20 + ["summary.json"] * 20
    assert calls / 20 < 3000


def test_a_run_without_its_record_is_listed_explained_and_removed_alike(bigctl: Cli, runs: Path) -> None:
    (runs / "killed" / "run.json").unlink()
    row = next(row for row in bigctl.json("runs")["runs"] if row["name"] == "killed")
    assert row["status"] == "unreadable" and "run.json: is missing" in row["message"]
    said = bigctl("info", "killed", code=2).stderr
    for hint in ("repeat the command that began the run", "`bigctl runs rm`"):
        assert hint in row["message"] and hint in said
    bigctl("runs", "rm", "killed", "--yes")
    assert "killed" not in left(runs)
