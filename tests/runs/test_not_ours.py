"""Files that are not bigctl's: no command waits for a pipe, writes through a link, or removes what somebody else put
there; and a folder is a run by what stands in its record alone."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bigctl.cli.main import main
from bigctl.errors import RunError
from bigctl.runs import listing, removal
from bigctl.runs.directory import RunDirectory, take_lock

RUN = Path("runs/a")
LOOK = (["runs"], ["info", "a"], ["compare", "a", "b"], ["verify", "a"], ["report", "a", "--samples", "0"])
NAMES = (
    "run.json", "summary.json", "metrics.jsonl", ".lock", "log.txt", "config.yaml", "overrides.txt", "samples.jsonl",
    "checkpoints/000000020/manifest-0.json", "checkpoints/000000020/meta.json",
)  # fmt: skip


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two complete runs; what takes longer than a minute hangs."""
    for name in ("a", "b"):
        shutil.copytree(Path(__file__).parents[1] / "fixtures" / "run_v1", tmp_path / "runs" / name)
        (tmp_path / "runs" / name / "expected.json").unlink()
    monkeypatch.chdir(tmp_path)

    def hangs(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(60)
    yield tmp_path / "runs"
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main(list(arguments))
        out, err = capsys.readouterr()
        assert "Traceback" not in err and "traceback in" not in err, err
        return code, out + err

    return run


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


# --- pipes and links --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_no_command_that_looks_waits_for_a_pipe(name: str, said: Any) -> None:
    pipe(RUN / name)
    for command in LOOK:
        code, text = said(*command)
        assert code in (0, 1, 2), text
    assert "b " in said("runs")[1]


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "log.txt"])
def test_resume_refuses_a_pipe(name: str, said: Any) -> None:
    record = json.loads((RUN / "run.json").read_text())
    (RUN / "run.json").write_text(json.dumps({**record, "status": "partial"}))
    pipe(RUN / name)
    code, text = said("resume", "a", "train.steps=30", "--quiet")
    assert code in (1, 2) and "cannot be written: " in text, text


@pytest.mark.parametrize("name", [".lock", "log.txt"])
def test_nothing_is_written_through_a_link(name: str, tmp_path: Path, said: Any) -> None:
    secret = tmp_path / "precious"
    secret.write_text("as it was")
    (RUN / name).unlink(missing_ok=True)
    (RUN / name).symlink_to(secret)
    record = json.loads((RUN / "run.json").read_text())
    (RUN / "run.json").write_text(json.dumps({**record, "status": "partial"}))
    code, text = said("resume", "a", "--quiet")
    assert code == 2 and "it is a link" in text and secret.read_text() == "as it was"


def test_what_a_link_leads_to_is_not_shown(tmp_path: Path, said: Any) -> None:
    (tmp_path / "secret").write_text("hunter2\n")
    record = json.loads((RUN / "run.json").read_text())
    (RUN / "run.json").write_text(json.dumps({**record, "status": "failed"}))
    (RUN / "log.txt").symlink_to(tmp_path / "secret")
    assert said("report", "a", "--samples", "0")[0] == 0
    assert "hunter2" not in (RUN / "report.html").read_text()


# --- what is a run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "files",
    [{".lock": ""}, {".lock": "mine"}, {"run.json": '{"scripts": {}}'}, {"run.json": '{"status": "x"}', ".lock": ""}],
)
def test_a_lock_or_a_run_json_of_somebody_else_makes_no_run(files: dict[str, str], runs: Path, said: Any) -> None:
    folder = runs / "theirs"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "work.txt").write_text("mine")
    assert [row.name for row in listing.rows(runs)] == ["a", "b"]
    assert said("runs", "rm", "theirs", "--yes")[0] == 2
    code, text = said("train", "recipe=mlp_cls", "--run-dir", str(folder), "--quiet")
    assert code == 2 and "holds no run" in text
    assert said("info", "theirs")[0] == 2
    assert {file.name for file in folder.iterdir()} == {*files, "work.txt"}


