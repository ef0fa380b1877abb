"""Data far larger than memory: time to the first step and peak memory, beside a small set of the same kind.

    tokens     a sparse .bin of uint16 tokens, which takes no room on the disk, and one of 200 KB
    pictures   a folder of that many small PNG files, streamed, and one of 200

Each trains a small model for two steps, in a process of its own and in turns: once to compile and to prepare, then to
be measured. What a large set takes longer to its first step than the small one is what its size costs; memory is that
of the whole process. Tokens are all zeros, and nothing is learned.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import _bench

EXAMPLES = """\
examples:
  python scripts/bench_large.py --gigabytes 18
  python scripts/bench_large.py --pictures 200000 --turns 1
"""

TRAIN = (
    _bench.AT_FIRST_STEP
    + """
import json, resource, sys, time
began, found = time.perf_counter(), {}
at_first_step(lambda: found.setdefault("seconds", time.perf_counter() - began))
from bigctl.cli.main import main
code = main(sys.argv[1:])
found["megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
print(json.dumps(found))
sys.exit(code)
"""
)
LENGTH = ["train.steps=2", "train.tensorboard=false", "train.batch_size=4"]
GPT = ["recipe=gpt_lm", "model.layers=2", "model.width=64", "model.heads=2", "recipe.block=64", *LENGTH]
TOKENS = [*GPT, "data=tokens", "data.validation_tokens=4096", "recipe.tokenizer.type=bytes"]
PICTURES = ["recipe=cnn_cls", "data=image_folder", "data.decoding=stream", "model.channels=[8,16]", *LENGTH]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=0.0, help="size of the sparse file of tokens")
    parser.add_argument("--pictures", type=int, default=0, help="files in the folder")
    parser.add_argument("--turns", type=int, default=2, help="how often each is measured (default %(default)s)")
    parser.add_argument("--folder", type=Path, help="where the sets are made, and removed (default: a temporary one)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not options.gigabytes and not options.pictures:
        parser.error("nothing to do: give --gigabytes or --pictures")
    folder = Path(tempfile.mkdtemp(prefix="bench_large-", dir=options.folder))
    try:
        found = measure(options, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    _bench.print_facts("jax", "numpy")
    rows = [[name, *(each[key] for key in ("first", "seconds", "megabytes"))] for name, each in found.items()]
    _bench.table(["set", "first start [s]", "to the first step [s]", "peak memory [MB]"], rows)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Of each set: seconds to the first step when it is new and, as a median, when it is known; megabytes."""
    ways: dict[str, list[str]] = {}
    if options.gigabytes:
        for name, size in (("tokens, 200 KB", 200_000), (f"tokens, {options.gigabytes:g} GB", options.gigabytes * 1e9)):
            file = folder / f"{int(size)}.bin"
            with file.open("wb") as stream:
                stream.truncate(2 * int(size / 2))
            ways[name] = [*TOKENS, f"data.path={file}"]
    if options.pictures:
        for count in (200, options.pictures):
            ways[f"pictures, {count:,} files"] = [*PICTURES, f"data.path={write_pictures(folder / str(count), count)}"]
    made: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for turn in range(options.turns + 1):
        for number, (name, words) in enumerate(ways.items()):
            made[name].append(train(folder, words, f"{number}-{turn}"))
    return {
        name: {
            "first": runs[0]["seconds"],
            "seconds": statistics.median(run["seconds"] for run in runs[1:] or runs),
            "megabytes": max(run["megabytes"] for run in runs),
        }
        for name, runs in made.items()
    }


def write_pictures(folder: Path, count: int) -> Path:
    """Two classes of small pictures, no two of them alike."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        image = Image.fromarray(draw.integers(0, 256, (16, 16, 3), np.uint8))
        image.save(folder / "ab"[number % 2] / f"{number:07}.png", compress_level=1)
    return folder


def train(folder: Path, words: list[str], run: str) -> dict[str, float]:
    environment = {**os.environ, "BIGCTL_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, "-c", TRAIN, "train", *words, "--run-dir", str(folder / "runs" / run), "--quiet"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
