"""A training as it is seen in a real terminal of 80 columns: in the middle, after Ctrl-C, and when it goes on."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import forked

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="there is no tmux")

LIVE = re.compile(r"^step (\d+)/(\d+) .*eta (\d+:\d\d|-:--)  loss (\d+\.\d{4})")
RUN = "recipe=mlp_cls data=breast_cancer model.hidden=[4] train.tensorboard=false checkpoint.best=false --name seen"


class Screen:
    """A shell in a tmux of its own."""

    def __init__(self, folder: Path, *, columns: int):
        self.tmux = ["tmux", "-S", str(folder / "tmux"), "-f", "/dev/null"]
        self.columns = columns
        size = ["-x", str(columns), "-y", "24"]
        kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        environment = {**kept, **forked.flags(kept), "PS1": "$ ", "TERM": "xterm-256color"}
        command = ["new-session", "-d", "-s", "seen", *size, "-c", str(folder), "bash --norc --noprofile"]
        subprocess.run([*self.tmux, *command], check=True, env=environment)

    def run(self, command: str) -> None:
        bigctl = f"{shlex.quote(sys.executable)} -m bigctl"
        self.keys(f"clear; {bigctl} {command}; echo ended with $?", "Enter")

    def keys(self, *keys: str) -> None:
        subprocess.run([*self.tmux, "send-keys", "-t", "seen", *keys], check=True)

    def lines(self, *, past: int = 0) -> list[str]:
        """What is on the screen, and so many lines that have left it."""
        capture = ["capture-pane", "-p", "-S", str(-past), "-t", "seen"]
        done = subprocess.run([*self.tmux, *capture], check=True, capture_output=True)
        return [line for line in done.stdout.decode().splitlines() if line.strip()]

    def wait(self, there: Callable[[list[str]], bool], seconds: float = 90.0) -> list[str]:
        deadline = time.monotonic() + seconds
        while not there(lines := self.lines()):
            assert time.monotonic() < deadline, "\n".join(lines)
            time.sleep(0.05)
        return lines

    def close(self) -> None:
        subprocess.run([*self.tmux, "kill-server"], check=False)


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[Screen]:
    shown = Screen(tmp_path, columns=80)
    try:
        yield shown
    finally:
        shown.close()


def has(pattern: str) -> Callable[[list[str]], bool]:
    return lambda lines: any(re.search(pattern, line) for line in lines)


def test_step_eta_and_loss_are_legible_before_and_after_ctrl_c(screen: Screen, tmp_path: Path) -> None:
    """Two starts of a process, which take their time: what a terminal shows is seen in one."""
    screen.run(f"train {RUN} train.steps=20000000 eval.every=20000")  # Ctrl-C must come before it is at its end
    lines = screen.wait(has(LIVE.pattern.replace("-:--", "never")))
    assert LIVE.match(lines[-1]), "the last line is the live one"
    assert has(r"^step \d+/20000000  val/accuracy \d\.\d{4}  (best so far|\(best )")(screen.wait(has("val/accuracy")))

    screen.keys("C-c")
    screen.wait(has("^Ctrl-C: stopping after this step"))
    lines = screen.wait(has("^ended with"))
    assert has("^ended with 130")(lines), lines
    stopped = next(line for line in reversed(lines) if LIVE.match(line))
    (step,) = re.findall(r"stopped by Ctrl-C at step (\d+) of 20000000", "".join(lines))

    more = int(step) + 2000
    screen.run(f"resume seen train.steps={more}")
    screen.wait(has(f"resuming from step {int(step):,}"))
    lines = screen.wait(has("^ended with"))
    assert has("^ended with 0")(lines), lines
    lines = screen.lines(past=60)
    metrics = [json.loads(line) for line in (tmp_path / "runs" / "seen" / "metrics.jsonl").read_text().splitlines()]
    last = [line["train/loss"] for line in metrics if "train/loss" in line][-1]
    (shown,) = [line for line in lines if re.match(rf"step {more}/{more} .*  loss", line)]
    assert f"loss {last:.4f}" in shown, "the last line has the last loss"
    assert all(len(line) <= 80 for line in [stopped, shown])
