"""What a loop over like layers costs and saves: seconds of the processor to compile a step of a language model, its
temporary memory and its time, for layers written out and in a loop (`model.scan`), by their number and by what is kept
for the backward pass (`model.remat`).

A step is timed by the clock, the least of many, in blocks that take turns.
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
  python scripts/bench_layers.py
  python scripts/bench_layers.py --layers 12 --how loop --remat none full --keys model.width=128 train.batch_size=2
"""
HOW = WRITTEN, LOOP = "written", "loop"
KEYS = (
    "recipe=gpt_lm", "model=gpt", "model.heads=4", "model.width=256", "model.context=128", "recipe.block=128",
    "optimizer=adamw", "data=tokens", "recipe.tokenizer.type=bytes", "train.batch_size=8", "train.steps=1000",
    "mesh=single",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, nargs="+", default=[12, 48], help="numbers of layers (default 12 48)")
    parser.add_argument("--how", nargs="+", choices=HOW, default=HOW, help="one or both of %(choices)s (default both)")
    parser.add_argument("--remat", nargs="+", default=["none"], help="values of model.remat (default none)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is timed; 0 for no steps (default 5)")
    parser.add_argument("--keys", nargs="*", default=[], metavar="KEY=VALUE", help="that change the experiment")
    _bench.add_patience(parser)
    options = parser.parse_args()
    _bench.print_facts("jax", "flax", "optax")
    rows, blocks = [], dict[str, Callable[[], float]]()
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "tokens.bin"
        _bytes().tofile(file)
        for layers in options.layers:
            for how in options.how:
                for remat in options.remat:
                    keys = [f"model.layers={layers}", f"model.scan={how == LOOP}", f"model.remat={remat}"]
                    keys, name = [*keys, *options.keys], f"{layers} {how} {remat}"
                    seconds, mebibytes, block = _compiled([*KEYS, f"data.path={file}", *keys], timed=options.rounds > 0)
                    rows.append([name, seconds, mebibytes])
                    blocks[name] = block
    if options.rounds:
        taken = _bench.interleave(blocks, options.rounds, patience=options.patience)
        rows = [[*row, 1e3 * min(taken[row[0]])] for row in rows]
    _bench.table(("layers", "compile [CPU s]", "temporaries [MiB]", "step [ms]")[: len(rows[0])], rows)


def _bytes() -> Any:
    import numpy as np

    return np.random.default_rng(0).integers(0, 256, 100_000).astype("<u2")


def _compiled(keys: list[str], *, timed: bool) -> tuple[float, float, Callable[[], float]]:
    """Seconds to trace and compile a step, MiB of its temporaries, and a function that takes a step and gives its
    seconds."""
    import jax
    import numpy as np

    import bigctl
    from bigctl.engine import experiment as experiments
    from bigctl.engine import plan as planning

    experiment = experiments.build(bigctl.compose(keys))
    start = time.process_time()
    _, compiled, shapes = planning.compiled_step(experiment)
    seconds = time.process_time() - start
    memory = compiled.memory_analysis()
    assert memory is not None
    rng = np.random.default_rng(0)
    batch = jax.tree.map(
        lambda leaf: jax.device_put(rng.integers(0, 256, leaf.shape).astype(leaf.dtype), leaf.sharding), shapes
    )
    at = {"state": experiment.programs.initialise() if timed else None}

    def step() -> float:
        start = time.perf_counter()
        at["state"] = jax.block_until_ready(compiled(at["state"], batch, experiment.programs.hparams))
        return time.perf_counter() - start

    return seconds, memory.temp_size_in_bytes / 2**20, step


if __name__ == "__main__":
    main()
