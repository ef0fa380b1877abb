"""What the benchmarks share: measuring in interleaved blocks, tables, facts about the machine, synthetic data sets.

Other work on the machine slows whatever runs at that moment. Candidates are therefore measured in short blocks, all of
them once a round and in random order, and compared by the medians and the minima of their own blocks and by the median
of the ratios within a round.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

Samples = dict[str, list[float]]


def interleave(
    candidates: Mapping[str, Callable[[], float]], rounds: int, *, warmup: int = 1, patience: float = 0.0, seed: int = 0
) -> Samples:
    """Measure every candidate once a round, in random order.

    Before each block lies a pause, in which the threads of the block before, which may spin for 0.2 s, go to sleep, and
    in which the other work on the machine is looked at. How many blocks began undisturbed is printed.

    Args:
        candidates: name -> a block of work that returns what it measured, such as seconds per step.
        rounds: how many blocks of each count.
        warmup: rounds before those, which do not count.
        patience: seconds to spend at most, all in all, on waiting for other work to end.
    """
    order = random.Random(seed)
    samples: Samples = {name: [] for name in candidates}
    disturbed = 0
    for number in range(warmup + rounds):
        for name in order.sample(list(candidates), len(candidates)):
            time.sleep(_SPIN)
            while (quiet := _busy() < _QUIET) is False and patience > 0:
                patience -= _LOOK
            value = candidates[name]()
            if number >= warmup:
                samples[name].append(value)
                disturbed += not quiet
    total = rounds * len(candidates)
    print(f"{total - disturbed} of {total} blocks began on a quiet machine")
    return samples


_SPIN, _LOOK, _QUIET = 0.2, 0.2, 0.3


def _busy() -> float:
    """How many cores all processes together use while this one sleeps for a moment; 0 where that is not known."""
    before = _busy_ticks()
    time.sleep(_LOOK)
    return (_busy_ticks() - before) / os.sysconf("SC_CLK_TCK") / _LOOK


def _busy_ticks() -> int:
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0
    user, nice, system, _, _, irq, softirq, *_ = (int(n) for n in stat.read_text().splitlines()[0].split()[1:])
    return user + nice + system + irq + softirq


def add_patience(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--patience", type=float, default=60.0, help="longest wait for a quiet machine [s] (default %(default)s)"
    )


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ratio(samples: Samples, over: str, under: str) -> tuple[float, float, float]:
    """`over` / `under` as (ratio of medians, ratio of minima, median of the ratios within a round)."""
    a, b = samples[over], samples[under]
    within = [x / y for x, y in zip(a, b, strict=True)]
    return statistics.median(a) / statistics.median(b), min(a) / min(b), statistics.median(within)


def spread(values: Sequence[float]) -> float:
    """Half of the middle 50 %, relative to the median: how noisy a measurement was."""
    if len(values) < 4:
        return (max(values) - min(values)) / 2 / statistics.median(values)
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / 2 / statistics.median(values)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print columns: the first flush left, the others flush right; numbers with three significant digits."""
    text = [[_cell(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in text) for i in range(len(header))]
    for number, row in enumerate(text):
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))
    print(flush=True)


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    if value != value:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def verdict(name: str, value: float, limit: float, unit: str = "") -> str:
    """One line on a target: "--help 0.09 s, target < 0.15 s: met"."""
    return f"{name}: {value:.3g}{unit}, target {limit:g}{unit}: {'met' if value <= limit else 'MISSED'}"


def print_facts(*packages: str) -> None:
    """The machine and the versions that the numbers below belong to."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"{_processor()}, {cores()} cores, load {load:.1f} at the start; {platform.system()} {platform.machine()}")
    print(f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in packages))
    print(flush=True)


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


AT_FIRST_STEP = """
from bigctl.engine import trainer
def at_first_step(call):
    resolve = trainer._resolve
    def timed(run):
        resolved = resolve(run)
        import jax
        from bigctl.training import feed as feeds
        make = feeds.make_feed
        def first(*args, **options):
            feed = make(*args, **options)
            advance = feed.advance
            def once(*args):
                result = jax.block_until_ready(advance(*args))
                call()
                feed.advance = advance
                return result
            feed.advance = once
            return feed
        feeds.make_feed = first
        return resolved
    trainer._resolve = timed
"""
"""Code for a process that trains: `at_first_step(call)` has `call()` made when the first step is done."""


def pin(threads: int) -> None:
    """Keep this process, and those it starts, on its first `threads` cores, where the system can do that."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


# ------------------------------------------------------------------------------------ experiments on synthetic data


def synthetic(kind: str, examples: int = 4000, shape: Sequence[int] = (28, 28, 1), classes: int = 10) -> Any:
    """A `Dataset` of noise in the shape of MNIST ("image": uint8 pixels) or of a table ("table": float32 features)."""
    import numpy as np

    from bigctl.data.dataset import SPLITS, Dataset, Features
    from bigctl.data.layouts.rows import Rows

    rng = np.random.default_rng(0)

    def columns(n: int) -> dict[str, np.ndarray]:
        if kind == "image":
            inputs: np.ndarray = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
        else:
            inputs = rng.standard_normal((n, *shape), dtype=np.float32)
        return {"inputs": inputs, "label": rng.integers(0, classes, n).astype(np.int32)}

    sizes = dict(zip(SPLITS, (examples, examples // 8, examples // 8), strict=True))
    statistic = ((0.5,), (0.29,)) if kind == "image" else ((), ())
    features = Features(kind, tuple(shape), tuple(str(c) for c in range(classes)), *statistic)
    return Dataset({split: columns(n) for split, n in sizes.items()}, features, "synthetic", layout=Rows())


def experiment(overrides: Sequence[str], dataset: Any) -> Any:
    """What `engine.experiment.build` gives for these overrides, with `dataset` instead of prepared files."""
    import bigctl
    from bigctl.engine import experiment as experiments
    from bigctl.engine import resolve

    return experiments.build_resolved(resolve.with_data(bigctl.compose(overrides), dataset))


def stepper(built: Any) -> Callable[[int], None]:
    """Of an experiment: makes so many steps as `bigctl train` makes them, and waits for them."""
    import jax

    from bigctl.training import feed as feeds

    feed = feeds.make_feed(built.programs, built.dataset.batches, built.dataset.splits["train"], built.config)
    state, position, size = built.programs.initialise(), 0, built.config.train.batch_size

    def advance(steps: int) -> None:
        nonlocal state, position
        while steps:
            state, count = feed.advance(state, position, steps)
            position, steps = position + count * size, steps - count
        jax.block_until_ready(state)

    return advance
