"""Processes of a run that are lost, come back, do not fit or were started otherwise: agents with a stand-in for what
trains, and one run of four real processes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from bigctl.engine.elastic import Size
from bigctl.errors import ConfigError
from bigctl.parallel import members
from bigctl.parallel.members import Members, Round
from tests import forked
from tests.conftest import Cli
from tests.training.test_processes import losses

TRAINS = """
import os, sys, time
from pathlib import Path
index, count = int(os.environ["JAX_PROCESS_ID"]), int(os.environ["JAX_NUM_PROCESSES"])
port = os.environ["JAX_COORDINATOR_ADDRESS"].rpartition(":")[2]
if str(count) in os.environ.get("UNFIT", "").split():
    sys.exit(2)
own = Path(f"process-{port}-{index}")
own.write_text(str(os.getpid()))
with open(f"log-{index}", "a") as log:
    log.write(f"{count}\\n")
asked = []
import signal
signal.signal(signal.SIGTERM, lambda *_: Path(f"stop-{port}").touch())
while not Path("done").exists():
    time.sleep(0.05)
    if Path(f"stop-{port}").exists():
        sys.exit(75)
    if index == 0:
        Path("steps").write_text(str(time.monotonic_ns()))
    for other in Path().glob(f"process-{port}-*"):
        try:
            os.kill(int(other.read_text() or os.getpid()), 0)
        except ProcessLookupError:
            if not Path("done").exists():  # else it has trained to the end, a moment sooner
                sys.exit(6)
