"""A private training step against a plain one, and against Opacus on the same network: time of the processor.

bigctl runs what `bigctl train recipe=cnn_cls train.privacy.noise=1` runs: a batch drawn by Poisson's rule out of the
resident images, per-example gradients in microbatches, clipping, noise, metrics. Opacus (an installation with torch and
opacus) is handed finished batches of exactly the expected size, and keeps no metrics. All in one process, blocks of
steps in turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import _bench
import numpy as np

NETWORK = ("model.channels=[16,32]", "model.kernel_size=5", "model.hidden=[128]", "model.dropout=0")
PLAIN = ("recipe=cnn_cls", *NETWORK, "recipe.augment.rotate=0", "recipe.augment.scale=0", "recipe.augment.shift=0")
PRIVATE = ("train.privacy.noise=1", "train.privacy.clip=0.1")
COMMON = ("train.steps=1000000", "train.ema=0", "optimizer=sgd", "optimizer.lr=0.001")
EXAMPLES = 8000

Block = Callable[[int], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=512, help="expected, default %(default)s")
    parser.add_argument("--rounds", type=int, default=8, help="blocks of each candidate (default %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="steps of a block (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="cores for both (default %(default)s)")
    _bench.add_patience(parser)
    options = parser.parse_args()
    _bench.pin(options.threads)
    _bench.print_facts("bigctl", "jax", "torch", "opacus")
    blocks = {**_bigctl(options.batch_size), "opacus": _opacus(options.batch_size, options.threads)}
    spent: dict[str, list[float]] = {name: [] for name in blocks}
    for block in blocks.values():
        block(2)

    def measured(name: str, block: Block) -> Callable[[], float]:
        def measure() -> float:
            wall, processor = time.perf_counter(), time.process_time()
            block(options.steps)
            spent[name].append((time.process_time() - processor) / options.steps)
            return (time.perf_counter() - wall) / options.steps

        return measure

    walls = _bench.interleave(
        {name: measured(name, block) for name, block in blocks.items()}, options.rounds, patience=options.patience
    )
    for what, samples in (("wall", walls), ("processor", spent)):
        rows = [
            [name, 1e3 * statistics.median(each), 1e3 * min(each), *_bench.ratio(samples, name, "bigctl, private")]
            for name, each in samples.items()
        ]
        _bench.table([f"ms/step, {what}", "median", "min", "this/private: medians", "minima", "in a round"], rows)


def _bigctl(batch_size: int) -> dict[str, Block]:
    from bigctl.parallel import host_memory

    host_memory.keep_memory()  # before jax, as `bigctl train` does
    dataset = _bench.synthetic("image", EXAMPLES)
    chosen = [*PLAIN, *COMMON, f"train.batch_size={batch_size}"]
    return {
        "bigctl, plain": _bench.stepper(_bench.experiment(chosen, dataset)),
        "bigctl, private": _bench.stepper(_bench.experiment([*chosen, *PRIVATE], dataset)),
    }


def _opacus(batch_size: int, threads: int) -> Block:
    import torch
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")  # of hooks, which torch means to rename
    columns = _bench.synthetic("image", EXAMPLES).splits["train"]
    images = torch.from_numpy(columns["inputs"].astype(np.float32) / 255 - 0.5).permute(0, 3, 1, 2).contiguous()
    batches = list(zip(images.split(batch_size), torch.from_numpy(columns["label"].astype(np.int64)).split(batch_size)))  # noqa: B905
    net = torch.nn.Sequential(
        *(torch.nn.Conv2d(1, 16, 5), torch.nn.MaxPool2d(2), torch.nn.ReLU()),
        *(torch.nn.Conv2d(16, 32, 5), torch.nn.MaxPool2d(2), torch.nn.ReLU()),
        *(torch.nn.Flatten(), torch.nn.Linear(32 * 4 * 4, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)),
    )
    model = GradSampleModule(net)
    optimizer = DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=1e-3),
        noise_multiplier=1.0,
        max_grad_norm=0.1,
        expected_batch_size=batch_size,
    )

    def train(steps: int) -> None:
        for step in range(steps):
            x, y = batches[step % (len(batches) - 1)]
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()

    return train


if __name__ == "__main__":
    main()
