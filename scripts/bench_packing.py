"""What packed documents cost here: training steps of `recipe.packing=documents` against those of windows across
documents, of the same model on the same tokens, in turns and in time of the processor; and how much of windows pads.

Documents are made up, of lengths as a log-normal distribution has them (mean as given, in bytes). A step of either has
as many places; one of documents predicts less by what pads.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _bench

EXAMPLES = """\
examples:
  python scripts/bench_packing.py
  python scripts/bench_packing.py --block 512 --mean 400 --rounds 20
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--block", type=int, default=256, help="length of a window [tokens] (default %(default)s)")
    parser.add_argument("--mean", type=int, default=200, help="length of a document [bytes] (default %(default)s)")
    parser.add_argument("--documents", type=int, default=5000, help="how many there are (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=12, help="windows a step (default %(default)s)")
    parser.add_argument("--model", default="nano", help="an option of the group `model` (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="blocks of each (default %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="of a block (default %(default)s)")
    _bench.add_patience(parser)
    options = parser.parse_args()
    _bench.print_facts("jax", "flax", "optax")
    with tempfile.TemporaryDirectory() as scratch:
        path = _documents(Path(scratch), options.documents, options.mean)
        built = {packing: _built(path, packing, options) for packing in ("windows", "documents")}
        samples = _bench.interleave(
            {name: _block(each, options.steps, options.batch_size) for name, each in built.items()},
            options.rounds,
            patience=options.patience,
        )
    facts = built["documents"].dataset.info["packing"]["train"]
    print(f"{facts['documents']:,} documents in {facts['windows']:,} windows: {facts['padding']:.3%} of the places pad")
    rows = [[name, 1e3 * sorted(taken)[len(taken) // 2] / options.steps, min(taken) * 1e3 / options.steps]
            for name, taken in samples.items()]  # fmt: skip
    _bench.table(("packing", "median [ms a step]", "least"), rows)
    medians, minima, within = _bench.ratio(samples, "documents", "windows")
    print(f"documents / windows: {medians:.3f} by medians, {minima:.3f} by minima, {within:.3f} within rounds")


def _documents(folder: Path, count: int, mean: int) -> Path:
    """Raw tokens that are bytes, with 256 at the end of each document."""
    import numpy as np

    rng = np.random.default_rng(0)
    sizes = np.maximum(1, rng.lognormal(np.log(mean) - 0.5, 1, count)).astype(int)
    file = folder / "documents.bin"
    np.concatenate([np.append(rng.integers(97, 123, size), 256) for size in sizes]).astype("<u2").tofile(file)
    return file


def _built(path: Path, packing: str, options: argparse.Namespace) -> Any:
    import bigctl
    from bigctl.engine import experiment

    keys = ["recipe=gpt_lm", f"model={options.model}", f"model.context={options.block}", "data=tokens"]
    keys += [f"data.path={path}", "recipe.tokenizer.type=bytes", f"recipe.packing={packing}", "train.steps=1000"]
    return experiment.build(bigctl.compose([*keys, f"train.batch_size={options.batch_size}"]))


def _block(built: Any, steps: int, batch_size: int) -> Callable[[], float]:
    """A block of steps from where the last one ended; gives its seconds of the processor."""
    import jax

    from bigctl.training import feed as feeds

    feed = feeds.make_feed(built.programs, built.dataset.batches, built.dataset.splits["train"], built.config)
    at = {"state": built.programs.initialise(), "position": 0}

    def train() -> None:
        done = 0
        while done < steps:
            at["state"], count = feed.advance(at["state"], at["position"], steps - done)
            done += count
            at["position"] += count * batch_size
        jax.block_until_ready(at["state"])

    def taken() -> float:
        start = time.process_time()  # which other work on the machine changes little
        train()
        return time.process_time() - start

    return taken


if __name__ == "__main__":
    main()
