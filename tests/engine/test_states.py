"""What `train` and `resume` do with a run, by the state it is in: the table of docs/resume.md.

Killed, preempted and held runs, and longer ones, are also in tests/training/test_resume.py, full disks in test_storage.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bigctl.cli.main import main
from tests.beside import Command, commands
from tests.conftest import Cli

pytestmark = pytest.mark.fewer

RECIPE = ["recipe=mlp_cls", "model.hidden=[4]", "train.tensorboard=false"]
TRAIN = ["train", *RECIPE, "--name", "a", "--quiet"]
RUN = Path("runs/a")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a complete run of 20 steps."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*TRAIN, "train.steps=20"]) == 0
    return folder


@pytest.fixture
def command(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Run a command beside a copy of that run; gives its stderr, or with --json its result."""
    return commands(trained, tmp_path, monkeypatch, capsys)


def record() -> dict[str, Any]:
    return json.loads((RUN / "run.json").read_text())


def alter(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


# --- new --------------------------------------------------------------------------------------------------------------


def test_the_test_split_is_left_alone_where_asked(command: Command) -> None:
    small = ["train", *RECIPE, "--quiet", "train.steps=2", "eval.test=false", "--run-dir", "untested"]
    assert "one of: val/accuracy" in command(*small, "--require", "test/loss<9", code=2)
    summary = command(*small, "--json")
    assert {name.split("/")[0] for name in summary["metrics"]} == {"val"} and summary["confusion"] is None
    assert "test/accuracy" in command("eval", "untested", "--json")["metrics"]


# --- complete ---------------------------------------------------------------------------------------------------------


def test_complete_is_left_alone_and_judged(command: Command) -> None:
    before = (RUN / "run.json").read_bytes()
    assert command("resume", "a", "--json")["already_complete"]
    assert "val/loss is" in command("resume", "a", "--require", "val/loss<0", code=4)
    judged = command(*TRAIN, "train.steps=20", "--require", "val/loss<9", "--json")
    assert [gate["passed"] for gate in judged["gates"]] == [True]
    assert "one of: test/accuracy" in command("resume", "a", "--require", "val/los<9", code=2)
    assert (RUN / "run.json").read_bytes() == before


def test_complete_with_more_steps_goes_on(command: Command) -> None:
    summary = command("resume", "a", "train.steps=24", "--json", "--quiet")
    assert summary["resumed_from"] == 20 and summary["step"] == 24
    assert "horizon: 20" in (RUN / "config.yaml").read_text()
    assert record()["starts"][-1]["changed"] == ["train.steps: 20 -> 24"]
    assert (RUN / "overrides.txt").read_text().splitlines()[-1] == "train.steps=24"


def test_complete_without_checkpoints_is_not_trained_anew(command: Command) -> None:
    shutil.rmtree(RUN / "checkpoints")
    assert command(*TRAIN, "train.steps=20", "--json")["already_complete"]
    assert "checkpoints are gone" in command(*TRAIN, "train.steps=24", code=2)
    assert "optimizer.lr" in command(*TRAIN, "train.steps=20", "optimizer.lr=1", code=2)


# --- resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=1", "--allow-drift optimizer.lr"),
        ("model.hidden=[8]", "made with another configuration"),
        ("model=cnn", "a run keeps its components"),
        ("train.step=30", "did you mean train.steps"),
        ("train.steps=-1", "cannot be -1"),
        ("train.steps=many", "not a whole number"),
        ("train.steps=1,2", "does not change one key"),
        ("nonsense", "nonsense"),
        ("model.hidden.first=1", "there is no key"),
    ],
)
def test_resume_refuses_what_train_refuses(command: Command, override: str, message: str) -> None:
    assert message in command("resume", "a", override, code=2)


def test_resume_names_the_plugins_that_are_not_given(command: Command) -> None:
    alter(RUN / "run.json", plugins=["gone_plugin.models"])
    assert "--plugin gone_plugin.models" in command("resume", "a", code=2)
    Path("stand_in_plugin.py").write_text("")
    assert command("resume", "a", "--plugin", "stand_in_plugin", "--json")["already_complete"]


