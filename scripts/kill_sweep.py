"""Kill a sweep at random moments, start it again each time, and hold its leaderboard against an undisturbed one.

Each kill is a SIGKILL of the sweep alone, of a trial or the process that trials are forked from, or of all at once. The
leaderboards must agree to the last bit, and the ledger must show that no trial was trained twice: none is started after
it was complete, and each start goes on where a checkpoint of the one before was. Exits with 1 where that is not so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

EXAMPLES = """\
examples:
  python scripts/kill_sweep.py
  python scripts/kill_sweep.py --kills 3 --json kills.json
"""
STUDY = [
    "recipe=mlp_cls", "data=breast_cancer", "optimizer.lr=1e-3,3e-3,1e-2", "seed=range(2)", "train.batch_size=64",
    "eval.every=500", "checkpoint.every=500", "train.steps_per_dispatch=50", "train.tensorboard=false",
]  # fmt: skip
AIMS = ("the sweep", "a trial", "everything")


def children(pid: int) -> list[int]:
    """The processes that a process has started and that still run, and theirs: trials are forked from one of them."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    own = [int(word) for word in text.split()]
    return [*own, *(theirs for child in own for theirs in children(child))]


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class Campaign:
    """One study, begun again after each kill.

    Args:
        command: of the sweep.
        folder: of the sweep.
        longest: the most that passes before a kill [s].
    """

    def __init__(self, command: list[str], folder: Path, draw: random.Random, longest: float):
        self.command, self.folder, self.draw, self.longest = command, folder, draw, longest
        self.kills: list[dict[str, Any]] = []

    def run(self, kills: int) -> int:
        """Start, kill, start again; gives the exit code of the last start."""
        while True:
            began = time.monotonic()
            process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            after = self.draw.uniform(0.2, self.longest)
            while process.poll() is None:
                if len(self.kills) < kills and time.monotonic() - began >= after:
                    self._kill(process, time.monotonic() - began)
                    began, after = time.monotonic(), self.draw.uniform(0.2, self.longest)
                time.sleep(0.02)
            if process.returncode != -signal.SIGKILL:
                return process.returncode

    def _kill(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        aim = self.draw.choice(AIMS)
        trials = children(process.pid)
        if aim == "a trial":
            if not trials:
                return
            kill(self.draw.choice(trials))
        else:
            kill(process.pid)
            for trial in trials if aim == "everything" else ():
                kill(trial)
            process.wait()
        self.kills.append({"aim": aim, "after": round(seconds, 2), "processes": len(trials)})


def result(folder: Path) -> dict[str, Any]:
    """What a leaderboard says, without times."""
    board = json.loads((folder / "leaderboard.json").read_text())
    points = [
        {key: point[key] for key in ("rank", "point", "mean", "std", "n", "metrics", "trials")}
        for point in board["points"]
    ]
    trials = [{key: trial[key] for key in ("id", "status", "metrics", "step")} for trial in board["trials"]]
    winner = {key: board["winner"][key] for key in ("trials", "mean", "test")}
    return {"points": points, "trials": sorted(trials, key=lambda t: t["id"]), "winner": winner}


def trained_twice(folder: Path) -> list[str]:
    """What speaks for a trial having been trained twice."""
    found, complete = [], Counter[str]()
    for line in map(json.loads, filter(None, (folder / "ledger.jsonl").read_text().split("\n"))):
        if line["event"] == "start" and complete[line["id"]]:
            found.append(f"{line['id']} was started after it was complete")
        if line["event"] == "end" and line["status"] == "complete":
            complete[line["id"]] += 1
    found += [f"{name} was complete {n} times" for name, n in complete.items() if n > 1]
    for run in sorted((folder / "trials").iterdir()):
        starts = [start["step"] for start in json.loads((run / "run.json").read_text()).get("starts", [])]
        if starts != sorted(starts):
            found.append(f"{run.name} went back: it started at steps {starts}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="default: 20")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; default: 0")
    parser.add_argument("--steps", type=int, default=600_000, help="of each trial; default: 600,000")
    parser.add_argument("--longest", type=float, default=12.0, help="the most before a kill [s]; default: 12")
    parser.add_argument("--jobs", default="2", help="default: 2")
    parser.add_argument("--packed", default="no", help="as of `bigctl sweep`; default: no")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what happened there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = [sys.executable, "-m", "bigctl", "sweep", *STUDY, f"train.steps={options.steps}", "--quiet"]
        base += ["--jobs", options.jobs, "--packed", options.packed, "--sweep-dir"]
        quiet, killed = Path(folder) / "undisturbed", Path(folder) / "killed"
        began = time.monotonic()
        code = subprocess.run([*base, str(quiet)], stdout=subprocess.DEVNULL).returncode
        print(f"undisturbed: exit code {code}, {time.monotonic() - began:.0f} s", flush=True)
        campaign = Campaign([*base, str(killed)], killed, random.Random(options.seed), options.longest)
        began = time.monotonic()
        again = campaign.run(options.kills)
        hit = ", ".join(f"{n} of {aim}" for aim, n in Counter(kill["aim"] for kill in campaign.kills).items())
        print(f"killed: exit code {again}, {len(campaign.kills)} kills ({hit}), {time.monotonic() - began:.0f} s")
        same = result(quiet) == result(killed)
        twice = trained_twice(killed)
        print(f"leaderboards {'equal to the bit' if same else 'DIFFER'}")
        print("\n".join(twice) if twice else "no trial was trained twice")
        if options.json:
            happened = {"kills": campaign.kills, "equal": same, "twice": twice}
            options.json.write_text(json.dumps(happened, indent=1) + "\n")
        if not same:
            for name, where in (("undisturbed", quiet), ("killed", killed)):
                print(f"{name}: {json.dumps(result(where))}")
        return 0 if same and not twice and code == again == 0 and len(campaign.kills) >= options.kills else 1


if __name__ == "__main__":
    sys.exit(main())
