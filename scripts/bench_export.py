"""How long an exported model takes for one example on CPU: onnxruntime against jax, in turns, in one process.

    python scripts/bench_export.py RUN [RUN ...] [--threads 1] [--rounds 200]

Prints for each run the median time [ms] of jax (the jitted model with its weights as arguments), of the `jax` artefact
and of the `onnx` artefact, and the ratio of the first to the last: above 1 onnxruntime is quicker.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--threads", type=int, default=1, help="of either runtime; default: 1")
    parser.add_argument("--rounds", type=int, default=200, help="calls of each; default: 200")
    options = parser.parse_args()
    if options.threads == 1:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
        os.environ["NPROC"] = "1"
    for name in options.runs:
        print(one(name, options.threads, options.rounds), flush=True)
    return 0


def one(name: str, threads: int, rounds: int) -> str:
    """A run's line of the table."""
    import jax
    import onnxruntime

    import bigctl
    from bigctl.inference.exporters import onnx_model, stablehlo
    from bigctl.inference.exporters.network import Network

    trained = bigctl.load(name)
    network = Network.of(trained)
    batch = network.batches[-1]
    with tempfile.TemporaryDirectory() as folder:
        onnx_model.write(trained, Path(folder) / "onnx")
        stablehlo.write(trained, Path(folder) / "jax")
        artefact = stablehlo.Loaded(Path(folder) / "jax")
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(Path(folder) / "onnx" / onnx_model.MODEL), settings)
        given = {each.name: batch[each.name] for each in session.get_inputs()}
        run, weights = jax.jit(network.function), jax.device_put(network.weights)
        calls: dict[str, Callable[[], object]] = {
            "jax": lambda: jax.block_until_ready(run(weights, batch)),
            "artefact": lambda: artefact(batch),
            "onnx": lambda: session.run(None, given),
        }
        times = measured(calls, rounds)
    shape = next(iter(batch.values())).shape
    told = "  ".join(f"{which} {milliseconds:.3f}" for which, milliseconds in times.items())
    return f"{name:<12} {shape!s:<18} {told}  jax / onnx {times['jax'] / times['onnx']:.2f}"


def measured(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median time of each [ms], one call of each in turn."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 5):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            if number >= 5:
                found[name].append(time.perf_counter() - begun)
    return {name: 1e3 * statistics.median(times) for name, times in found.items()}


if __name__ == "__main__":
    sys.exit(main())
