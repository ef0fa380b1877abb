"""What the training loop adds to the steps: `Loop.fit`, with logging and writers, against bare loops over those.

cnn_cls against a Python loop over the compiled step, mlp_cls against one `lax.scan` over all steps; in both bare loops
the data is on the device and the indices of all batches are computed beforehand. Evaluation and checkpoints happen once
at the end of a block and are not counted, in none of the loops; compilation happens before.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _bench

EXAMPLES = """\
examples:
  python scripts/bench_loop.py
  python scripts/bench_loop.py --recipe mlp_cls --log-every 500 --rounds 20
"""

TARGETS = {"cnn_cls": 1.03, "mlp_cls": 1.10}
PLAIN = [f"recipe.augment.{name}=0" for name in ("rotate", "scale", "shift")]
CASES: dict[str, tuple[list[str], str, tuple[int, ...], int]] = {
    "cnn_cls": (["recipe=cnn_cls", *PLAIN], "image", (28, 28, 1), 10),
    "mlp_cls": (["recipe=mlp_cls"], "table", (30,), 2),
}


@dataclass
class Scored:
    """Stands for an evaluation, and takes no time."""

    metric: str
    calls: None = None

    def __call__(self, weights: Any, variables: Any) -> dict[str, float]:
        return {self.metric: 0.0}


@dataclass
class Setting:
    """One experiment, with what all its loops share."""

    built: Any
    arrays: Any
    steps: int
    log_every: int
    batch_size: int


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", choices=(*TARGETS, "both"), default="both")
    parser.add_argument("--rounds", type=int, default=8, help="blocks of each loop (default %(default)s)")
    parser.add_argument("--cnn-steps", type=int, default=250, help="steps of a block (default %(default)s)")
    parser.add_argument("--mlp-steps", type=int, default=20_000, help="steps of a block (default %(default)s)")
    parser.add_argument("--log-every", type=int, help="cadence of log lines [steps]; default: as configured")
    parser.add_argument("--batch-size", type=int, help="default: as configured")
    parser.add_argument("--no-tensorboard", action="store_true", help="write metrics.jsonl only")
    parser.add_argument("--threads", type=int, default=2, help="cores to run on (default %(default)s)")
    _bench.add_patience(parser)
    options = parser.parse_args()
    _bench.pin(options.threads)

    from bigctl.parallel import host_memory

    host_memory.keep_memory()  # before jax, as `bigctl train` does
    _bench.print_facts("bigctl", "jax", "flax", "optax", "tensorboardX")
    for recipe in TARGETS if options.recipe == "both" else (options.recipe,):
        with tempfile.TemporaryDirectory() as folder:
            _compare(recipe, options, Path(folder))


def _compare(recipe: str, options: argparse.Namespace, folder: Path) -> None:
    setting = _setting(recipe, options)
    candidates = {
        "Loop.fit": _fit(setting, folder, tensorboard=not options.no_tensorboard),
        "bare: one step a dispatch": _bare_steps(setting),
        "bare: scan of all steps": _bare_scan(setting),
    }
    # For many tiny steps, the plain Python loop takes so long that it would only be in the way.
    reference = "bare: one step a dispatch" if recipe == "cnn_cls" else "bare: scan of all steps"
    if recipe == "mlp_cls":
        del candidates["bare: one step a dispatch"]
    cpu: _bench.Samples = {name: [] for name in candidates}

    def timed(name: str) -> Callable[[], float]:
        def block() -> float:
            start = time.process_time()
            wall = candidates[name]()
            cpu[name].append((time.process_time() - start) / setting.steps)
            return wall

        return block

    samples = _bench.interleave({name: timed(name) for name in candidates}, options.rounds, patience=options.patience)
    config = setting.built.config
    print(
        f"{recipe}, {type(config.model).__name__} batch {setting.batch_size}, "
        f"{options.rounds} blocks of {setting.steps:,} steps, a log line every {setting.log_every} steps"
    )
    rows = []
    for name, values in samples.items():
        ratios = _bench.ratio(samples, "Loop.fit", name)
        per_step = [1e6 * v for v in values]
        spent = 1e6 * min(cpu[name][1:])  # the first is from the round that warms up
        rows.append([name, statistics.median(per_step), min(per_step), 100 * _bench.spread(values), *ratios, spent])
    header = ["us/step", "median", "min", "spread %", "Loop/this: medians", "minima", "in a round", "CPU min"]
    _bench.table(header, rows)
    medians, minima, within = _bench.ratio(samples, "Loop.fit", reference)
    print(_bench.verdict(f"{recipe}: Loop.fit / {reference}, minima", minima, TARGETS[recipe]))
    print(_bench.verdict(f"{recipe}: Loop.fit / {reference}, median in a round", within, TARGETS[recipe]))
    print(flush=True)


def _setting(recipe: str, options: argparse.Namespace) -> Setting:
    from bigctl.training import feed as feeds

    overrides, kind, shape, classes = CASES[recipe]
    if options.log_every:
        overrides = [*overrides, f"train.log_every={options.log_every}"]
    if options.batch_size:
        overrides = [*overrides, f"train.batch_size={options.batch_size}"]
    dataset = _bench.synthetic(kind, 4000 if kind == "image" else 455, shape, classes)
    built = _bench.experiment([*overrides, "train.steps=1000000", "schedule=cosine"], dataset)
    arrays = feeds.place_columns(built.programs.mesh, dataset.splits["train"])
    steps = options.cnn_steps if recipe == "cnn_cls" else options.mlp_steps
    return Setting(built, arrays, steps, built.cadence.log, built.config.train.batch_size)


def _fit(setting: Setting, folder: Path, *, tensorboard: bool) -> Callable[[], float]:
    """`Loop.fit` with the writers of a real run, going on where its last block ended."""
    from bigctl.training import feed as feeds
    from bigctl.training.loop import Cadence, Hooks, Loop
    from bigctl.training.signals import StopRequest
    from bigctl.training.state import Progress
    from bigctl.training.tracking.console import Console
    from bigctl.training.tracking.writers import JsonLines, TensorBoard

    built = setting.built
    lines = JsonLines(folder / "metrics.jsonl", step=0)
    writers: list[Any] = [lines, Console(built.cadence.total, quiet=False, every=1e9)]
    if tensorboard:
        writers.append(TensorBoard(folder / "tensorboard", step=0))

    def write(step: int, values: dict[str, Any]) -> None:
        for writer in writers:
            writer.write(step, values)

    hooks = Hooks(write=write, save=lambda state, progress: None, flush=lines.flush, warn=print)
    never = 10**9
    feed = feeds.make_feed(built.programs, built.dataset.batches, built.dataset.splits["train"], built.config)
    state, progress = built.programs.initialise(), Progress()

    def block() -> float:
        nonlocal state, progress
        loop = Loop(
            built.programs,
            feed,
            Scored(built.metric),  # type: ignore[arg-type]
            Cadence(total=progress.step + setting.steps, log=setting.log_every, evaluate=never, save=never),
            built.config,
            hooks,
            StopRequest(),
            metric=built.metric,
            mode=built.mode,
            examples_per_epoch=built.dataset.size("train"),
        )
        start = time.perf_counter()
        state, progress = loop.fit(state, progress)
        elapsed = time.perf_counter() - start
        return (elapsed - loop.timings.evaluate - loop.timings.checkpoint) / setting.steps

    return block


def _indices(setting: Setting) -> Any:
    from bigctl.data.sampler import BatchPlan

    plan = BatchPlan(setting.built.dataset.size("train"), setting.built.config.seed)
    return plan.indices(0, setting.steps * setting.batch_size).reshape(setting.steps, setting.batch_size)


def _bare_steps(setting: Setting) -> Callable[[], float]:
    import jax

    programs, indices = setting.built.programs, _indices(setting)
    layout, state = setting.built.dataset.batches, programs.initialise()

    def block() -> float:
        nonlocal state
        start = time.perf_counter()
        for row in indices:
            state = programs.step_resident(state, setting.arrays, row, programs.hparams, layout, None)
        jax.block_until_ready(state)
        return (time.perf_counter() - start) / setting.steps

    return block


def _bare_scan(setting: Setting) -> Callable[[], float]:
    import jax

    from bigctl.training.on_batches import on_resident

    programs, indices = setting.built.programs, _indices(setting)
    one_step, layout = on_resident(programs.step, programs.step.train), setting.built.dataset.batches

    def run(state: Any, arrays: Any, indices: Any, hparams: Any) -> Any:
        def body(state: Any, row: Any) -> tuple[Any, None]:
            return one_step(state, arrays, row, hparams, layout, None), None

        return jax.lax.scan(body, state, indices)[0]

    scan = jax.jit(run, donate_argnums=0, out_shardings=programs.state_shardings)
    state = programs.initialise()

    def block() -> float:
        nonlocal state
        start = time.perf_counter()
        state = scan(state, setting.arrays, indices, programs.hparams)
        jax.block_until_ready(state)
        return (time.perf_counter() - start) / setting.steps

    return block


if __name__ == "__main__":
    main()
