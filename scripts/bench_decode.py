"""Pictures decoded while training: how fast a feed of random parts is, and how much memory a large folder takes.

Photographs of 500 x 375 pixels are made, of smooth shapes with some grain, and trained on in random parts of 224 x 224
(`recipe.augment.random_resized_crop=0.08`). Compared with it, in turn on the same files: plain Pillow on one thread
(open, crop, resize, array), twice which is what two threads can reach; and torch's DataLoader with two workers and
torchvision's RandomResizedCrop, where these are installed. Nothing is trained while the feed is measured: batches of
64 are made and dropped.

CPU time tells more than the clock on a machine that others use. memory: the largest resident size of a process that
makes the index of 5,000 such pictures and the batches of an epoch, jax included, and no network.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import _bench
import numpy as np

EXAMPLES = """\
examples:
  python scripts/bench_decode.py
  python scripts/bench_decode.py --pictures 400 --rounds 3 --without-memory
"""

FED = """
import json, resource, sys
import jax, bigctl
from functools import partial
from bigctl.engine import resolve
from bigctl.training.prefetch import prefetched
dataset = resolve.prepare_data(bigctl.compose(sys.argv[1:]))
layout, columns = dataset.batches, dataset.splits["train"]
plan = layout.training_plan(columns, batch_size=64, seed=0)
places = range(0, dataset.size("train"), 64)
for batch in prefetched(partial(layout.gather, columns, *plan.batch(place)) for place in places):
    jax.block_until_ready(jax.device_put(batch))
print("RESULT " + json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
"""
BATCH, SIZE, THREADS = 64, 224, 2


def make(folder: Path, count: int) -> None:
    """So many JPEGs in two class folders, half of them of portrait format."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(count):
        shape = (500, 375) if number % 2 else (375, 500)
        smooth = Image.fromarray(rng.integers(0, 256, (9, 12, 3)).astype(np.uint8)).resize(
            shape, Image.Resampling.BICUBIC
        )
        grain = np.asarray(smooth, np.int16) + rng.normal(0, 6, (*shape[::-1], 1)).astype(np.int16)
        file = folder / "ab"[number // 2 % 2] / f"{number:05}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(file, quality=90)


def keys(folder: Path) -> list[str]:
    data = ["data=image_folder", f"data.path={folder}", f"data.image_size=[{SIZE},{SIZE}]", "data.resize=crop"]
    return ["recipe=cnn_cls", *data, "recipe.augment.random_resized_crop=0.08", f"data.decoding_threads={THREADS}"]


def ours(folder: Path, count: int) -> Callable[[], float]:
    """Pictures a second of batches as training gets them."""
    import bigctl
    from bigctl.engine import resolve
    from bigctl.training.prefetch import prefetched

    config = bigctl.compose(keys(folder))
    dataset = resolve.prepare_data(config)
    layout, columns = dataset.batches, dataset.splits["train"]
    plan = layout.training_plan(columns, batch_size=BATCH, seed=0)

    def block() -> float:
        places = range(0, count, BATCH)
        work = (partial(layout.gather, columns, *plan.batch(place)) for place in places)
        began = time.perf_counter()
        for batch in prefetched(work):
            assert batch["inputs"].shape == (BATCH, SIZE, SIZE, 3)
        return count / (time.perf_counter() - began)

    return block


def pillow(files: list[Path]) -> Callable[[], float]:
    """Pictures a second of one thread that does no more than it has to."""
    from PIL import Image

    def block() -> float:
        drawn = random.Random(0)
        began = time.perf_counter()
        for file in files:
            with Image.open(file) as image:
                box = part(image.width, image.height, drawn)
                small = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR, box)
            assert np.asarray(small).shape == (SIZE, SIZE, 3)
        return len(files) / (time.perf_counter() - began)

    return block


def part(width: int, height: int, drawn: random.Random) -> tuple[int, int, int, int]:
    while True:
        area, shape = width * height * drawn.uniform(0.08, 1), math.exp(drawn.uniform(-1, 1) * math.log(4 / 3))
        columns, rows = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if columns <= width and rows <= height:
            left, top = drawn.randint(0, width - columns), drawn.randint(0, height - rows)
            return left, top, left + columns, top + rows


def torch_loader(folder: Path) -> Callable[[], float]:
    """Pictures a second of torch's DataLoader, from its second batch on: its workers are processes that begin first."""
    import torch
    from torchvision import datasets
    from torchvision.transforms import v2

    data = datasets.ImageFolder(str(folder), v2.Compose([v2.RandomResizedCrop(SIZE), v2.PILToTensor()]))

    def block() -> float:
        loader = torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=THREADS, drop_last=True)
        batches: Iterator[Any] = iter(loader)
        next(batches)
        began, count = time.perf_counter(), 0
        for pictures, _ in batches:
            count += len(pictures)
        return count / (time.perf_counter() - began)

    return block


