"""Kill a training on pictures that are decoded while it trains, at random moments of its second epoch, over and over,
and compare it with its undisturbed twin to the bit.

After each kill the same command goes on; what is told of it is the time until its first step was logged, from the
start of the process and from the loop's first look for a batch (compiling the step included). Exits with 1 if one bit
of the checkpoints, the metrics or the summary differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

EXAMPLES = """\
examples:
  python scripts/kill_streamed.py
  python scripts/kill_streamed.py --kills 5 --pictures 800
"""
BATCH, CLASSES = 8, 4
KEYS = [
    "recipe=cnn_cls", "data=image_folder", "data.image_size=[16,16]", "data.resize=crop", "data.decoding=stream",
    "recipe.augment.random_resized_crop=0.3", "recipe.augment.flip=horizontal", "model.channels=[8]",
    "model.hidden=[8]", f"train.batch_size={BATCH}", "train.log_every=1", "checkpoint.every=5", "eval.every=100000",
]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="default: 20")
    parser.add_argument("--pictures", type=int, default=3200, help="how many are made up; default: 3200")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; default: 0")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kill-streamed-") as folder:
        told = campaign(options, Path(folder))
    if options.json:
        print(json.dumps(told, indent=1))
    else:
        print(
            f"{len(told['kills'])} kills in epoch 2, at steps {', '.join(str(each['step']) for each in told['kills'])}"
        )
        for what in ("process", "loop"):
            times = sorted(each[what] for each in told["kills"])
            middle = times[len(times) // 2]
            print(f"first step after a resume, from the start of the {what}: {middle:.1f} s, {times[-1]:.1f} s at most")
        print("bit-equal" if told["ok"] else f"DIFFERENT: {told['different']}")
    return 0 if told["ok"] else 1


def campaign(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from bigctl.engine.same_run import compare_runs
    from bigctl.runs.directory import RunDirectory

    make_pictures(folder / "pictures", options.pictures)
    epoch = int(options.pictures * 0.8) // BATCH
    command = [
        sys.executable, "-m", "bigctl", "train", *KEYS, f"data.path={folder / 'pictures'}",
        f"train.steps={2 * epoch + 20}",
    ]  # fmt: skip
    subprocess.run([*command, "--run-dir", str(folder / "whole"), "--quiet"], check=True, stdout=subprocess.DEVNULL)
    draw, kills, killed = random.Random(options.seed), list[dict[str, Any]](), folder / "killed"
    first, last = epoch + 5, 2 * epoch - 5
    moments = sorted(draw.uniform(first, last) for _ in range(options.kills))
    for moment in [*moments, None]:
        before = steps(killed)
        began = time.monotonic()
        process = subprocess.Popen(
            [*command, "--run-dir", str(killed), "--quiet"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        found = watch(process, killed, began, before, moment, draw)
        if before:
            kills[-1] |= {"process": found["process"], "loop": found["loop"]}
        if moment is None:
            assert process.returncode == 0, process.stderr and process.stderr.read().decode()
        else:
            kills.append({"step": found["step"]})
    results = compare_runs(RunDirectory(folder / "whole"), RunDirectory(killed))
    different = [f"{each.what}: {each.difference}" for each in results if each.difference]
    return {"kills": kills, "epoch": epoch, "compared": len(results), "different": different, "ok": not different}


def watch(
    process: subprocess.Popen[bytes], run: Path, began: float, before: int, moment: float | None, draw: random.Random
) -> dict[str, Any]:
    """Wait until a step is logged, kill the process then, if it is to be killed, and say when its first one was."""
    found: dict[str, Any] = {}
    low = size(run) if before else 0
    while process.poll() is None:
        time.sleep(0.005)
        lines, now = logged(run), size(run)
        low = min(low, now)  # what was logged after the last checkpoint is cut off by a resume
        if now == low or not lines:
            continue
        if not found:
            found = {"process": time.monotonic() - began, "loop": lines[-1]["perf/elapsed_s"]}
        if moment is not None and lines[-1]["step"] >= moment:
            time.sleep(draw.uniform(0, 0.02))
            process.kill()
            break
    process.wait()
    lines = logged(run)
    return found | {"step": lines[-1]["step"] if lines else 0}


def logged(run: Path) -> list[dict[str, Any]]:
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
        return [found for line in lines[-2:] if line.endswith("}") and "perf/elapsed_s" in (found := json.loads(line))]
    except (OSError, ValueError):
        return []


def size(run: Path) -> int:
    file = run / "metrics.jsonl"
    return file.stat().st_size if file.is_file() else 0


def steps(run: Path) -> int:
    return logged(run)[-1]["step"] if logged(run) else 0


def make_pictures(folder: Path, count: int) -> None:
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for number in range(count):
        shape = draw.integers(60, 160, 2).tolist()
        place = folder / f"class{number % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        small = draw.integers(0, 256, (6, 6, 3)).astype(np.uint8)
        Image.fromarray(small).resize(shape).save(place / f"{number}.jpg")


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.exit(main())
