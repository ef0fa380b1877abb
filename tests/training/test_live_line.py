"""The line of progress: what matters most is seen at any width, and what stays is right."""

from __future__ import annotations

import re

import pytest

from bigctl.training.state import Progress
from bigctl.training.tracking import console as consoles
from bigctl.training.tracking.console import Console
from bigctl.training.tracking.live_line import Pace, Standing, fitted, text

VALUES = {
    "epoch": 12.25, "train/loss": 0.160412, "train/padding": 0.12, "val/accuracy": 0.96125, "val/loss": 0.2,
    "perf/examples_per_s": 12345.6, "perf/tokens_per_s": 1580000.0, "perf/mfu": 0.412,
}  # fmt: skip
NOW = Standing(1234, 5000, 32.4, VALUES, "val/accuracy")


def line(width: int, now: Standing = NOW, *, ascii_only: bool = False) -> str:
    return "".join(part for part, _ in fitted(now, width, ascii_only=ascii_only))


@pytest.mark.parametrize("width", [*range(15, 200, 7), 20, 40, 77, 80, 120])
def test_it_fits_and_the_step_is_never_lost(width: int) -> None:
    found = line(width)
    assert len(found) <= width and "1234/5000" in found
    if width >= 20:
        assert "0:32" in found and re.search(r"\b0\.16", found), found


def test_what_matters_least_goes_first() -> None:
    words = ("padding", "MFU", "epoch", "examples/s", "tokens/s", "─", "val/accuracy", "loss", "eta", "step")
    seen = [[word for word in words if word in line(width)] for width in range(200, 36, -1)]
    for wider, narrower in zip(seen, seen[1:], strict=False):
        gone = [word for word in wider if word not in narrower]
        assert narrower == wider[len(gone) :], "from the front of the list alone"
    assert seen[0] == list(words) and seen[-1] == ["loss", "eta", "step"]


def test_at_80_columns_it_has_bar_eta_loss_and_score() -> None:
    found = line(77)
    assert re.fullmatch(r"step 1234/5000  ━+╸─+  eta 0:32  loss 0\.1604  val/accuracy 0\.9613", found), found
    assert re.search("=+>-+", line(77, ascii_only=True)) and line(77, ascii_only=True).isascii()


@pytest.mark.parametrize(
    ("now", "shown"),
    [
        (Standing(0, 5000, doing="compiling 12 s"), "step 0/5000  ────"),
        (Standing(0, 5000, None, {"train/loss": 2.0}), "eta -:--"),
        (Standing(5000, 5000, 0.0, {"train/loss": 2.0}), "loss 2.0000"),
        (Standing(10, 20, 5.0, {"train/loss": float("nan")}), "loss nan"),
        (Standing(10, 20, 5.0, {"train/loss": 3e-7}), "loss 3e-07"),
        (Standing(10, 20, 90061.0, {"train/loss": 123456.0}), "eta 25:01:01  loss 1.23e+05"),
    ],
)
def test_what_is_not_known_is_not_made_up(now: Standing, shown: str) -> None:
    assert shown in line(80, now)
    assert "eta" not in line(80, Standing(5000, 5000, 0.0, VALUES)), "at the end there is nothing to wait for"


@pytest.mark.parametrize("width", [20, 40, 80])
def test_a_round_in_which_no_client_answers_is_said_in_words(width: int) -> None:
    silent = Standing(3, 12, 4.0, {"train/loss": float("nan"), "train/clients": 0.0})
    assert "nan" not in line(width, silent) + text(silent)
    assert "no client answered" in text(silent) and ("no client answered" in line(width, silent)) == (width > 20)
    spread = Standing(3, 12, 4.0, {"train/loss": float("nan")})
    assert "loss nan" in text(spread), "any other loss that is not finite is shown as it is"


def test_while_compiling_the_seconds_are_seen_at_any_width() -> None:
    for width in (20, 40, 80, 120):
        assert "compiling 12 s" in line(width, Standing(0, 5000, doing="compiling 12 s"))
    assert line(12, Standing(0, 5000, doing="compiling 12 s")) == "0/5000"


