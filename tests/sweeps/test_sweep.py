"""Promises of `bigctl sweep`, kept by real processes on a small table."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bigctl.cli.main import main
from bigctl.runs.directory import RunDirectory
from bigctl.sweeps import ledger
from bigctl.sweeps.execution import local
from tests.beside import Command, commands
from tests.conftest import Cli

pytestmark = pytest.mark.fewer
STUDY = [
    "sweep", "recipe=mlp_cls", "data=breast_cancer", "model.hidden=[4]", "train.steps=20", "train.tensorboard=false",
    "eval.every=10", "--name", "s",
]  # fmt: skip
RATES = "optimizer.lr=1e-2,1e30"  # one that learns, one that diverges
SWEEP = Path("sweeps/s")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """A folder with a sweep of two learning rates and two seeds, its answer, and what it said on the way."""
    bigctl = Cli(tmp_path_factory.mktemp("swept"))
    done = bigctl(*STUDY, RATES, "seed=range(2)", "--jobs", "2", "--json", code=3)
    return bigctl.folder, json.loads(done.stdout), done.stderr


@pytest.fixture
def command(
    swept: tuple[Path, Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Run a command beside a copy of that sweep; gives its stderr, or with --json its result."""
    return commands(swept[0], tmp_path, monkeypatch, capsys)


def events(folder: Path = SWEEP) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]


def starts(folder: Path = SWEEP) -> Counter[str]:
    return Counter(event["id"] for event in events(folder) if event["event"] == "start")


# ------------------------------------------------------------------------------------------------------------ an answer


def test_a_sweep_trains_every_point_with_every_seed_and_gives_an_answer(swept: tuple[Path, Any, str]) -> None:
    folder, board, said = swept
    assert board["status"] == {"complete": 2, "failed": 2} and board["metric"] == "val/accuracy"
    best, worst = board["points"]
    assert (
        best["point"] == {"optimizer.lr": "0.01"} and best["rank"] == 1 and best["n"] == 2 and best["std"] is not None
    )
    assert worst["rank"] is None and len(board["failures"]) == 2
    assert all("not finite" in failure["message"] for failure in board["failures"])
    winner = board["winner"]
    assert winner["test"]["test/accuracy"]["n"] == 2 and "bigctl train " in winner["command"]
    for trial in board["trials"]:
        run = RunDirectory(folder / trial["run"])
        expected = {"complete": "complete", "failed": "diverged"}[trial["status"]]
        assert run.status() == expected, trial
        if trial["status"] == "complete":
            assert not any(name.startswith("test/") for name in run.summary()["metrics"]), (
                "the winner's alone, at the end"
            )
    means = [RunDirectory(folder / t["run"]).summary()["metrics"]["val/accuracy"] for t in board["trials"] if t["step"]
             and t["status"] == "complete"]  # fmt: skip
    assert best["mean"] == pytest.approx(sum(means) / 2, rel=1e-12)
    assert json.loads((folder / SWEEP / "leaderboard.json").read_text()) == board
    assert (folder / SWEEP / "leaderboard.csv").read_text().count("\n") == 3
    lines = said.splitlines()
    assert sum("started" in line for line in lines) == 4 and sum("failed" in line for line in lines) >= 2


def test_the_same_command_again_trains_and_scores_nothing(command: Command, swept: tuple[Path, Any, Any]) -> None:
    before = events()
    board = command(*STUDY, RATES, "seed=range(2)", "--json", code=3)
    added = events()[len(before) :]
    assert [event["event"] for event in added] == ["study"] and board["points"] == swept[1]["points"]
    assert board["winner"]["test"] == swept[1]["winner"]["test"]


def test_order_and_spelling_of_the_command_do_not_matter(command: Command) -> None:
    before = starts()
    words = [*STUDY[:1], "seed=1,0", "optimizer.lr=0.01,1E30", *STUDY[1:]]
    command(*words, "--quiet", code=3)
    assert starts() == before


def test_results_that_the_ledger_lost_are_found_in_the_run_directories(command: Command) -> None:
    text = (SWEEP / "ledger.jsonl").read_bytes()
    cut = text.index(b'"event": "end"') + 20
    (SWEEP / "ledger.jsonl").write_bytes(text[:cut])
    known = {line["id"] for line in map(json.loads, text[:cut].split(b"\n")[:-1]) if line["event"] == "trial"}
    before = {p.name: json.loads((p / "run.json").read_text())["starts"] for p in (SWEEP / "trials").iterdir()}
    said = command(*STUDY, RATES, "seed=range(2)", code=3)
    assert "1 line of sweeps/s/ledger.jsonl cannot be read" in said and known
    states = ledger.read_study(SWEEP).states
    assert Counter(state.status for state in states.values()) == {"complete": 2, "failed": 2}
    for name, state in states.items():
        if state.status == "complete":
            run = json.loads((SWEEP / "trials" / name / "run.json").read_text())
            assert run["starts"] == before[name], "it was trained again"


