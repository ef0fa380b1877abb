"""Checkpoints: how long a save holds up training, when it is committed, and how long restoring takes.

A save returns once the state is copied; Orbax writes and a thread hashes after that. The yardsticks are one copy of all
arrays in memory, and `numpy.savez` to the same disk. An update of all arrays in place, as training makes it, is timed
before the save and right after it; what is restored must be the state before that update. Restoring is preceded by
verifying every file's sha256.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _bench
import numpy as np

EXAMPLES = """\
examples:
  python scripts/bench_checkpoint.py
  python scripts/bench_checkpoint.py --megabytes 5 50 --folder /mnt/fast
"""

LEAVES = 24
COLUMNS = {
    "copy": "np.copy",
    "savez": "np.savez",
    "blocks": "save blocks",
    "step": "update",
    "during": "update in save",
    "commit": "save committed",
    "verify": "verify",
    "restore": "restore",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=float, nargs="+", default=[5, 50, 300], help="sizes of the state [MB]")
    parser.add_argument("--rounds", type=int, default=5, help="saves of each size (default %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's temporary folder")
    _bench.add_patience(parser)
    options = parser.parse_args()

    from bigctl.parallel import host_memory

    host_memory.keep_memory()
    _bench.print_facts("bigctl", "jax", "orbax-checkpoint", "numpy")
    rows, ratios = [], []
    for megabytes in options.megabytes:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            samples = _measure(megabytes, options, Path(folder))
        median = {name: statistics.median(values) for name, values in samples.items()}
        size = f"{megabytes:g} MB"
        rows.append([size, *(1e3 * median[name] for name in COLUMNS)])
        rows.append(["  minimum", *(1e3 * min(samples[name]) for name in COLUMNS)])
        rows.append(["  spread %", *(100 * _bench.spread(samples[name]) for name in COLUMNS)])
        ratios.append([size, *(_bench.ratio(samples, *pair)[i] for pair in _PAIRS for i in (0, 1))])
    _bench.table(["ms", *COLUMNS.values()], rows)
    header = [f"{over}/{under}, {kind}" for over, under in _PAIRS for kind in ("medians", "minima")]
    _bench.table(["ratio", *header], ratios)


_PAIRS = (("blocks", "copy"), ("commit", "savez"))


def _measure(megabytes: float, options: argparse.Namespace, folder: Path) -> _bench.Samples:
    import jax

    from bigctl.training.checkpoints.arrays import shapes
    from bigctl.training.checkpoints.store import Checkpoints
    from bigctl.training.state import Progress

    rng = np.random.default_rng(0)
    count = max(1, int(megabytes * 1e6 / 4 / LEAVES))
    state = {f"layer_{i:02}": jax.device_put(rng.standard_normal(count, dtype=np.float32)) for i in range(LEAVES)}
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), state)
    plain = {name: np.array(leaf) for name, leaf in state.items()}
    update = jax.jit(lambda tree: jax.tree.map(lambda x: x * 1.0001, tree), donate_argnums=0)
    checkpoints = Checkpoints(folder / "checkpoints", keep=1, best=False)
    meta = {"shapes": shapes(state), "data": "synthetic"}
    measured: _bench.Samples = {name: [] for name in COLUMNS if name not in ("copy", "savez", "blocks")}
    step = 0

    def copy() -> None:
        for leaf in plain.values():
            np.copy(leaf)

    def savez() -> None:
        np.savez(folder / "plain.npz", **plain)  # type: ignore[arg-type]

    def train() -> None:
        nonlocal state
        state = jax.block_until_ready(update(state))

    def save() -> float:
        """Save, overwrite the state at once as the next step does, and restore what was saved."""
        nonlocal step
        step += 1
        measured["step"].append(min(_bench.seconds(train) for _ in range(3)))
        expected = {name: np.array(leaf) for name, leaf in state.items()}
        blocks = _bench.seconds(lambda: checkpoints.save(state, Progress(step=step), meta))
        measured["during"].append(_bench.seconds(train))
        waiting = _bench.seconds(checkpoints.wait)
        measured["commit"].append(blocks + measured["during"][-1] + waiting)
        found: list[Any] = []
        measured["verify"].append(_bench.seconds(lambda: found.append(checkpoints.find("last"))))
        restored: list[Any] = []
        work = lambda: restored.append(jax.block_until_ready(checkpoints.restore(found[0], abstract)))  # noqa: E731
        measured["restore"].append(_bench.seconds(work))
        if not all(np.array_equal(restored[0][name], leaf) for name, leaf in expected.items()):
            raise SystemExit("bench_checkpoint: what was restored is not what was saved")
        return blocks

    blocks: dict[str, Callable[[], float]] = {
        "copy": lambda: _bench.seconds(copy),
        "savez": lambda: _bench.seconds(savez),
        "blocks": save,
    }
    print(f"{megabytes:g} MB: ", end="", flush=True)
    samples = _bench.interleave(blocks, options.rounds, patience=options.patience)
    checkpoints.close()
    shutil.rmtree(folder / "checkpoints")
    return {**samples, **{name: values[-options.rounds :] for name, values in measured.items()}}


if __name__ == "__main__":
    main()