def test_the_eta_runs_down_between_two_log_lines() -> None:
    pace = Pace(100)
    assert pace.remaining(200, 0.0) is None
    pace.mark(100, 5.0)  # where training goes on: nothing was done yet
    pace.mark(110, 10.0)
    assert pace.remaining(200, 10.0) is None
    pace.mark(120, 20.0)
    assert pace.remaining(200, 20.0) == 80.0 and pace.remaining(200, 25.0) == 75.0
    assert pace.remaining(200, 500.0) == 0.0
    pace.cut(105)
    assert pace.remaining(200, 20.0) is None


# --------------------------------------------------------------------------------------------------- without a terminal


def test_a_pipe_gets_a_line_an_evaluation_and_the_last_loss(capsys: pytest.CaptureFixture[str]) -> None:
    console, progress = Console(40, metric="val/accuracy"), Progress()
    for step, loss, accuracy in ((20, 0.2106, 0.75), (40, 0.1604, 0.5)):
        progress.step = step
        progress.record(accuracy, "max", 0.0, {})
        console.write(step, {"epoch": step / 10, "val/accuracy": accuracy, "val/loss": 0.3})
        console.evaluated(progress)
        console.write(step, {"epoch": step / 10, "train/loss": loss})
    console.close()
    assert capsys.readouterr().err.splitlines() == [
        "step 20/40  val/accuracy 0.7500  best so far  epoch 2.00  val/loss 0.3000",
        "step 40/40  val/accuracy 0.5000  (best 0.7500, step 20)  epoch 4.00  val/loss 0.3000",
        "step 40/40  loss 0.1604  val/accuracy 0.5000  epoch 4.00",
    ]


def test_a_pipe_is_told_how_long_compiling_took_and_of_a_request_to_stop(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(40, every=0.0)
    console.doing("compiling")
    console.doing("")
    console.stopping("Ctrl-C")
    console.close()
    console.stopping("SIGTERM")
    assert capsys.readouterr().err.splitlines() == [
        "compiled in 0 s", f"Ctrl-C: {consoles.STOPPING}", f"SIGTERM: {consoles.OVER}",
    ]  # fmt: skip


def test_the_time_left_is_of_steps_and_not_of_compiling(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(consoles.time, "monotonic", lambda: now[0])
    console = Console(1000)

    def step(number: int) -> None:
        now[0] += 1.0
        console.stepped(number)
        console.write(number, {"train/loss": 1.0})

    step(1)
    for number in range(2, 6):  # each needs a program of its own, as batches of other lengths do
        console.doing("compiling")
        now[0] += 30.0
        console.doing("")
        step(number)
    console.close()
    last = capsys.readouterr().err.splitlines()[-1]
    assert "step 5/1000  eta 16:35  loss 1.0000" in last


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(40, quiet=True, every=0.0)
    console.write(20, VALUES)
    console.evaluated(Progress(step=20))
    console.stopping("Ctrl-C")
    console.close()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_that_cannot_draw_gets_plain_lines(
    term: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    console = Console(40)
    console.write(40, {"train/loss": 1.5})
    console.close()
    assert capsys.readouterr().err == "step 40/40  loss 1.5000\n"


def test_text_has_all_fields() -> None:
    assert text(NOW) == (
        "step 1234/5000  eta 0:32  loss 0.1604  val/accuracy 0.9613  1,580,000 tokens/s  12,346 examples/s  "
        "epoch 12.25  MFU 41.2%  padding 12%"
    )


@pytest.mark.parametrize("width", [10_000, 64])
def test_of_equal_scores_the_line_says_by_what_one_is_the_best(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Console, "_width", lambda console: width)
    console, progress = Console(40, metric="val/accuracy", best=0.75), Progress(best=0.75, best_step=5)
    progress.best_metrics = {"val/accuracy": 0.75, "val/loss": 0.5}
    for step, loss in ((10, 0.4), (20, 0.45)):
        progress.step = step
        found = {"val/accuracy": 0.75, "val/loss": loss}
        progress.record(0.75, "max", 0.0, found)
        console.write(step, found)
        console.evaluated(progress)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "step 10/40  val/accuracy 0.7500  best so far, by val/loss 0.4000"
    if width == 64:  # no more than the terminal has room for
        assert said[1] == "step 20/40  val/accuracy 0.7500  (best 0.7500, step 10)"
    else:
        assert said[1] == "step 20/40  val/accuracy 0.7500  (best 0.7500, step 10, by val/loss 0.4000)  val/loss 0.4500"