def test_a_failed_trial_is_tried_again_only_when_asked(command: Command) -> None:
    before = starts()
    command(*STUDY, RATES, "seed=range(2)", "--retry-failed", "--fail-fast", "--jobs", "1", "--quiet", code=3)
    failed = {
        name for name, state in ledger.read_study(SWEEP).states.items() if state.trial.point["optimizer.lr"] == "1e+30"
    }
    again = starts() - before
    assert set(again) < failed and again.total() == 1, "and --fail-fast leaves it at the first"


def test_complete_trials_whose_files_are_gone_keep_their_results(
    command: Command, swept: tuple[Path, Any, Any]
) -> None:
    complete = [t for t in swept[1]["trials"] if t["status"] == "complete"]
    shutil.rmtree(complete[0]["run"])
    said = command(*STUDY, RATES, "seed=range(2)", code=3)
    assert "the run directories of 1 complete trial is gone" in said
    assert json.loads((SWEEP / "leaderboard.json").read_text())["points"] == swept[1]["points"]


def test_packed_trials_give_the_answer_of_those_with_a_process_each(
    command: Command, swept: tuple[Path, Any, Any]
) -> None:
    said = command(*STUDY[:-1], "packed", RATES, "seed=range(2)", "--packed", "auto", code=3)
    board, alone = json.loads(Path("sweeps/packed/leaderboard.json").read_text()), swept[1]
    assert board["status"] == alone["status"] and len(starts(Path("sweeps/packed"))) == 4
    assert "4 trials" in said and "a step of one takes" in said, "what was measured and chosen is said"
    for name, spread in alone["points"][0]["metrics"].items():
        assert board["points"][0]["metrics"][name]["mean"] == pytest.approx(spread["mean"], rel=1e-4), name
    for failure in board["failures"]:
        assert "not finite at step 1" in failure["message"] and Path(failure["log"]).exists()


def test_packed_trials_have_a_process_of_their_own_cores_for_every_eight(command: Command) -> None:
    command(*STUDY[:-1], "nine", "optimizer.lr=1e-3,3e-3,1e-2", "seed=range(3)", "--packed", "yes", "--quiet")
    started = [event for event in events(Path("sweeps/nine")) if event["event"] == "start"]
    places = Counter(event["place"] for event in started)
    cores = min(len(local.machine()[0]), local._memory() // local.MEMORY_A_JOB)
    assert len(started) == 9 and sorted(places.values()) == ([4, 5] if cores >= 2 else [9])
    assert len(list(Path("sweeps/nine/logs").glob("*.pack.log"))) == len(places)


# ------------------------------------------------------------------------------------------------------------ bad input


def test_two_sweeps_do_not_share_a_folder(command: Command) -> None:
    lock = (SWEEP / ".lock").open("a+")
    import fcntl

    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert "sweeps/s: is in use by" in command(*STUDY, RATES, "seed=range(2)", code=5)
    lock.close()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([RATES, "train.batch_size=16"], "is another study: train.batch_size=16 differs"),
        (["optimizer.weight_decay=0,1"], "is another study: it searches optimizer.lr"),
        ([RATES, "train.steps=1,2", "--packed", "yes"], "--packed: train.steps differs: 1, 2"),
        ([RATES, "--jobs", "none"], "--jobs: 'none' is no number of jobs"),
        ([RATES, "--max-failures", "-1"], "--max-failures: -1 is no count"),
        (["optimizer.lrr=1,2"], "there is no key 'optimizer.lrr'"),
        (["optimizer.lr=interval(0,1)"], "interval"),
        (
            ["optimizer.lr=1,2", "model.dropout=0.1,0.2", "model.hidden=[4],[8]", "--packed", "yes"],
            "--packed: model.hidden differs: [4], [8]",
        ),
        ([RATES, "sweep.metric=val/loss", "eval.metric=val/f1"], "eval.metric=val/f1 contradict each other"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(command: Command, words: list[str], said: str) -> None:
    before = (SWEEP / "ledger.jsonl").read_bytes()
    assert said in command(*STUDY, *words, code=2)
    assert (SWEEP / "ledger.jsonl").read_bytes() == before


def test_a_folder_that_holds_something_else_is_left_alone(command: Command) -> None:
    Path("photos").mkdir()
    Path("photos/cat.png").touch()
    said = command(*STUDY[:-2], RATES, "--sweep-dir", "photos", code=2)
    assert "photos: is not empty and holds no sweep (cat.png)" in said
    assert [p.name for p in Path("photos").iterdir()] == ["cat.png"]


def test_a_dry_run_lists_the_points_and_leaves_nothing(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*STUDY[:-1], "t", RATES, "seed=range(3)", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "sweeps/t: 6 trials: 2 points, 3 seeds each", "  lr=0.01", "  lr=1e+30",
    ]  # fmt: skip
    assert main([*STUDY[:-2], "optimizer.lr=1e-2", "seed=range(2)", "--dry-run"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"sweeps/mlp_cls-seed-\w{6}: 2 trials: 1 point, 2 seeds each", first), first
    assert rest == ["  the only point"] and not Path("sweeps/t").exists()


# --------------------------------------------------------------------------------------------------------------- slow


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["data.label=y", "data.fold=range(8)"],
            "bigctl: no trial can begin: data.folds: 8 folds cannot be made of 4 rows (take at most 4",
        ),
        (
            ["data.label=q", "optimizer.lr=1e-3,1e-2"],
            "bigctl: no trial can begin: t.csv: there is no target column 'q' (",
        ),
    ],
)
def test_data_that_no_trial_can_use_ends_the_sweep_with_one_line(tmp_path: Path, words: list[str], said: str) -> None:
    rows = ["a,b,y", "1,2,x", "2,3,z", "3,4,x", "5,4,z", "6,7,x", "8,9,z"]
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    study = ["sweep", "recipe=mlp_cls", "data=csv", "data.path=t.csv", "--name", "s", "--jobs", "1"]
    done = Cli(tmp_path)(*study, *words, code=2)
    assert done.stderr.splitlines()[-1].startswith(said)
    assert sum(starts(tmp_path / "sweeps" / "s").values()) == 2 and not done.stdout