def speed(folder: Path, rounds: int, patience: float) -> None:
    files = sorted(folder.rglob("*.jpg"))
    count = len(files) // BATCH * BATCH
    candidates = {"this": ours(folder, count), "Pillow, one thread": pillow(files[:count])}
    try:
        candidates["torch DataLoader"] = torch_loader(folder)
    except (ImportError, RuntimeError) as error:  # builds of the two may not fit each other
        print(f"torch and torchvision are not compared with: {error}")
    spent: dict[str, list[float]] = {name: [] for name in candidates}
    blocks = {name: partial(_timed, block, spent[name]) for name, block in candidates.items()}
    samples = _bench.interleave(blocks, rounds, patience=patience)
    rows = [[name, float(np.median(all)), max(all), 1e3 * min(spent[name]) / count] for name, all in samples.items()]
    _bench.table(["", "pictures a second: median", "best", "least ms of CPU each"], rows)
    print(target("this over twice Pillow", *_bench.ratio(samples, "this", "Pillow, one thread"), scale=0.5, least=0.85))
    if "torch DataLoader" in samples:
        print(target("this over torch", *_bench.ratio(samples, "this", "torch DataLoader"), scale=1.0, least=1.2))


def _timed(block: Callable[[], float], spent: list[float]) -> float:
    """What a block measures; the CPU time that it and its processes took goes to `spent`."""
    began = sum(os.times()[:4])
    found = block()
    spent.append(sum(os.times()[:4]) - began)
    return found


def target(name: str, medians: float, minima: float, within: float, *, scale: float, least: float) -> str:
    met = "met" if scale * medians >= least else "MISSED"
    return f"{name}: {scale * medians:.2f} by medians, {scale * within:.2f} in a round, target {least:g}: {met}"


def memory(folder: Path) -> None:
    """The peak of a process that reads many pictures, which are links to those that were made."""
    files = sorted(folder.rglob("*.jpg"))
    many = folder.parent / "many"
    for number, file in zip(range(5000), itertools.cycle(files), strict=False):
        link = many / "ab"[number % 2] / f"{number:05}.jpg"
        link.parent.mkdir(parents=True, exist_ok=True)
        os.link(file, link)
    command = [sys.executable, "-c", FED, *keys(many)]
    with tempfile.TemporaryDirectory() as place:
        done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found = json.loads(done.stdout.rpartition("RESULT ")[2])
    print(_bench.verdict("5,000 pictures of 224 x 224, largest resident size", found / 1024, 1.0, " GiB"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=1200, help="how many are made (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="blocks of each (default %(default)s)")
    parser.add_argument("--without-memory", action="store_true", help="leave out the 5,000 pictures")
    _bench.add_patience(parser)
    options = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    _bench.print_facts("pillow", "numpy", "torch", "torchvision")
    with tempfile.TemporaryDirectory() as place:
        os.environ["BIGCTL_CACHE_DIR"] = str(Path(place, "cache"))
        make(folder := Path(place, "photographs"), options.pictures)
        speed(folder, options.rounds, options.patience)
        if not options.without_memory:
            memory(folder)


if __name__ == "__main__":
    main()