print("trained")
"""
AGENT = """
import sys
from pathlib import Path
import bigctl
from bigctl.engine import elastic
from bigctl.errors import BigctlError
from bigctl.training.signals import StopRequest
elastic.LAST_CALL, elastic.SETTLE = 3.0, 0.5
elastic.Agent._newest = lambda self: int((Path("steps").read_text() or 0) if Path("steps").exists() else 0)
config = bigctl.compose(["recipe=mlp_cls", "mesh.wait=20", *sys.argv[2:]])
try:
    with StopRequest() as stop:
        agent = elastic.Agent(
            [sys.executable, "trains.py"], config, Path("run"), elastic.Size.parse(sys.argv[1]), restarts=1, stop=stop,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
        code = agent.run()
except BigctlError as error:
    print(error, file=sys.stderr)
    code = error.exit_code
sys.exit(code)
"""


class Launched:
    """Agents in a folder, each with the process it starts."""

    def __init__(self, folder: Path):
        self.folder, self.agents = folder, dict[int, subprocess.Popen[str]]()
        (folder / "trains.py").write_text(TRAINS)

    def start(self, number: int, *arguments: str, **environment: str) -> None:
        err = open(self.folder / f"err{number}", "w")  # noqa: SIM115 - of the child
        out = open(self.folder / f"out{number}", "w")  # noqa: SIM115
        self.agents[number] = subprocess.Popen(
            [sys.executable, "-c", AGENT, *arguments], cwd=self.folder, env={**os.environ, **environment}, stdout=out,
            stderr=err, text=True,
        )  # fmt: skip

    def said(self) -> str:
        return "".join((self.folder / f"err{number}").read_text() for number in self.agents)

    def until(self, what: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)

    def rounds(self) -> list[Round]:
        found = sorted(self.folder.glob(".run.elastic/round-*"))
        return [Round(**json.loads(file.read_text() or "null")) for file in found]

    def trains(self, *counts: int) -> None:
        """Wait until the rounds so far had so many processes, and the last one trains."""
        self.until(lambda: [len(found.names) for found in self.rounds()] == list(counts))
        port = self.rounds()[-1].address.rpartition(":")[2]
        self.until(lambda: len(list(self.folder.glob(f"process-{port}-*"))) == counts[-1])

    def at(self, place: int) -> int:
        """The agent whose process has that place in the last round."""
        pid = int(self.rounds()[-1].names[place].split("-")[-2])
        return next(number for number, agent in self.agents.items() if agent.pid == pid)

    def kill(self, number: int) -> None:
        self.agents[number].kill()
        self.agents[number].wait()

    def codes(self) -> dict[int, int]:
        return {number: agent.wait(60) for number, agent in self.agents.items()}


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[Launched]:
    found = Launched(tmp_path)
    yield found
    for agent in found.agents.values():
        agent.kill()
        agent.wait()


def test_a_run_of_three_goes_on_with_two_and_takes_the_third_back(launched: Launched) -> None:
    for number in range(3):
        launched.start(number, "2:3")
    launched.trains(3)
    first = launched.at(0)
    launched.kill(first)
    launched.trains(3, 2)
    launched.start(3, "2:3")
    launched.trains(3, 2, 3)
    launched.agents[launched.at(1)].terminate()  # a host that is asked to stop: the others go on
    launched.trains(3, 2, 3, 2)
    last = launched.rounds()[-1]
    (launched.folder / "done").touch()
    codes = launched.codes()
    assert codes.pop(first) == -9 and sorted(codes.values()) == [0, 0, 75], launched.said()
    assert "came: the run stops at the next step and goes on with 3 processes" in launched.said()
    assert [(launched.folder / f"out{number}").read_text() for number, code in codes.items() if code == 0] == [
        "trained\n"
    ] * 2 and len(last.names) == 2
    assert not list(launched.folder.glob(".run.elastic"))


def test_a_number_that_does_not_fit_leaves_one_to_wait_and_another_start_is_refused(launched: Launched) -> None:
    for number in range(3):
        launched.start(number, "1:4", UNFIT="3")
    launched.trains(3, 2)  # the fourth never came
    assert "3 processes cannot train this: 2 are tried" in launched.said()
    launched.start(3, "1:4", "optimizer.lr=0.5")
    assert launched.agents[3].wait(60) == 2
    told = (launched.folder / "err3").read_text()
    assert "run: this process was started otherwise than that on" in told and "optimizer.lr: " in told, told
    launched.start(4, "1:4")
    launched.trains(3, 2, 4)
    (launched.folder / "done").touch()
    assert set(launched.codes().values()) == {0, 2}, launched.said()


def test_too_few_and_too_many_failures_end_with_6(launched: Launched) -> None:
    launched.start(0, "2", "mesh.wait=1")
    assert launched.agents[0].wait(60) == 6
    assert "1 of 2 processes came within 1 s: " in launched.said() and not (launched.folder / ".run.elastic").exists()
    (launched.folder / "trains.py").write_text("import os; os.abort()")
    for number in (1, 2):
        launched.start(number, "2")
    assert [launched.agents[number].wait(60) for number in (1, 2)] == [6, 6]
    assert "2 starts in a row came to no new checkpoint: given up" in launched.said()


def test_who_says_nothing_is_gone_and_a_lost_folder_is_waited_for(tmp_path: Path) -> None:
    told: list[str] = []
    now = [100.0, 9e9]  # clocks that differ
    folder = tmp_path / "meeting"
    one = Members(folder, "a", told.append, lambda: now[0])
    two = Members(folder, "a", clock=lambda: now[1])
    two.own = members.replace(two.own, host="elsewhere")
    for _ in range(3):
        assert one.say() and two.say()
        now = [now[0] + 1, now[1] + 1]
    assert one.say() and len(one.there()) == 2 and one.gone(two.own.name) is None
    folder.rename(tmp_path / "away")
    folder.write_text("what stands there is no folder")
    for _ in range(60):  # a file system that is gone for a minute
        now[0] += 1
        assert not one.say()
    assert one.gone(two.own.name) is not None and told == ["File exists"]
    folder.unlink()
    (tmp_path / "away").rename(folder)
    assert one.say() and one.gone(two.own.name) is None and told[1:] == [""]
    for _ in range(23):
        now[0] += 1
        one.say()
    assert one.gone(two.own.name) == "has said nothing for 23 s" and one.there() == [one.own]
    one.propose(Round(1, ("a",), ("h",), "h:1"))
    two.propose(Round(1, ("b",), ("h",), "h:2"))
    assert one.round() == two.round() == Round(1, ("a",), ("h",), "h:1")


@pytest.mark.parametrize("code", [None, errno.EPERM, errno.ENOSPC])
def test_what_is_made_once_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int | None
) -> None:
    """An empty file of a round, or of an end, would hold up or break all who read it: on a full disk there is none."""

    def link(*_: object) -> None:
        raise OSError(code, "no link")

    if code is not None:
        monkeypatch.setattr(members.os, "link", link)
    one = Members(tmp_path, "a")
    proposed = Round(1, ("a",), ("h",), "h:1")
    if code == errno.ENOSPC:
        with pytest.raises(OSError, match="no link"):
            one.propose(proposed)
        one.mark("end", 1, "0")
        assert one.round() is None and one.marked("end", 1) is None and not [*tmp_path.iterdir()]
        return
    one.propose(proposed)
    one.propose(Round(1, ("b",), ("h",), "h:2"))
    one.mark("end", 1, "0")
    one.mark("end", 1, "4")  # the first word counts
    assert one.round() == proposed and one.marked("end", 1) == "0"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["end-000001", "round-000001.json"]


@pytest.mark.parametrize("text", ["", "0", "4:3", "3:4:5", "-1", "three"])
def test_what_is_no_number_of_processes_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="no number of processes"):
        Size.parse(text)


SLOWLY = """
import time
from pathlib import Path
from bigctl.config import schema

class Slowly(schema.Callback):
    name = "slowly"

    def after_log(self, step, metrics):
        time.sleep(0 if Path("go").exists() else 0.5)
"""
TRAIN = [
    "train", "recipe=mlp_cls", "data=breast_cancer", "train.batch_size=48", "train.steps=300", "train.log_every=10",
    "eval.every=100", "checkpoint.every=20", "train.callbacks=[slowly]", "--plugin", "slowly", "--name", "run",
]  # fmt: skip


@pytest.mark.slow
def test_four_processes_then_three_then_four_train_on_the_same_batches(bigctl: Cli, launched: Launched) -> None:
    """Losses to 1e-4 and every batch to the bit, as of one process; process 0 is the one that is lost."""
    folder, environment = launched.folder, {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    environment |= forked.flags(environment)
    whole = Cli(folder / "whole")
    whole.folder.mkdir()
    for place in (folder, whole.folder):
        (place / "slowly.py").write_text(SLOWLY)
    (whole.folder / "go").touch()
    whole(*TRAIN, "--quiet", env={**environment, "BIGCTL_WITNESS": str(whole.folder / "witness")})

    def start(number: int) -> None:
        err = open(folder / f"err{number}", "w")  # noqa: SIM115 - of the child
        launched.agents[number] = subprocess.Popen(
            bigctl.command(*TRAIN, "--elastic", "2:4", "--quiet"), cwd=folder, stderr=err, stdout=err, text=True,
            env={**environment, "BIGCTL_WITNESS": str(folder / f"witness{number}")},
        )  # fmt: skip

    def saved() -> int:
        names = [path.parent.name for path in run.glob("checkpoints/*/meta.json") if path.parent.name.isdigit()]
        return max(map(int, names), default=0)

    run = folder / "runs" / "run"
    launched.rounds = lambda: [  # type: ignore[method-assign]
        Round(**json.loads(file.read_text())) for file in sorted(folder.glob("runs/.run.elastic/round-*"))
    ]
    for number in range(4):
        start(number)
    launched.until(lambda: saved() >= 40, 120)
    assert len(launched.rounds()[-1].names) == 4
    lost = launched.at(0)
    launched.kill(lost)
    launched.until(lambda: len(launched.rounds()) == 2, 120)
    start(lost + 4)
    launched.until(lambda: len(launched.rounds()) == 3, 120)
    (folder / "go").touch()
    assert [len(found.names) for found in launched.rounds()] == [4, 3, 4]
    assert {number: code for number, code in launched.codes().items() if code} == {lost: -9}, launched.said()
    found, expected = losses(run), losses(whole.folder / "runs" / "run")
    assert list(found) == list(expected) and len(expected) == 30
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-4)
    assert (run / "batches.jsonl").read_text() == (whole.folder / "runs" / "run" / "batches.jsonl").read_text()
    starts = json.loads((run / "run.json").read_text())["starts"]
    told = [change for start in starts for change in start["changed"] if change.startswith("mesh")]
    assert told == [
        "mesh: data 4 in 4 processes -> data 3 in 3 processes (warning)",
        "mesh: data 3 in 3 processes -> data 4 in 4 processes (warning)",
    ]
    again = bigctl(*TRAIN, "--elastic", "2:4")  # one that comes when all is done
    assert "is complete; nothing to do" in again.stdout
    bigctl("verify", str(run))
