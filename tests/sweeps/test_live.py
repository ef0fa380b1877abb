"""What a sweep shows of itself while it runs: a table on a terminal, a line an event elsewhere, nothing on stdout."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest

from bigctl.sweeps.execution.monitor import RunMonitor
from bigctl.sweeps.trials import COMPLETE, FAILED, PRUNED, RUNNING, STOPPED, State, Study, Trial
from bigctl.sweeps.view.live import LiveView
from bigctl.sweeps.view.scene import Scene, TrialProgress
from bigctl.sweeps.view.table_view import Frame, sparkline


def study(count: int, *, mode: str = "max") -> Study:
    made = Study(Path("sweeps/lr"), {"metric": "val/loss" if mode == "min" else "val/accuracy", "mode": mode})
    for number in range(count):
        point = {"optimizer.lr": f"0.{number:03}"}
        trial = Trial(number, (f"optimizer.lr=0.{number:03}", "seed=1"), point, 1)
        made.states[trial.id] = State(trial)
    return made


def state(made: Study, number: int) -> State:
    return list(made.states.values())[number]


def complete(made: Study, number: int, value: float, seconds: float = 10.0) -> None:
    found = state(made, number)
    found.status, found.attempts, found.seconds, found.metrics = COMPLETE, 1, seconds, {made.metric: value}


def painted(scene: Scene, width: int, height: int) -> list[str]:
    from rich.console import Console

    console = Console(width=width, height=height, file=open(os.devnull, "w"), record=True, legacy_windows=False)  # noqa: SIM115
    console.print(Frame(scene))
    return [line.rstrip() for line in console.export_text().splitlines()]


def busy() -> Scene:
    """Nine of forty complete, trial 4 the best; two running, one failed, the others not begun."""
    made = study(30)
    for number in range(9):
        complete(made, number, 0.9 - abs(number - 4) / 100)
    for number in (9, 10):
        state(made, number).status = RUNNING
    state(made, 11).status, state(made, 11).message = FAILED, "out of memory"
    names = list(made.states)
    progress = {
        names[9]: TrialProgress(50, 100, [0.1, 0.2, 0.4, 0.8], 0.8, "cores 0"),
        names[10]: TrialProgress(0, 100),
    }
    return Scene(made, 40, progress, {names[9]: 5.0, names[10]: 1.0}, jobs=2)


def test_the_table_shows_running_trials_first_then_the_best() -> None:
    lines = painted(busy(), 80, 24)
    assert lines[0].startswith("10/40 trials, 2 running, 1 failed")
    assert "best val/accuracy 0.9000 (#4)" in lines[0]
    assert [int(line.split()[0]) for line in lines[2:6]] == [9, 10, 4, 3]
    assert (
        "lr=0.009 seed=1" in lines[2]
        and "▁▂▄█" in lines[2]
        and "50%" in lines[2]
        and "0.8000" in lines[2]
        and "0:05" in lines[2]
    )
    assert [number for number, line in enumerate(lines) if "*" in line] == [4]  # only the best is marked
    assert lines[-1] == "... and 20 more"
    failed = next(line for line in painted(busy(), 100, 24)[1:] if "failed" in line.split())
    assert failed.endswith("out of memory")


@pytest.mark.parametrize("width, height", [(80, 24), (120, 12), (50, 10), (30, 6), (12, 4), (1, 1)])
def test_the_table_fits_the_terminal(width: int, height: int) -> None:
    lines = painted(busy(), width, height)
    assert max(map(len, lines)) <= width
    assert len(lines) <= max(height - 1, 4)
    if width >= 30:
        assert "lr=0.009" in "\n".join(lines)


def test_the_time_left_is_that_of_the_trials_that_ended_shared_by_the_jobs() -> None:
    made = study(4)
    assert Scene(made, 4).left is None
    first = state(made, 0)
    first.status = RUNNING
    assert Scene(made, 4, {first.trial.id: TrialProgress(2, 100)}, {first.trial.id: 5.0}).left is None  # still starting
    assert Scene(made, 4, {first.trial.id: TrialProgress(50, 100)}, {first.trial.id: 5.0}).left == pytest.approx(35)
    complete(made, 0, 0.5, seconds=10)
    complete(made, 1, 0.5, seconds=30)
    state(made, 2).status = RUNNING
    halfway = {state(made, 2).trial.id: TrialProgress(50, 100)}
    assert Scene(made, 4, halfway, {state(made, 2).trial.id: 1.0}, jobs=2).left == pytest.approx(1.5 * 20 / 2)


def test_a_loss_is_best_when_it_is_least_and_nan_never_is() -> None:
    made = study(3, mode="min")
    for number, value in enumerate((0.3, 0.1, math.nan)):
        complete(made, number, value)
    assert Scene(made, 3).best is state(made, 1)


def test_a_sparkline_keeps_the_shape_of_a_curve() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 12) == "▁▂▃▄▅▆▇█"
    assert sparkline(list(range(800)), 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([1.0, math.nan, math.inf, 2.0], 12) == "▁  █"
    assert sparkline([3.0, 3.0], 12) == "▁▁" and sparkline([], 12) == "" and sparkline([math.nan], 12) == " "


def test_off_a_terminal_each_event_is_one_line_and_stdout_stays_empty(capsys: pytest.CaptureFixture[str]) -> None:
    made = study(7)
    complete(made, 0, 0.6)  # before this command
    state(made, 1).status, state(made, 1).attempts = RUNNING, 1  # killed with the sweep
    view = LiveView(made)
    view.update(made, {})
    assert capsys.readouterr().err == ""

    state(made, 1).attempts, state(made, 2).status, state(made, 2).attempts = 2, RUNNING, 1
    state(made, 1).step = 30  # the checkpoint it goes on from; its last line may be of a later step
    progress = {
        state(made, 1).trial.id: TrialProgress(37, 100, place="gpu 0"),
        state(made, 2).trial.id: TrialProgress(),
    }
    for _ in range(3):
        view.update(made, progress)
    assert capsys.readouterr().err.splitlines() == [
        "trial 1 resumed at step 30: lr=0.001 seed=1 (gpu 0)",
        "trial 2 started: lr=0.002 seed=1",
    ]

    complete(made, 2, 0.5)
    complete(made, 3, 0.7)  # began and ended since the last look
    for number, status, message in ((4, FAILED, "out\nof memory"), (5, PRUNED, "below the median"), (6, STOPPED, "")):
        found = state(made, number)
        found.status, found.attempts, found.message, found.step = status, 1, message, 40
    view.update(made, {})
    view.update(made, {})
    view.close()
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert sum("started" in line for line in lines) == 4
    ends = [line for line in lines if "started" not in line]
    assert ends == [
        "trial 2 finished (5/7): lr=0.002 seed=1  val/accuracy 0.5000  in 0:10  best so far 0.7000 of trial 3",
        "trial 3 finished (5/7): lr=0.003 seed=1  val/accuracy 0.7000  in 0:10  best so far",
        "trial 4 failed (5/7): lr=0.004 seed=1: out of memory",
        "trial 5 pruned (5/7): lr=0.005 seed=1: below the median",
        "trial 6 stopped (5/7): lr=0.006 seed=1, at step 40",
    ]


def test_a_trial_left_running_waits_and_the_one_that_runs_shows_its_curve(capsys: pytest.CaptureFixture[str]) -> None:
    made = study(4)
    complete(made, 0, 0.5)
    for number in (1, 2):  # left behind by an earlier start; only the first runs again by now
        state(made, number).status, state(made, number).attempts = RUNNING, 1
    view = LiveView(made)
    state(made, 1).attempts, state(made, 1).step = 2, 20
    run = RunMonitor(Path("nowhere"), 20, {"val/accuracy": {10: 0.5, 20: 0.6}, "train/loss": {5: 2.0, 10: 1.0}})
    run._record = {"steps": 100}

    def update() -> list[str]:
        progress = TrialProgress.of(run, "cores 0", made.metric)
        view.update(made, {state(made, 1).trial.id: progress}, planned=9)
        assert view._scene is not None and (view._scene.total, view._scene.jobs) == (9, 1)
        assert view._scene.status(state(made, 2)) == "waiting"
        return painted(view._scene, 100, 20)

    lines = update()
    assert capsys.readouterr().err.splitlines() == ["trial 1 resumed at step 20: lr=0.001 seed=1 (cores 0)"]
    assert "0.6000" in lines[2] and "20%" in lines[2] and "▁█" in lines[2]
    del run.curves["val/accuracy"]  # no value of the metric yet: the curve is that of the loss
    assert "█▁" in (line := update()[2]) and "1.0000" not in line


def test_a_quiet_sweep_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    made = study(2)
    view = LiveView(made, quiet=True)
    complete(made, 0, 0.5)
    view.update(made, {})
    view.say("hello")
    view.close()
    assert capsys.readouterr() == ("", "")


def test_a_reader_that_has_gone_does_not_stop_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    readable, writable = os.pipe()
    os.close(readable)
    stream = os.fdopen(writable, "w", buffering=1)
    monkeypatch.setattr(sys, "stderr", stream)
    view = LiveView(study(2))
    view.say("nobody reads this")
    view.close()
    with contextlib.suppress(OSError):
        stream.close()
    assert view.quiet


_IN_A_TERMINAL = """
import fcntl, os, struct, sys, termios
from tests.sweeps.test_live import busy
from bigctl.sweeps.view import live
from bigctl.sweeps.view.live import LiveView
scene = busy()
view = LiveView(scene.study)
live.EVERY = 0
view.update(scene.study, scene.progress, planned=40)
view.say("a note")
fcntl.ioctl(2, termios.TIOCSWINSZ, struct.pack("HHHH", 8, 44, 0, 0))
for _ in range(3):
    view.update(scene.study, scene.progress, planned=40)
view.close()
"""


def test_on_a_terminal_the_table_appears_and_follows_its_size() -> None:
    """A real pseudo-terminal, 100 x 20 at first and 44 x 8 later."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 100, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    environment |= {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
    seen = bytearray()

    def read() -> None:
        try:
            while part := os.read(ours, 4096):
                seen.extend(part)
        except OSError:  # the other side is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    command = [sys.executable, "-c", _IN_A_TERMINAL]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=theirs, timeout=60)
    os.close(theirs)
    reader.join(10)
    os.close(ours)
    text = seen.decode()
    assert done.returncode == 0, text
    assert done.stdout == b""
    first, later = text.split("a note")
    assert "10/40 trials, 2 running, 1 failed" in first and "▁▂▄█" in first and "... and 24 more" in first
    assert "lr=0.009 seed=1" in later and "... and 36 more" in later  # in 8 lines: headline, heads, four trials, rest
    assert "\x1b[?25h" in later  # the cursor is given back
