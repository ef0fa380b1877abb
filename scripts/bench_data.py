"""How quickly batches are drawn: indices alone, and whole batches sent to the step, against torch's DataLoader.

MNIST-shaped images in a memory-mapped file. bigctl's thread gathers each batch and puts it on the device; torch gathers
it into a tensor. The first passes over the file, which fill the page cache, are not counted.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import _bench
import numpy as np

EXAMPLES = """\
examples:
  python scripts/bench_data.py
  python scripts/bench_data.py --batch-size 512 --examples 1000000
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=60_000, help="size of the data set (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=128, help="default %(default)s")
    parser.add_argument("--batches", type=int, default=400, help="batches of a block (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=8, help="blocks of each candidate (default %(default)s)")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 2], help="processes of torch's DataLoader")
    _bench.add_patience(parser)
    options = parser.parse_args()

    from bigctl.parallel import host_memory

    host_memory.keep_memory()
    _bench.print_facts("bigctl", "jax", "numpy", "torch")
    with tempfile.TemporaryDirectory() as folder:
        columns = _columns(options.examples, Path(folder))
        candidates = _torch(columns, options) if importlib.util.find_spec("torch") else {}
        if not candidates:
            print("torch is not installed and is left out")
        candidates = {**candidates, **_plan(options), **_feed(columns, options)}
        samples = _bench.interleave(candidates, options.rounds, patience=options.patience)
    rows = []
    for name, values in samples.items():
        median, least = statistics.median(values), min(values)
        ratios = _bench.ratio(samples, name, "SentFeed")
        cells = [1e6 * median, 1e6 * least, 100 * _bench.spread(values), 1 / median, options.batch_size / median]
        rows.append([name, *cells, *ratios])
    header = ["batches", "median us", "min us", "spread %", "batches/s", "examples/s"]
    _bench.table([*header, "this/SentFeed: medians", "minima", "in a round"], rows)


def _columns(examples: int, folder: Path) -> dict[str, np.ndarray]:
    made = _bench.synthetic("image", examples).splits["train"]
    for name, values in made.items():
        np.save(folder / f"{name}.npy", values)
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in made}


def _plan(options: argparse.Namespace) -> dict[str, Callable[[], float]]:
    """Indices only: one batch a call, and many at once as the feeds ask for them."""
    from bigctl.data.sampler import BatchPlan

    plan = BatchPlan(options.examples, seed=0)
    size, ahead = options.batch_size, max(1, 2**14 // options.batch_size)

    def draw(batches: int) -> float:
        calls = max(1, options.batches // batches)

        def work() -> None:
            for call in range(calls):
                plan.indices(call * batches * size, batches * size)

        return _bench.seconds(work) / (calls * batches)

    return {"BatchPlan, a batch a call": lambda: draw(1), f"BatchPlan, {ahead} batches a call": lambda: draw(ahead)}


def _feed(columns: dict[str, np.ndarray], options: argparse.Namespace) -> dict[str, Callable[[], float]]:
    """SentFeed, with a step that takes the batch and gives its labels back."""
    import jax

    import bigctl
    from bigctl.data.layouts.layout import FixedPlan
    from bigctl.data.layouts.rows import Rows
    from bigctl.data.sampler import BatchPlan
    from bigctl.parallel import mesh as meshes
    from bigctl.training.feed import SentFeed

    config = bigctl.compose(["recipe=cnn_cls", f"train.batch_size={options.batch_size}"])
    # SentFeed needs no more of the programs than this.
    programs: Any = SimpleNamespace(
        mesh=meshes.make_mesh(config.mesh),
        hparams={},
        step_sent=jax.jit(lambda state, batch, hparams: batch["label"]),
    )
    plan = FixedPlan(BatchPlan(options.examples, seed=0), options.batch_size)

    def work() -> None:
        feed = SentFeed(programs, Rows(), columns, plan, config)
        try:
            for step in range(options.batches):
                jax.block_until_ready(feed.advance(None, step * options.batch_size, 1)[0])  # type: ignore[arg-type]
        finally:
            feed.close()

    def block() -> float:
        return _bench.seconds(work) / options.batches

    return {"SentFeed": block}


def _torch(columns: dict[str, np.ndarray], options: argparse.Namespace) -> dict[str, Callable[[], float]]:
    """The usual DataLoader over a TensorDataset, and one that takes a batch's indices at once."""
    import torch
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

    dataset = TensorDataset(*(torch.from_numpy(np.array(values)) for values in columns.values()))

    def endless(loader: Any) -> Iterator[Any]:
        while True:
            yield from loader

    def block_of(loader: Any) -> Callable[[], float]:
        batches = endless(loader)
        next(batches)  # starts the workers now, before there are threads of jax, which a fork does not survive

        def work() -> None:
            for _ in range(options.batches):
                next(batches)

        return lambda: _bench.seconds(work) / options.batches

    candidates = {}
    for workers in options.workers:
        keep: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
        loader = DataLoader(dataset, batch_size=options.batch_size, shuffle=True, drop_last=True, **keep)
        candidates[f"torch DataLoader, {workers} workers"] = block_of(loader)
    whole = BatchSampler(RandomSampler(dataset), options.batch_size, drop_last=True)
    candidates["torch DataLoader, whole batches"] = block_of(DataLoader(dataset, sampler=whole, batch_size=None))
    return candidates


if __name__ == "__main__":
    main()