def test_a_run_that_was_killed_before_its_record_is_listed_and_can_be_removed(runs: Path, said: Any) -> None:
    (runs / "begun").mkdir()
    stream = take_lock(runs / "begun" / ".lock")
    from bigctl.runs import directory

    directory.sign(stream)
    stream.close()
    assert {row.name: row.status for row in listing.rows(runs)}["begun"] == "new"
    assert said("runs", "rm", "begun", "--yes")[0] == 0 and not (runs / "begun").exists()


# --- removal ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stranger",
    ["notes.txt", "checkpoints/best.txt", "checkpoints/000000020/notes.txt", "tensorboard/mine.csv", "profile/mine",
     "paper/figure.png", "checkpoints/latest"],
)  # fmt: skip
def test_rm_stops_at_what_bigctl_did_not_write(stranger: str, runs: Path, said: Any) -> None:
    (RUN / stranger).parent.mkdir(exist_ok=True)
    (RUN / stranger).write_text("mine")
    code, text = said("runs", "rm", "b", "a", "--yes")
    assert code == 2 and stranger in text.replace("paper;", stranger) and (RUN / stranger).read_text() == "mine"
    assert (RUN / "run.json").exists() and (runs / "b" / "run.json").exists()


def test_rm_does_not_follow_a_link(tmp_path: Path, runs: Path, said: Any) -> None:
    shutil.move(RUN / "checkpoints", tmp_path / "scratch")
    (RUN / "checkpoints").symlink_to(tmp_path / "scratch")
    assert said("runs", "rm", "a", "--yes")[0] == 2 and (tmp_path / "scratch" / "000000020").is_dir()


def test_rm_removes_all_that_bigctl_writes(runs: Path, said: Any) -> None:
    for name in (
        ".lock", "log.txt", "samples.jsonl", "tokenizer.json", "generation.json", "report.html", "curves.png",
        ".run.json.123.tmp", ".log.txt.7-0aff.tmp",
        "tensorboard/events.out.tfevents.1.host", "profile/plugins/profile/x/y.trace.json.gz",
        "hf/config.json", "hf/model.safetensors", "hf/preprocessor_config.json", "hf/SHA256SUMS", "timm/source.json",
        "jax/generation.json", "checkpoints/000000030/unfinished",
        "checkpoints/000000010.aside/meta.json", "checkpoints/000000040.removed/state/d/x",
        "checkpoints/000000030/state.orbax-checkpoint-tmp/x", "checkpoints/000000020/.meta.json.7.tmp",
    ):  # fmt: skip
        (RUN / name).parent.mkdir(parents=True, exist_ok=True)
        (RUN / name).touch()
    assert [*removal.strangers(RUN)] == []
    assert said("runs", "rm", "a", "--yes")[0] == 0 and not RUN.exists()


def test_a_stranger_that_comes_before_the_removal_stops_it_too(runs: Path) -> None:
    run = removal.find("a", runs)
    (RUN / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"notes\.txt; nothing was removed"):
        removal.remove(run)
    assert (RUN / "run.json").exists() and not RunDirectory(RUN).held()


def test_a_start_that_came_to_nothing_leaves_nothing_of_what_it_wrote(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "new")
    run.lock()
    run.write_config("seed: 0\n", ["seed=0"])
    for file in (run.tokenizer, run.generation):  # of weights that then turned out to be of another model
        file.write_text("{}")
    assert not run.begun
    run.discard()
    run.release()
    assert not run.path.exists()


def test_a_start_that_is_ended_while_it_writes_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(tmp_path / "new")
    run.lock()
    writing, ended = threading.Event(), threading.Event()
    synced = os.fsync

    def slow(descriptor: int) -> None:  # config.yaml lies there under another name until the disk has it
        writing.set()
        ended.wait(0.1)
        synced(descriptor)

    def write() -> None:
        with contextlib.suppress(RunError):
            run.write_config("seed: 0\n", ["seed=0"])

    monkeypatch.setattr(os, "fsync", slow)
    worker = threading.Thread(target=write)
    worker.start()
    writing.wait(10)
    run.discard()
    ended.set()
    worker.join()
    run.release()
    assert not run.path.exists()