def test_resume_of_no_run_is_answered_with_close_names(command: Command) -> None:
    shutil.move(RUN, "runs/wide")
    assert "did you mean wide?" in command("resume", "wid", code=2)


# --- partial, failed, diverged ----------------------------------------------------------------------------------------


def test_without_a_checkpoint_it_starts_again_as_it_is_told(command: Command) -> None:
    """Killed before its first checkpoint: nothing was trained that another configuration could spoil."""
    shutil.rmtree(RUN / "checkpoints")
    (RUN / "summary.json").unlink()
    (RUN / "tokenizer.json").write_text("{}")  # of the configuration before
    alter(RUN / "run.json", status="running")
    assert "holds no checkpoint: the run starts again" in command(*TRAIN, "train.steps=6", "optimizer.lr=0.01")
    summary = json.loads((RUN / "summary.json").read_text())
    assert summary["resumed_from"] == 0 and summary["step"] == 6
    assert not (RUN / "tokenizer.json").exists()
    assert "optimizer.lr: 0.001 -> 0.01" in record()["starts"][-1]["changed"]
    steps = [json.loads(line)["step"] for line in (RUN / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == [1, 2, 3, 4, 5, 6] and len(steps) == 7, "a log line for each, and an evaluation"


def test_failed_goes_on(command: Command) -> None:
    alter(RUN / "run.json", status="failed", exit_code=1, message="disk full")
    assert command("resume", "a", "train.steps=22", "--json", "--quiet")["resumed_from"] == 20
    assert record()["status"] == "complete" and record()["message"] == ""


@pytest.mark.parametrize(
    ("record_says", "arguments", "code", "status"),
    [
        ("diverged", ["resume", "a", "train.steps=22"], 1, "diverged"),
        ("complete", ["resume", "a", "model.hidden=[5]"], 2, "refused"),
        ("complete", ["resume", "a", "--require", "accuracy"], 2, "refused"),
        ("complete", ["eval", "a", "--step", "7"], 2, "refused"),
        ("preempted", ["resume", "a", "train.steps=22", "train.max_minutes=1e-9"], 75, "preempted"),
    ],
)
def test_json_is_one_object_also_of_an_end_with_an_error(
    command: Command, record_says: str, arguments: list[str], code: int, status: str
) -> None:
    alter(RUN / "run.json", status=record_says)
    ending = command(*arguments, "--json", code=code)
    assert (ending["status"], ending["exit_code"]) == (status, code)
    assert Path(ending["run"]).name == "a" and ending["message"]


def test_diverged_is_refused_until_a_key_changes_that_is_not_free(command: Command) -> None:
    alter(RUN / "run.json", status="diverged", message="the loss is not finite")
    assert "diverged: the loss is not finite" in command("resume", "a", "train.steps=22", code=1)
    assert "diverged" in command("resume", "a", "train.steps=22", "train.log_every=1", code=1)
    allowed = ["optimizer.lr=0.0001", "--allow-drift", "optimizer.lr"]
    assert command("resume", "a", "train.steps=22", *allowed, "--json", "--quiet")["step"] == 22


# --- damaged ----------------------------------------------------------------------------------------------------------


def test_a_damaged_record_is_named_and_the_run_goes_on_without_it(command: Command) -> None:
    (RUN / "run.json").write_text('{"status": "comp')
    before = sorted(p for p in RUN.rglob("*"))
    assert "run.json: cannot be read" in command(*TRAIN, "train.steps=22", code=2)
    assert sorted(p for p in RUN.rglob("*")) == before
    (RUN / "run.json").unlink()
    assert "optimizer.lr" in command(*TRAIN, "train.steps=22", "optimizer.lr=1", code=2)  # still knows what it was
    assert command(*TRAIN, "train.steps=22", "--json")["resumed_from"] == 20


def test_resume_says_what_to_do_without_a_record(command: Command) -> None:
    (RUN / "run.json").unlink()
    assert "repeat the command that began the run" in command("resume", "a", code=2)


@pytest.mark.parametrize("content", [b"train: [", b"train: \xff"])
def test_a_damaged_configuration_is_named_and_nothing_is_touched(command: Command, content: bytes) -> None:
    (RUN / "config.yaml").write_bytes(content)
    assert "config.yaml: cannot be read" in command(*TRAIN, "train.steps=22", code=2)
    assert "config.yaml: cannot be read" in command("resume", "a", code=2)
    (RUN / "config.yaml").unlink()
    assert "config.yaml: is missing" in command(*TRAIN, "train.steps=22", code=2)
    assert list(RUN.glob("checkpoints/*/manifest-0.json"))


@pytest.mark.parametrize("damage", [b"\n", b'\xff\xfe{"st\n', b"{}\n"])
def test_a_damaged_line_of_metrics_is_told_and_left_out(command: Command, damage: bytes) -> None:
    metrics = RUN / "metrics.jsonl"
    before = metrics.read_bytes()
    metrics.write_bytes(damage + before)
    (RUN / "summary.json").unlink()  # so that there is something to do
    assert "metrics.jsonl: 1 damaged line is left out" in command("resume", "a", "--quiet")
    assert metrics.read_bytes() == before


def test_lost_metrics_are_told(command: Command) -> None:
    (RUN / "metrics.jsonl").unlink()
    (RUN / "summary.json").unlink()
    alter(RUN / "run.json", status="preempted")
    assert main(["verify", "a"]) == 1
    assert "metrics.jsonl is missing" in command("resume", "a", "--quiet")


def test_a_damaged_checkpoint_is_warned_of_by_file_and_the_one_before_is_used(command: Command) -> None:
    command("resume", "a", "train.steps=24", "--quiet")
    (RUN / "checkpoints" / "000000024" / "meta.json").write_text("{")
    message = command("resume", "a", "train.steps=26", "--quiet")
    assert "warning: " in message and "000000024/meta.json" in message
    assert 0 < record()["starts"][-1]["step"] < 24


# --- surroundings -----------------------------------------------------------------------------------------------------


def test_without_the_best_checkpoint_the_last_is_selected_with_its_own_scores(command: Command) -> None:
    command("resume", "a", "train.steps=22", "checkpoint.every=1", "checkpoint.keep=9", "optimizer.lr=3",
            "--allow-drift", "optimizer.lr", "--quiet")  # fmt: skip
    summary = json.loads((RUN / "summary.json").read_text())
    assert summary["selected_step"] == 20, "step 22 was to be worse"
    shutil.rmtree(RUN / "checkpoints/000000020")
    (RUN / "summary.json").unlink()
    again = command("resume", "a", "--json", "--quiet", "--require", "val/accuracy>=0")
    assert again["selected_step"] == 22
    scores = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines()]
    last = next(line for line in reversed(scores) if "val/loss" in line)
    assert again["metrics"]["val/loss"] == pytest.approx(last["val/loss"])


def test_another_jaxlib_is_warned_of_and_recorded(command: Command) -> None:
    alter(RUN / "run.json", packages={**record()["packages"], "jaxlib": "0.0.1"}, code={"commit": "f" * 40})
    message = command("resume", "a", "train.steps=22", "--quiet")
    assert message.count("warning: jaxlib: 0.0.1 -> ") == 1 and "last bit" in message and "commit" not in message
    changed = record()["starts"][-1]["changed"]
    assert any(text.startswith("jaxlib: 0.0.1 -> ") and text.endswith("(warning)") for text in changed)
    assert record()["packages"]["jaxlib"] != "0.0.1"


@pytest.mark.slow
def test_other_data_is_refused(command: Command) -> None:
    rows = "".join(f"{i % 7},{i},{i % 2}\n" for i in range(60))
    Path("table.csv").write_text("a,b,label\n" + rows)
    table = ["train", "recipe=mlp_cls", "data=csv", "data.path=table.csv", "data.label=label", "--name", "t", "--quiet"]
    command(*table, "train.steps=2")
    Path("table.csv").write_text("a,b,label\n" + rows.replace("3,", "5,"))
    assert "the data is not what the run was started on" in command(*table, "train.steps=4", code=2)


# --- held, and out of time --------------------------------------------------------------------------------------------

_TWENTY = """
import os, sys
from pathlib import Path
from bigctl.config import compose
from bigctl.errors import RunHeld
from bigctl.engine import trainer
from bigctl.engine.run import Options
composed = compose.compose(sys.argv[1:])
gate, key = os.pipe()
for _ in range(20):
    if os.fork() == 0:
        os.close(key)
        os.read(gate, 1)  # until all are here
        try:
            trainer.train(composed, Path("runs/a"), Options(quiet=True))
            told = "trained"
        except RunHeld as error:
            told = f"{error} {'jax' in sys.modules}"
        os.write(1, f"{os.getpid()} {told}\\n".encode())
        os._exit(0)
os.close(key)
for _ in range(20):
    os.wait()
"""


def test_of_twenty_starts_at_once_one_trains_and_the_others_say_who(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _TWENTY, *RECIPE, "train.steps=10"], cwd=tmp_path, capture_output=True, text=True
    )
    told = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    winners = [process for process, text in told.items() if text == "trained"]
    assert len(told) == 20 and len(winners) == 1, done.stdout + done.stderr
    assert sum(f"is in use by process {winners[0]} on " in text for text in told.values()) == 19, done.stdout
    assert not any(text.endswith("True") for text in told.values())  # none of them has waited for jax
    assert json.loads((tmp_path / "runs/a/summary.json").read_text())["step"] == 10


