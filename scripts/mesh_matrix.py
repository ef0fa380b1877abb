"""Is a step the same on every mesh? Loss and gradients of a small Llama with experts on simulated devices, against
those of one device, for every set of the axes data, fsdp, tensor, context and expert; as a table in Markdown.

One axis lies over 8 devices, two over 4 x 2, three over 2 x 2 x 2, four over 16 and all five over 32; with --more also
two over 4 x 4 and 8 x 4, three over 4 x 2 x 2 and 4 x 4 x 2, and four over 4 x 2 x 2 x 2. Each plain, with
`train.accumulate=2`, `model.remat=full`, `model.scan=true`, and with all of these. A figure is the larger of: the
difference of the loss by its value, and for each parameter the largest difference of its gradient by the largest
gradient in it. Experts are dropless, documents are packed, there is dropout.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

AXES = ("data", "fsdp", "tensor", "context", "expert")
LIMIT = 1e-5
AT_ONCE = 5
"""Meshes of one process, which are compared with the same computation on one device."""
MODEL = [
    "recipe=gpt_lm", "model=llama", "model.layers=2", "model.width=32", "model.heads=8", "model.kv_heads=8",
    "model.intermediate=32", "model.context=16", "model.dropout=0.1", "model.zero_init=false", "model.experts=8",
    "model.load_balance_loss=0.1", "recipe.tokenizer.type=bytes", "recipe.loss_chunk=5", "recipe.packing=documents",
    "recipe.end_token=10", "optimizer=adamw", "train.batch_size=16", "train.steps=5", "mesh=single", "mesh.min_shard=1",
]  # fmt: skip
WAYS = {
    "plain": [],
    "accumulate": ["train.accumulate=2"],
    "remat": ["model.remat=full"],
    "scan": ["model.scan=true"],
    "all": ["train.accumulate=2", "model.remat=full", "model.scan=true"],
}
EXAMPLES = """\
examples:
  python scripts/mesh_matrix.py
  python scripts/mesh_matrix.py --more --report matrix.json
  python scripts/mesh_matrix.py --devices 32 --ways plain all
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=int, nargs="+", default=[8, 16, 32], help="(default %(default)s)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="columns (default all)")
    parser.add_argument(
        "--more", action="store_true", help="also meshes with axes of unequal sizes on 16 and 32 devices"
    )
    parser.add_argument("--report", type=Path, help="all figures, as JSON")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(compared(**json.loads(options.child))))
        return 0
    found: dict[str, dict[str, float]] = {}
    clock = time.monotonic()
    for count in options.devices:
        for chosen in batched(meshes(count, more=options.more)):
            found |= in_process(count, chosen, options.ways)
            print(f"{time.monotonic() - clock:6.0f} s  {len(found)} meshes", file=sys.stderr, flush=True)
    if options.report:
        options.report.write_text(json.dumps(found, indent=1))
    print(table(found, options.ways))
    worst = max(value for row in found.values() for value in row.values())
    print(f"\n{sum(map(len, found.values()))} comparisons, the largest {worst:.1e}, held to {LIMIT:.0e}")
    return 0 if worst <= LIMIT else 1


def meshes(count: int, *, more: bool = False) -> list[str]:
    """Meshes of so many devices, such as "data=4 fsdp=2"."""
    usual = {8: [(8,), (4, 2), (2, 2, 2)], 16: [(2, 2, 2, 2)], 32: [(2, 2, 2, 2, 2)]}
    unequal = {16: [(4, 4), (4, 2, 2)], 32: [(8, 4), (4, 4, 2), (4, 2, 2, 2)]}
    shapes = [*usual.get(count, []), *(unequal.get(count, []) if more else [])]
    return [
        " ".join(f"{axis}={size}" for axis, size in zip(axes, sizes, strict=True))
        for sizes in shapes
        for axes in itertools.combinations(AXES, len(sizes))
    ]


def batched(chosen: Sequence[str]) -> Iterator[Sequence[str]]:
    return (chosen[start : start + AT_ONCE] for start in range(0, len(chosen), AT_ONCE))


def in_process(count: int, chosen: Sequence[str], ways: Sequence[str]) -> dict[str, dict[str, float]]:
    """What `compared` gives on so many simulated devices."""
    quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    flags = f"--xla_force_host_platform_device_count={count} {quick}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    given = json.dumps({"chosen": list(chosen), "ways": list(ways)})
    done = subprocess.run(
        [sys.executable, __file__, "--child", given], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{count} devices, {', '.join(chosen)}:\n{done.stderr[-3000:]}")
    result: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return result


def compared(chosen: Sequence[str], ways: Sequence[str]) -> dict[str, dict[str, float]]:
    """For each mesh and way of computing the largest difference from one device."""
    found: dict[str, dict[str, float]] = {mesh: {} for mesh in chosen}
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text("".join(f"{i} bottles of beer, {i * 7 % 10} of them cold.\n" for i in range(200)))
        for way in ways:
            overrides = [*MODEL, *WAYS[way], "data=text", f"data.path={text}"]
            alone = loss_and_gradients(overrides)
            for mesh in chosen:
                shared = loss_and_gradients([*overrides, *(f"mesh.{size}" for size in mesh.split())])
                found[mesh][way] = difference(alone, shared)
    return found


def loss_and_gradients(overrides: Sequence[str]):
    """Of the first batch and the initial parameters, by path."""
    import jax
    import numpy as np

    import bigctl
    from bigctl.engine import experiment
    from bigctl.parallel import mesh as placing
    from bigctl.training.checkpoints.arrays import flatten
    from bigctl.training.step import add_places

    exp = experiment.build(bigctl.compose(list(overrides)))
    programs, size = exp.programs, exp.config.train.batch_size
    sizes = {name: n for name, n in exp.config.mesh.axes.items() if n > 1}
    assert programs.mesh.size == math.prod(sizes.values()), sizes
    state, layout, columns = programs.initialise(), exp.dataset.batches, exp.dataset.splits["train"]
    indices, length = layout.training_plan(columns, batch_size=size, seed=exp.config.seed).batch(0)
    where = placing.batch_sharding(programs.mesh)
    batch = jax.device_put(layout.gather(columns, indices, length, np), where)

    def gradients(params, variables, batch, hparams):
        return programs.step._compute_gradients(params, variables, add_places(batch, size), np.int32(0), hparams)

    grads, _, sums = jax.jit(gradients)(state.params, state.variables, batch, programs.hparams)
    total, weight = np.asarray(sums["loss"], np.float64)
    return {"loss": np.asarray(total / weight), **{path: np.asarray(value) for path, value in flatten(grads).items()}}


def difference(alone, shared) -> float:
    assert alone.keys() == shared.keys() and len(alone) > 5
    return max(float(abs(shared[path] - value).max() / abs(value).max()) for path, value in alone.items())


def table(found: dict[str, dict[str, float]], ways: Sequence[str]) -> str:
    rows = [f"| {mesh} | " + " | ".join(f"{row[way]:.1e}" for way in ways) + " |" for mesh, row in found.items()]
    return "\n".join([f"| mesh | {' | '.join(ways)} |", "|---|" + "---:|" * len(ways), *rows])


if __name__ == "__main__":
    sys.exit(main())
