"""Kill small runs of several recipes at random moments, over and over, and compare each with its undisturbed twin.

This is `bigctl verify-resume` at length: every kill and the phase it hit are written down. Exits with 1 if a run is
lost, if one bit differs, or if a phase is hit less often than --at-least says.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

EXAMPLES = """\
examples:
  python scripts/kill_campaign.py --json kills.json
  python scripts/kill_campaign.py --kills 8 --recipes cnn_cls --at-least 0
"""
# Steps long enough that there is time between two checkpoints in which none is being saved.
OFTEN = ["train.steps=360", "eval.every=60", "checkpoint.every=80", "train.log_every=7", "train.steps_per_dispatch=2"]
PHASES = ("start-up", "step", "eval", "save")
RECIPES = {
    "cnn_cls": [
        "recipe=cnn_cls", "data=digits", "model.channels=[32,64]", "model.dropout=0.1", "train.ema=0.99",
        "train.batch_size=128", "eval.batch_size=4", *OFTEN,
    ],
    "lstm_cls": [
        "recipe=lstm_cls", "recipe.tokenizer.type=words", "recipe.tokenizer.size=128", "recipe.bucketing.shapes=2",
        "model.embedding=16", "model.hidden=32", "train.batch_size=16", "eval.batch_size=16", *OFTEN,
    ],
    "gpt_lm": [
        "recipe=gpt_lm", "recipe.tokenizer.type=bytes", "model.layers=2", "model.width=64", "model.heads=2",
        "model.intermediate=128", "model.context=64", "train.batch_size=16", "recipe.sample_tokens=20", *OFTEN,
    ],
}  # fmt: skip


def data(recipe: str, folder: Path) -> list[str]:
    """A made-up data set for the recipes that need one."""
    draw = random.Random(0)
    words = [f"word{i}" for i in range(100)]
    if recipe == "lstm_cls":
        file = folder / "texts.csv"
        rows = [(" ".join(draw.choices(words, k=draw.randint(3, 40))), "ab"[i % 3 > 0]) for i in range(2000)]
        with file.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([("text", "label"), *rows])
        return ["data=csv", f"data.path={file}", "data.text=text", "data.label=label"]
    if recipe == "gpt_lm":
        file = folder / "story.txt"
        file.write_text("\n".join(" ".join(draw.choices(words, k=12)) for _ in range(4000)), encoding="utf-8")
        return ["data=text", f"data.path={file}"]
    return []


class Campaign:
    """One crash test for each part: a recipe and its share of the kills. Each job has a processor core of its own."""

    def __init__(self, folder: Path, jobs: int):
        self.folder, self.stop = folder, threading.Event()
        self.cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self._free = list(range(jobs))
        self._lock = threading.Lock()

    def test(self, part: tuple[str, int, int]) -> Any:
        from bigctl.engine.crash_test import CrashTest

        recipe, seed, kills = part
        with self._lock:
            job = self._free.pop()
        if self.cores:  # of this thread, and of the processes that it starts: XLA then counts one core in all of them
            os.sched_setaffinity(0, {self.cores[job % len(self.cores)]})
        place = self.folder / f"{recipe}-{seed}"
        place.mkdir()

        def say(line: str) -> None:
            print(f"{recipe:<9} {line}", file=sys.stderr, flush=True)

        try:
            arguments = [*RECIPES[recipe], *data(recipe, place)]
            return CrashTest(arguments, place, kills=kills, seed=seed, say=say, stop=self.stop).run()
        except BaseException as error:
            self.stop.set()  # whatever it was, the others need not go on
            raise RuntimeError(f"{recipe}: {type(error).__name__}: {error}") from error
        finally:
            with self._lock:
                self._free.append(job)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=105, help="how many in all, at least one a recipe; default: 105")
    parser.add_argument("--recipes", nargs="+", choices=sorted(RECIPES), default=list(RECIPES), metavar="RECIPE")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills; default: 0")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one core; default: 2")
    parser.add_argument("--at-least", type=int, default=15, help="kills in each phase to ask for; default: 15")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every kill and every comparison")
    options = parser.parse_args()
    shares = {r: options.kills * (i + 1) // len(options.recipes) for i, r in enumerate(options.recipes)}
    parts, before = [], 0
    for recipe, until in shares.items():  # in halves, so that no core is idle at the end
        for half in range(2):
            count = (until - before + half) // 2
            if count:
                parts.append((recipe, options.seed + half, count))
        before = until
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # either way, the children are ended first
    clock = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="kill-campaign-", ignore_cleanup_errors=True) as folder:
        campaign = Campaign(Path(folder), options.jobs)
        with ThreadPoolExecutor(options.jobs) as pool:
            try:
                results = list(zip(parts, pool.map(campaign.test, parts), strict=True))
            except KeyboardInterrupt:
                for number in (signal.SIGINT, signal.SIGTERM):  # once is enough
                    signal.signal(number, signal.SIG_IGN)
                campaign.stop.set()
                return 130
    seconds = time.perf_counter() - clock
    counts = count_phases(results)
    report(counts, results, seconds)
    if options.json:
        content = {
            "schema": 1, "seed": options.seed, "seconds": round(seconds, 1), "phases": counts,
            "parts": [{"recipe": part[0], **result.to_json()} for part, result in results],
        }  # fmt: skip
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    enough = all(sum(row[phase] for row in counts.values()) >= options.at_least for phase in PHASES)
    return 0 if enough and all(result.ok for _, result in results) else 1


def count_phases(results: list[Any]) -> dict[str, dict[str, int]]:
    """Kills by recipe and phase."""
    counts: dict[str, dict[str, int]] = {}
    for (recipe, *_), result in results:
        row = counts.setdefault(recipe, dict.fromkeys([*PHASES, "end"], 0))
        for phase, count in result.phases.items():
            row[phase] += count
    return counts


def report(counts: dict[str, dict[str, int]], results: list[Any], seconds: float) -> None:
    columns = [*PHASES, "end"]
    print(f"{'recipe':<10}" + "".join(f"{phase:>10}" for phase in columns) + f"{'all':>8}")
    for recipe, row in counts.items():
        print(f"{recipe:<10}" + "".join(f"{row[phase]:>10}" for phase in columns) + f"{sum(row.values()):>8}")
    totals = [sum(row[phase] for row in counts.values()) for phase in columns]
    print(f"{'all':<10}" + "".join(f"{total:>10}" for total in totals) + f"{sum(totals):>8}")
    runs = sum(len(result.runs) for _, result in results)
    lost = [said for _, result in results for said in result.lost]
    differences = [found for _, result in results for found in result.differences]
    for said in lost:
        print(f"LOST {said}")
    for found in differences:
        print(f"DIFFERENT {found.what}: {found.difference}")
    print(f"{runs} runs finished in {seconds:.0f} s, {len(lost)} lost, {len(differences)} differences")


if __name__ == "__main__":
    sys.exit(main())
