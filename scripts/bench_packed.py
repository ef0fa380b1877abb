"""Wall time of many small trials: learning rates times seeds of one recipe, trained in four ways.

"shell loop" is one `bigctl train` after the other, as a script without a sweep has it; "processes" the same with so
many at a time; "one process" calls `bigctl.train()` in a loop; "packed" is `python -m bigctl.sweeps.packed.runner`.
All of them make the same run directories, from a new process on, with compiled programs kept from before. What comes
out is compared: the losses of the first 20 steps, trial by trial, and the selected metrics over all trials.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import _bench

EXAMPLES = """\
examples:
  python scripts/bench_packed.py
  python scripts/bench_packed.py --rates 4 --seeds 2
  python scripts/bench_packed.py --train "recipe=cnn_cls data=digits" --rates 4 --only packed "one process"
"""

WAYS = ("shell loop", "processes", "one process", "packed")
TARGETS = {"shell loop": 5.0, "one process": 1.5}
EARLY = 20

LOOP = """
import json, sys
import bigctl
for trial in json.load(open(sys.argv[1]))["trials"]:
    bigctl.train(bigctl.compose(trial["overrides"]), trial["run"], quiet=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", default="recipe=mlp_cls", help="overrides of all trials (default %(default)s)")
    parser.add_argument("--rates", type=int, default=16, help="learning rates, 1e-4 to 1e-1 (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="seeds of each (default %(default)s)")
    parser.add_argument("--mode", choices=("auto", "yes"), default="auto", help="of packing (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help='of "processes", how many at a time (default %(default)s)')
    parser.add_argument("--only", nargs="+", choices=WAYS, default=WAYS, metavar="WAY", help=f"of {', '.join(WAYS)}")
    options = parser.parse_args()

    _bench.print_facts("jax", "jaxlib", "flax", "optax")
    with tempfile.TemporaryDirectory(prefix="bench-packed-") as scratch:
        folder = Path(scratch)
        trials = Trials(folder, options)
        warm_up(trials)
        seconds = {way: _bench.seconds(lambda way=way: run(way, trials, options)) for way in options.only}
        count = options.rates * options.seeds
        print(f"{count} trials of {options.train}, {os.path.basename(sys.executable)}, {_bench.cores()} cores")
        report(seconds, count)
        verdict = folder / "packed" / "job.verdict.json"
        if verdict.exists():
            print("\n".join(group["sentence"] for group in json.loads(verdict.read_text())["groups"]) + "\n")
        outcomes({way: folder / way for way in options.only})
        early(trials)


class Trials:
    """The trials, for each way in a folder of its own."""

    def __init__(self, folder: Path, options: argparse.Namespace):
        self.folder, self.mode = folder, options.mode
        self.common = [*shlex.split(options.train), "eval.test=false"]
        exponents = [3 * number / max(1, options.rates - 1) - 4 for number in range(options.rates)]
        self.points = [(f"{10**exponent:.6f}", seed) for exponent in exponents for seed in range(options.seeds)]

    def job(self, way: str, points: Sequence[tuple[str, int]] | None = None, *more: str) -> Path:
        """A job file with the trials: what each is given, and where it goes."""
        folder = self.folder / way
        folder.mkdir()
        trials = [
            {
                "id": f"{lr}-{seed}",
                "overrides": [*self.common, *more, f"optimizer.lr={lr}", f"seed={seed}"],
                "run": str(folder / f"{lr}-{seed}"),
            }
            for lr, seed in (self.points if points is None else points)
        ]
        content = {"trials": trials, "mode": self.mode, "quiet": True}
        (folder / "job.json").write_text(json.dumps(content))
        return folder / "job.json"


def warm_up(trials: Trials) -> None:
    """Data prepared and programs compiled, for all ways."""
    first = trials.points[:1]
    execute([*command(json.loads(trials.job("warm-up", first).read_text())["trials"][0])])
    execute([sys.executable, "-m", "bigctl.sweeps.packed.runner", str(trials.job("warm-up packed", trials.points))])


def run(way: str, trials: Trials, options: argparse.Namespace) -> None:
    job = trials.job(way)
    commands = [command(trial) for trial in json.loads(job.read_text())["trials"]]
    if way == "shell loop":
        execute(["sh", "-ec", "\n".join(shlex.join(each) for each in commands)])
    elif way == "processes":
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(execute, commands))
    elif way == "one process":
        execute([sys.executable, "-c", LOOP, str(job)])
    else:
        execute([sys.executable, "-m", "bigctl.sweeps.packed.runner", str(job)])


def command(trial: dict[str, Any]) -> list[str]:
    program = str(Path(sys.executable).with_name("bigctl"))
    return [program, "train", *trial["overrides"], "--run-dir", trial["run"], "--quiet"]


def execute(arguments: Sequence[str]) -> None:
    done = subprocess.run(arguments, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f"bench_packed: {' '.join(arguments[:4])} ... failed:\n{done.stderr[-2000:]}")


# --------------------------------------------------------------------------------------------------------- reporting


def report(seconds: dict[str, float], count: int) -> None:
    packed = seconds.get("packed", math.nan)
    rows = [[way, taken, taken / count, taken / packed] for way, taken in seconds.items()]
    _bench.table(["way", "wall [s]", "a trial [s]", "times packed"], rows)
    for way, target in TARGETS.items():
        if way in seconds and "packed" in seconds:
            ratio = seconds[way] / packed
            met = "met" if ratio >= target else "MISSED"
            print(f"{way} / packed: {ratio:.2f}, target >= {target:g}: {met}")
    print(flush=True)


def outcomes(folders: dict[str, Path]) -> None:
    """Mean and spread over all trials of the selected metrics."""
    rows = []
    for way, folder in folders.items():
        found = [json.loads(path.read_text())["metrics"] for path in sorted(folder.glob("*/summary.json"))]
        row: list[Any] = [way, len(found)]
        for name in ("val/loss", "val/accuracy"):
            values = [metrics[name] for metrics in found if name in metrics]
            row += [_mean(values), statistics.pstdev(values) if values else math.nan]
        rows.append(row)
    _bench.table(["way", "complete", "val/loss", "spread", "val/accuracy", "spread"], rows)


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def early(trials: Trials) -> None:
    """The largest relative difference of the first losses between packed and single trials."""
    points = trials.points[:: max(1, len(trials.points) // 8)]
    more = (f"train.steps={EARLY}", "train.epochs=null", "train.log_every=1")
    trials.mode = "yes"
    jobs = [trials.job(way, points, *more) for way in ("early packed", "early single")]
    execute([sys.executable, "-m", "bigctl.sweeps.packed.runner", str(jobs[0])])
    execute([sys.executable, "-c", LOOP, str(jobs[1])])
    worst = 0.0
    for packed, single in zip(*(sorted(job.parent.glob("*/metrics.jsonl")) for job in jobs), strict=True):
        for here, there in zip(_losses(packed), _losses(single), strict=True):
            worst = max(worst, abs(here - there) / abs(there))
    met = "met" if worst <= 1e-5 else "MISSED"
    print(
        f"first {EARLY} losses of {len(points)} trials, packed against single: relative difference {worst:.1e}, ",
        end="",
    )
    print(f"target <= 1e-5: {met}")


def _losses(path: Path) -> list[float]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


if __name__ == "__main__":
    main()
