"""Whether `bigctl plan` puts meshes in the right order: predicted against measured times of one step of a small
language model on twelve meshes of up to eight simulated devices, and Spearman's rank correlation of the two.

Simulated devices share the cores of this machine, so a step is measured by the time of the processor, the least of many
rounds: other work changes it little, and a device that waits for others costs nothing. Predicted is the middle of the
range (the geometric mean of its ends). The compiled program that is run is the one that was asked.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _bench

EXAMPLES = """\
examples:
  python scripts/bench_plan.py
  python scripts/bench_plan.py --rounds 20 --keys model.width=128 train.batch_size=16
"""
DEVICES = 8
MESHES = (
    (1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (4, 1, 1), (1, 4, 1),
    (8, 1, 1), (1, 8, 1), (2, 4, 1), (4, 1, 2), (2, 2, 2), (1, 2, 4),
)  # fmt: skip
"""Devices along data, fsdp and tensor."""
KEYS = (
    "recipe=gpt_lm", "model.heads=8", "model.width=256", "optimizer=adamw", "data=tokens",
    "recipe.tokenizer.type=bytes", "train.batch_size=8", "train.steps=1000",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10, help="how often each mesh is measured (default %(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="of a round (default %(default)s)")
    parser.add_argument("--keys", nargs="*", default=[], metavar="KEY=VALUE", help="that change the experiment")
    _bench.add_patience(parser)
    options = parser.parse_args()
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    _bench.print_facts("jax", "flax", "optax")
    with tempfile.TemporaryDirectory() as scratch:
        keys = [*KEYS, f"data.path={_tokens(Path(scratch))}", *options.keys]
        from bigctl.engine import plan as planning

        target = planning.target_of(f"cpu:{DEVICES}")  # once: what this machine does is tried anew each time
        built = {_name(mesh): _built(mesh, keys, target) for mesh in MESHES}
    blocks = {name: _block(step, options.steps) for name, (step, _) in built.items()}
    samples = _bench.interleave(blocks, options.rounds, patience=options.patience)
    predicted = {name: math.sqrt(plan.time.low * plan.time.high) for name, (_, plan) in built.items()}
    measured = {name: min(taken) / options.steps for name, taken in samples.items()}
    rows = [
        [name, 1e3 * predicted[name], 1e3 * measured[name], built[name][1].time.binds]
        for name in sorted(predicted, key=lambda name: predicted[name])
    ]
    _bench.table(("mesh", "predicted [ms]", "measured [ms]", "bound by"), rows)
    from scipy.stats import spearmanr

    found = spearmanr([predicted[name] for name in built], [measured[name] for name in built]).statistic
    print(f"Spearman's rank correlation over {len(built)} meshes: {found:.3f}")


def _name(mesh: tuple[int, int, int]) -> str:
    return " ".join(f"{axis} {n}" for axis, n in zip(("data", "fsdp", "tensor"), mesh, strict=True))


def _tokens(folder: Path) -> Path:
    """A file of tokens, for there has to be one; what they are changes no time."""
    import numpy as np

    file = folder / "tokens.bin"
    np.random.default_rng(0).integers(0, 256, 200_000).astype("<u2").tofile(file)
    return file


def _built(mesh: tuple[int, int, int], keys: list[str], target: Any) -> tuple[Callable[[], Any], Any]:
    """One step after another by the program that was planned, and its plan."""
    import jax
    import numpy as np

    import bigctl
    from bigctl.engine import experiment as experiments
    from bigctl.engine import plan as planning
    from bigctl.planning import devices

    axes = [f"mesh.{axis}={n}" for axis, n in zip(("data", "fsdp", "tensor"), mesh, strict=True)]
    config = bigctl.compose([*keys, *axes])
    experiment = experiments.build(config)
    traced, compiled, shapes = planning.compiled_step(experiment)
    costs = planning.of_experiment(experiment, traced, compiled, shapes, target)
    plan = planning.of_compiled(experiment, costs, target, devices.find(target))
    rng = np.random.default_rng(0)
    batch = jax.tree.map(
        lambda leaf: jax.device_put(rng.integers(0, 256, leaf.shape).astype(leaf.dtype), leaf.sharding), shapes
    )
    at = {"state": experiment.programs.initialise()}

    def step() -> Any:
        at["state"] = compiled(at["state"], batch, experiment.programs.hparams)
        return at["state"]

    return step, plan


def _block(step: Callable[[], Any], steps: int) -> Callable[[], float]:
    """A block of steps; gives its seconds of the processor."""
    import jax

    def taken() -> float:
        start = time.process_time()
        for _ in range(steps):
            state = step()
        jax.block_until_ready(state)
        return time.process_time() - start

    return taken


if __name__ == "__main__":
    main()