@pytest.mark.slow
def test_a_time_limit_saves_and_says_so(bigctl: Cli) -> None:
    start = time.monotonic()
    endless = ["train.steps=100000000", "eval.every=1000000", "checkpoint.every=1000000", "train.max_minutes=0.25"]
    done = bigctl(*TRAIN, *endless, "--junit", "report.xml", code=75, env={"GITHUB_STEP_SUMMARY": "page.md"})
    assert time.monotonic() - start < 120
    assert "stopped by train.max_minutes=0.25 at step" in done.stderr and "bigctl resume runs/a" in done.stderr
    run = bigctl.folder / "runs/a"
    assert json.loads((run / "run.json").read_text())["status"] == "preempted"
    assert "<skipped" in (bigctl.folder / "report.xml").read_text()
    assert "Next: `bigctl resume runs/a`" in (bigctl.folder / "page.md").read_text()
    if "at step 0 " not in done.stderr:  # of a machine that takes longer to start than that
        step = max(int(p.parent.name) for p in run.glob("checkpoints/*/manifest-0.json"))
        assert f"at step {step} of" in done.stderr


_ON_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


@pytest.mark.slow
def test_a_terminal_that_goes_away_stops_the_run_in_order(bigctl: Cli) -> None:
    import pty

    ours, theirs = pty.openpty()
    command = bigctl.command(*TRAIN[:-1], "train.steps=100000000", "checkpoint.every=50")
    process = subprocess.Popen(
        [sys.executable, "-c", _ON_TERMINAL, *command],
        cwd=bigctl.folder, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    try:
        os.set_blocking(ours, False)
        while not list(bigctl.folder.glob("runs/a/checkpoints/*/manifest-0.json")) and process.poll() is None:
            time.sleep(0.02)
            try:
                os.read(ours, 1 << 16)
            except BlockingIOError:
                continue
        os.close(ours)
        assert process.wait(60) == 75
    finally:
        process.kill()
    assert "SIGHUP" in json.loads((bigctl.folder / "runs/a/run.json").read_text())["message"]


# --- not ours ---------------------------------------------------------------------------------------------------------


def test_a_start_that_does_not_get_the_run_removes_nothing_of_it(command: Command) -> None:
    shutil.rmtree(RUN / "checkpoints")
    alter(RUN / "run.json", status="running")
    before = {file.name: file.read_bytes() for file in RUN.iterdir() if file.is_file() and file.name != ".lock"}
    with (RUN / ".lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert "is in use by" in command(*TRAIN, "train.steps=20", code=5)
    assert {name: (RUN / name).read_bytes() for name in before} == before
    other = Path("runs/other")
    other.mkdir()
    (other / "config.yaml").write_text("mine: 1\n")
    assert "holds no run" in command("train", *RECIPE, "--name", "other", code=2)
    assert (other / "config.yaml").read_text() == "mine: 1\n"