@pytest.mark.slow
def test_a_metric_that_no_trial_reports_ends_the_sweep_and_names_those_there_are(tmp_path: Path) -> None:
    done = Cli(tmp_path)(*STUDY, RATES, "sweep.metric=val/f2", code=2)
    assert "sweep.metric: there is no metric 'val/f2' to select by" in done.stderr and "val/accuracy" in done.stderr
    corrected = Cli(tmp_path)(*STUDY, "optimizer.lr=1e-2", "seed=0,1", "sweep.metric=val/f1", "--json")
    assert json.loads(corrected.stdout)["status"] == {"complete": 2}, "the folder was not taken by what was refused"


@pytest.mark.slow
def test_ctrl_c_saves_what_runs_and_the_same_command_goes_on(tmp_path: Path) -> None:
    bigctl = Cli(tmp_path)
    words = [
        *STUDY,
        "optimizer.lr=1e-2,1e-3",
        "train.steps=6000",
        "train.steps_per_dispatch=20",
        "checkpoint.every=500",
    ]
    process = subprocess.Popen(
        bigctl.command("train", "-m", *words[1:], "--jobs", "2"), cwd=tmp_path, text=True, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not all((tmp_path / SWEEP / "trials" / name / "metrics.jsonl").exists() for name in started(tmp_path)):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "stopped by Ctrl-C with 2 of 2 trials to go" in said
    runs = [RunDirectory(p) for p in (tmp_path / SWEEP / "trials").iterdir()]
    assert [run.status() for run in runs] == ["preempted"] * 2 and all(run.trained() for run in runs)
    steps = {run.path.name: max(int(p.name) for p in run.checkpoints.iterdir() if p.name.isdigit()) for run in runs}
    board = json.loads(bigctl(*words, "--jobs", "2", "--json", timeout=900).stdout)
    assert board["status"] == {"complete": 2} and starts(tmp_path / SWEEP).total() == 4
    for run in runs:
        assert [start["step"] for start in run.record()["starts"]] == [0, steps[run.path.name]]


def started(folder: Path) -> list[str]:
    names = list(starts(folder / SWEEP)) if (folder / SWEEP / "ledger.jsonl").exists() else []
    return names if len(names) == 2 else ["not yet"]


@pytest.mark.slow
def test_a_sweep_killed_at_random_ends_with_the_leaderboard_of_an_undisturbed_one(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "scripts" / "kill_sweep.py"
    done = subprocess.run(
        [sys.executable, str(script), "--kills", "4", "--steps", "2000", "--longest", "2.5"],
        cwd=tmp_path, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_random_sampler_fills_up_to_its_number_and_goes_on_from_there(tmp_path: Path) -> None:
    bigctl = Cli(tmp_path)
    words = [*STUDY, "optimizer.lr=tag(log, interval(1e-3,1e-1))", "sweep.sampler=random"]
    first = json.loads(bigctl(*words, "sweep.trials=2", "--json").stdout)
    more = json.loads(bigctl(*words, "sweep.trials=3", "--json").stdout)
    assert first["status"] == {"complete": 2} and more["status"] == {"complete": 3}
    assert starts(tmp_path / SWEEP).total() == 3
    assert [t["id"] for t in more["trials"]][:2] == [t["id"] for t in first["trials"]]
