"""Data far larger than memory: time to the first step and peak memory, beside a small set of the same kind.

    --gigabytes G      a sparse .bin of uint16 tokens, which takes no room on the disk, and one of 200 KB
    --pictures N       a folder of N small PNG files, streamed, and one of 200
    --prepared G       pictures of 224 x 224 that are decoded once, into G gigabytes of the cache, and 200 of them
    --photographs N    an epoch of N streamed JPEGs of 224 x 224 in so much address space, as of `ulimit -v 4000000`

Each of the first three trains a small model for two steps, in a process of its own and in turns: once to compile and
to prepare, then to be measured. What a large set takes longer to its first step than the small one is what its size
costs; memory is that of the whole process; and in a process that has imported everything the prepared set is opened
by itself. Tokens are all zeros, and nothing is learned.

On two cores: 18 GB of tokens take a minute; 200,000 small files 800 MB of the disk and 5 minutes; 1 GB of prepared
pictures 1.4 GB and 2 minutes; 50,000 photographs 1.2 GB and 10 minutes.
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
from typing import Any

import _bench

EXAMPLES = """\
examples:
  python scripts/bench_large.py --gigabytes 18
  python scripts/bench_large.py --pictures 200000 --turns 1
  python scripts/bench_large.py --prepared 1 --turns 3
  python scripts/bench_large.py --photographs 50000
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
OPEN = """
import json, sys, time
import bigctl
from bigctl.engine import resolve
for words in json.loads(sys.argv[1]):
    config = bigctl.compose(words)
    began = time.perf_counter()
    resolve.prepare_data(config)
    seconds = time.perf_counter() - began
print(json.dumps({"seconds": seconds}))
"""
LENGTH = ["train.steps=2", "train.tensorboard=false", "train.batch_size=4"]
GPT = ["recipe=gpt_lm", "model.layers=2", "model.width=64", "model.heads=2", "recipe.block=64", *LENGTH]
TOKENS = [*GPT, "data=tokens", "data.validation_tokens=4096", "recipe.tokenizer.type=bytes"]
PICTURES = ["recipe=cnn_cls", "data=image_folder", "data.decoding=stream", "model.channels=[8,16]", *LENGTH]
PREPARED = ["recipe=cnn_cls", "data=image_folder", "data.decoding=memory", "model.channels=[2]", *LENGTH]
PHOTOGRAPHS = ["recipe=cnn_cls", "data=image_folder", "model=mlp", "model.hidden=[8]"]  # a step takes next to nothing
EPOCH = ["train.epochs=1", "train.batch_size=64", "train.tensorboard=false"]
SIDE = 224


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=0.0, help="size of the sparse file of tokens")
    parser.add_argument("--pictures", type=int, default=0, help="files in the folder")
    parser.add_argument("--prepared", type=float, default=0.0, help="gigabytes of the prepared set")
    parser.add_argument("--photographs", type=int, default=0, help="files that are trained on for an epoch")
    parser.add_argument("--address-space", type=int, default=4_000_000, help="for them [KiB] (default %(default)s)")
    parser.add_argument("--turns", type=int, default=2, help="how often each is measured (default %(default)s)")
    parser.add_argument("--folder", type=Path, help="where the sets are made, and removed (default: a temporary one)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not (options.gigabytes or options.pictures or options.prepared or options.photographs):
        parser.error("nothing to do: give --gigabytes, --pictures, --prepared or --photographs")
    folder = Path(tempfile.mkdtemp(prefix="bench_large-", dir=options.folder))
    try:
        found = measure(options, folder)
        epoch = train_on_photographs(options, folder) if options.photographs else {}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        print(json.dumps(found | {"photographs": epoch}, indent=1))
        return
    _bench.print_facts("jax", "numpy")
    columns = ("first", "seconds", "opened", "megabytes")
    rows = [[name, *(each[key] for key in columns)] for name, each in found.items()]
    if rows:
        _bench.table(["set", "first start [s]", "to the first step [s]", "opened [s]", "peak memory [MB]"], rows)
    if epoch:
        what = f"{options.photographs:,} photographs, `ulimit -v {options.address_space}`"
        _bench.table(["set", "an epoch [s]", "peak memory [MB]"], [[what, epoch["seconds"], epoch["megabytes"]]])


def measure(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Of each set: seconds to the first step when it is new and, as a median, when it is known; seconds until it is
    opened beyond imports; megabytes."""
    pairs = list(sets(options, folder))
    ways = {name: words for pair in pairs for name, words in pair.items()}
    made: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for turn in range(options.turns + 1):
        for number, (name, words) in enumerate(ways.items()):
            made[name].append(train(folder, words, f"{number}-{turn}"))
    opened = {name: opening(folder, pair, name, options.turns) for pair in pairs for name in pair}
    return {
        name: {
            "first": runs[0]["seconds"],
            "seconds": statistics.median(run["seconds"] for run in runs[1:] or runs),
            "opened": opened[name],
            "megabytes": max(run["megabytes"] for run in runs),
        }
        for name, runs in made.items()
    }


def sets(options: argparse.Namespace, folder: Path) -> Any:
    """Pairs of a small and a large set: name -> what trains on it."""
    if options.gigabytes:
        pair = {}
        for name, size in (("tokens, 200 KB", 200_000), (f"tokens, {options.gigabytes:g} GB", options.gigabytes * 1e9)):
            file = folder / f"{int(size)}.bin"
            with file.open("wb") as stream:
                stream.truncate(2 * int(size / 2))
            pair[name] = [*TOKENS, f"data.path={file}"]
        yield pair
    if options.pictures:
        yield {
            f"pictures, {count:,} files": [*PICTURES, f"data.path={write_pictures(folder / str(count), count)}"]
            for count in (200, options.pictures)
        }
    if options.prepared:
        counts = {"200 pictures": 200, f"{options.prepared:g} GB": round(options.prepared * 1e9 / (SIDE * SIDE * 3))}
        yield {
            f"prepared, {name}": [*PREPARED, f"data.path={write_photographs(folder / f'decoded-{count}', count)}"]
            for name, count in counts.items()
        }


def write_pictures(folder: Path, count: int) -> Path:
    """Two classes of small pictures, no two of them alike."""
    return _two_classes(folder, count, (16, 16), (16, 16), ".png", compress_level=1)


def write_photographs(folder: Path, count: int) -> Path:
    """Two classes of JPEGs of smooth shapes, 224 x 224."""
    return _two_classes(folder, count, (12, 12), (SIDE, SIDE), ".jpg", quality=95)


def _two_classes(
    folder: Path, count: int, drawn: tuple[int, int], size: tuple[int, int], suffix: str, **how: int
) -> Path:
    """Noise of so many pixels, stretched to a size, in the folders of two classes."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        image = Image.fromarray(draw.integers(0, 256, (*drawn, 3), np.uint8))
        image = image.resize(size, Image.Resampling.BILINEAR)  # the same pixels where it is as large
        image.save(folder / "ab"[number % 2] / f"{number:07}{suffix}", **how)
    return folder


def train(folder: Path, words: list[str], run: str, limit: str = "") -> dict[str, float]:
    """Seconds to the first step and megabytes of a process of its own, begun by a shell that first runs `limit`."""
    command = [sys.executable, "-c", TRAIN, "train", *words, "--run-dir", str(folder / "runs" / run), "--quiet"]
    return in_a_process(folder, ["sh", "-c", f'{limit or ":"}; exec "$@"', "sh", *command])


def opening(folder: Path, pair: dict[str, list[str]], name: str, turns: int) -> float:
    """Seconds until a set that is prepared is open, after another one, with which everything was imported."""
    given = json.dumps([*(words for other, words in pair.items() if other != name), pair[name]])
    command = [sys.executable, "-c", OPEN, given]
    return statistics.median(in_a_process(folder, command)["seconds"] for _ in range(turns))


def train_on_photographs(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """An epoch, its evaluations included, in a process that may not have more address space."""
    words = [*PHOTOGRAPHS, *EPOCH, f"data.path={write_photographs(folder / 'photographs', options.photographs)}"]
    words.append("data.decoding=stream")
    found = train(folder, words, "photographs", f"ulimit -v {options.address_space}")
    summary = json.loads((folder / "runs" / "photographs" / "summary.json").read_text())
    return {"seconds": summary["timings"]["wall"], "megabytes": found["megabytes"]}


def in_a_process(folder: Path, command: list[str]) -> dict[str, float]:
    environment = {**os.environ, "BIGCTL_CACHE_DIR": str(folder / "cache")}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
