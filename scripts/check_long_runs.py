"""What long runs promise of themselves, measured on a small one of this machine:

ledger   the parts of the wall time that a run's ledger tells, after kills at random moments, against a clock outside
stuck    how long after a process sleeps, or is stopped with SIGSTOP, each of the others has named it
memory   resident memory of a process over many saves

Exits with 1 if the ledger is off by more than 1%, one is named later than `train.step_timeout` + 5 s, or memory grows.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from bigctl.runs import goodput
from bigctl.runs.directory import RunDirectory

EXAMPLES = """\
examples:
  python scripts/check_long_runs.py
  python scripts/check_long_runs.py --only stuck --processes 2 4
  python scripts/check_long_runs.py --only ledger --kills 10 --seconds 30
"""
CHECKS = ("ledger", "stuck", "memory")
TRAIN = [
    sys.executable, "-m", "bigctl", "train", "recipe=mlp_cls", "data=breast_cancer", "train.batch_size=64",
    "train.callbacks=[paced]", "--plugin", "paced", "--name", "run",
]  # fmt: skip
PACED = """
import signal, time
from bigctl.config import schema

signal.signal(signal.SIGUSR2, lambda *_: time.sleep(600))  # the main thread, wherever it is

class Paced(schema.Callback):
    name = "paced"

    def after_log(self, step, metrics):
        time.sleep(0.05)
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=CHECKS, help="one of them (default all)")
    parser.add_argument("--kills", type=int, default=10, help="of the ledger's run (default %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=20, help="of a start before its kill, about (default %(default)s)"
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4], help="(default %(default)s)")
    parser.add_argument("--timeout", type=float, default=10, help="train.step_timeout [s] (default %(default)s)")
    parser.add_argument("--saves", type=int, default=50, help="(default %(default)s)")
    parser.add_argument("--width", type=int, default=200, help="of the layers that are saved (default %(default)s)")
    options = parser.parse_args()
    good = True
    for check in CHECKS if options.only is None else [options.only]:
        with tempfile.TemporaryDirectory(prefix=f"long-{check}-") as folder:
            (Path(folder) / "paced.py").write_text(PACED)
            good &= {"ledger": ledger, "stuck": stuck, "memory": memory}[check](options, Path(folder))
    return 0 if good else 1


# ------------------------------------------------------------------------------------------------------------- ledger


def ledger(options: argparse.Namespace, folder: Path) -> bool:
    """SIGKILL while steps go on, each time after another while; the clock outside runs from start to kill."""
    chance, walls, run = random.Random(0), [], RunDirectory(folder / "runs" / "run")
    command = [*TRAIN, "train.steps=1000000", "train.log_every=50", "checkpoint.every=100", "--quiet"]
    for number in range(options.kills):
        began, child = time.monotonic(), subprocess.Popen(command, cwd=folder, env=alone())
        until(lambda: len(entries(run)) > number, child)  # noqa: B023 - called at once
        time.sleep(options.seconds * chance.uniform(0.5, 1.5))
        child.kill()
        child.wait()
        walls.append(time.monotonic() - began)
    found = goodput.of_run(run)
    assert found is not None and found.starts == options.kills, found
    off = found.wall / sum(walls) - 1
    print(f"ledger: {options.kills} kills, {found.wall:.1f} s told, {sum(walls):.1f} s by the clock: {off:+.2%}")
    print(f"        {found.said}")
    return abs(off) <= 0.01


def entries(run: RunDirectory) -> list[object]:
    found = goodput.of_run(run)
    return [] if found is None else [None] * found.starts


# -------------------------------------------------------------------------------------------------------------- stuck


def stuck(options: argparse.Namespace, folder: Path) -> bool:
    """Of groups of processes, one that sleeps in Python and one that is stopped; process 0 and the last in turn."""
    worst = 0.0
    for count in options.processes:
        for how in ("sleeps", "SIGSTOP"):
            for rank in (0, count - 1):
                took = named(folder / f"{count}-{how}-{rank}", count, how, rank, options.timeout)
                told = ", ".join(f"{seconds:.1f} s" for seconds in took)
                print(f"stuck: process {rank} of {count} {how}: named by the others after {told}", flush=True)
                worst = max(worst, *took)
    return worst <= options.timeout + 5


def named(folder: Path, count: int, how: str, rank: int, timeout: float) -> list[float]:
    """After how long each of the others has said which it is [s]."""
    folder.mkdir()
    (folder / "paced.py").write_text(PACED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*TRAIN, "train.steps=1000000", "train.log_every=5", f"train.step_timeout={timeout:g}"]
    group = {**alone(), "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(count)}
    children = [
        subprocess.Popen(
            command, cwd=folder, env={**group, "JAX_PROCESS_ID": str(index)}, stderr=subprocess.PIPE, text=True
        )
        for index in range(count)
    ]
    said: dict[int, float] = {}

    def listen(index: int) -> None:
        for line in children[index].stderr or ():
            if f"process {index} of {count}: nothing has come" in line and re.search(rf"process {rank}\b", line):
                said.setdefault(index, time.monotonic())

    threads = [threading.Thread(target=listen, args=(index,), daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    try:
        metrics = folder / "runs/run/metrics.jsonl"
        until(lambda: metrics.exists() and metrics.read_text().count("\n") > 20, children[0])
        began = time.monotonic()
        children[rank].send_signal(signal.SIGSTOP if how == "SIGSTOP" else signal.SIGUSR2)
        others = [index for index in range(count) if index != rank]
        deadline = began + timeout + 60
        while len(said.keys() & set(others)) < len(others) and time.monotonic() < deadline:
            time.sleep(0.05)
        return [said.get(index, float("inf")) - began for index in others]
    finally:
        for child in children:
            child.kill()
            child.wait()


# ------------------------------------------------------------------------------------------------------------- memory


def memory(options: argparse.Namespace, folder: Path) -> bool:
    """Resident memory while a checkpoint of 3 x width x width numbers is saved again and again, after the first ten."""
    command = [
        *TRAIN, f"train.steps={20 * (options.saves + 10)}", "train.log_every=20", "checkpoint.every=20",
        "eval.every=1000000", f"model.hidden=[{options.width},{options.width}]", "--quiet",
    ]  # fmt: skip
    child = subprocess.Popen(command, cwd=folder, env=alone(), stdout=subprocess.DEVNULL)
    seen: dict[int, float] = {}
    while child.poll() is None:
        names = [path.name for path in folder.glob("runs/run/checkpoints/[0-9]*") if path.name.isdigit()]
        if names:
            status = Path(f"/proc/{child.pid}/status").read_text()
            if found := re.search(r"VmRSS:\s+(\d+)", status):
                step = int(max(names))
                seen[step] = max(seen.get(step, 0.0), int(found[1]) / 1024)
        time.sleep(0.02)
    assert child.returncode == 0
    held = [seen[step] for step in sorted(seen)][10:]
    tenth = max(1, len(held) // 10)
    medians = [statistics.median(held[start : start + tenth]) for start in range(0, len(held), tenth)]
    told = " ".join(f"{value:.0f}" for value in medians)
    print(f"memory: {len(held)} saves after the first ten, medians of {tenth} in turn: {told} MiB")
    first, last = statistics.median(held[: len(held) // 3]), statistics.median(held[-len(held) // 3 :])
    return last <= 1.02 * first


def alone() -> dict[str, str]:
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}


def until(what: Callable[[], bool], child: subprocess.Popen) -> None:
    while not what():
        if child.poll() is not None:
            raise SystemExit(f"the training ended with {child.returncode}")
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
