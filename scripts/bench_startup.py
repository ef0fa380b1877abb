"""How long commands take to answer, and how long it is from the command to the first training step.

Every time is that of a real process. "cold" is a start without compiled programs, "warm" one with; the data is prepared
before both. The peer is a plain script that imports jax and optax, compiles the training step of the same network and
runs it once, with and without jax's own compile cache; it has no configuration, no data, no run directory.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import _bench

EXAMPLES = """\
examples:
  python scripts/bench_startup.py
  python scripts/bench_startup.py --train "recipe=cnn_cls data=digits" --rounds 10
"""

COMMANDS = {
    "bigctl --help": ["--help"],
    "bigctl ls": ["ls"],
    "bigctl show recipe=cnn_cls": ["show", "recipe=cnn_cls"],
    "completion": ["--complete", "train", "recipe=cnn_cls", "optimizer.l"],
}
LISTED = 500
TARGETS = {"bigctl --help": 0.15, "bigctl ls": 0.5, "runs": 1.0, "warm": 6.0}
UNWANTED = ("tensorflow_datasets", "tensorflow", "grain", "torch", "sklearn")

# Says when the first step is done and what is imported by then; the command itself runs as it always does.
FIRST_STEP = (
    _bench.AT_FIRST_STEP
    + """
import json, sys, time
def report():
    now, modules = time.time(), sorted({name.split(".")[0] for name in sys.modules})
    print(json.dumps({"time": now, "modules": modules}), flush=True)
at_first_step(report)
from bigctl.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
)

PLAIN_LISTING = """
import json, pathlib, sys
for run in pathlib.Path(sys.argv[1]).iterdir():
    record, summary = (json.loads((run / name).read_text()) for name in ("run.json", "summary.json"))
    print(run.name, record["status"], record["recipe"], summary["step"], summary["metrics"][summary["selected_by"]])
"""

PLAIN = """
import json, os, sys, time
import jax, jax.numpy as jnp, numpy as np, optax
if os.environ.get("PLAIN_CACHE"):
    jax.config.update("jax_compilation_cache_dir", os.environ["PLAIN_CACHE"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
shapes = {"c1": (3, 3, 1, 32), "c2": (3, 3, 32, 64), "d1": (1600, 128), "d2": (128, 10)}
def init(key):
    made = {}
    for i, (name, shape) in enumerate(shapes.items()):
        scale = np.sqrt(2 / np.prod(shape[:-1]))
        made[name] = {"w": scale * jax.random.normal(jax.random.fold_in(key, i), shape), "b": jnp.zeros(shape[-1])}
    return made, rule.init(made)
def conv(x, p):
    x = jax.lax.conv_general_dilated(x, p["w"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.lax.reduce_window(jax.nn.relu(x + p["b"]), -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
def loss(params, x, y):
    x = conv(conv(x.astype(jnp.float32) / 255, params["c1"]), params["c2"]).reshape(len(x), -1)
    x = jax.nn.relu(x @ params["d1"]["w"] + params["d1"]["b"]) @ params["d2"]["w"] + params["d2"]["b"]
    return optax.softmax_cross_entropy_with_integer_labels(x, y).mean()
rule = optax.adamw(1e-3)
def step(params, state, x, y):
    updates, state = rule.update(jax.grad(loss)(params, x, y), state, params)
    return optax.apply_updates(params, updates), state
params, state = jax.jit(init)(jax.random.key(0))
x, y = np.zeros((64, 28, 28, 1), np.uint8), np.zeros(64, np.int32)
jax.block_until_ready(jax.jit(step, donate_argnums=(0, 1))(params, state, x, y))
print(json.dumps({"time": time.time()}), flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", default="recipe=cnn_cls", help="overrides of the training run (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="starts of each (default %(default)s)")
    _bench.add_patience(parser)
    options = parser.parse_args()
    _bench.print_facts("bigctl", "jax", "flax", "orbax-checkpoint", "hydra-core")
    _commands(options)
    _listing(options)
    with tempfile.TemporaryDirectory() as folder:
        _training(options, Path(folder))


def _commands(options: argparse.Namespace) -> None:
    program = _program()
    blocks: dict[str, Callable[[], float]] = {"python -c pass": lambda: _wall([sys.executable, "-c", "pass"])}
    for name, arguments in COMMANDS.items():
        blocks[name] = lambda arguments=arguments: _wall([*program, *arguments])  # type: ignore[misc]
    samples = _bench.interleave(blocks, options.rounds, patience=options.patience)
    rows = []
    for name, values in samples.items():
        medians, minima, _ = _bench.ratio(samples, name, "python -c pass")
        rows.append([name, statistics.median(values), min(values), 100 * _bench.spread(values), medians, minima])
    _bench.table(["seconds", "median", "min", "spread %", "this/python: medians", "minima"], rows)
    for name in COMMANDS:
        if name in TARGETS:
            print(_bench.verdict(f"{name}, minimum", min(samples[name]), TARGETS[name], " s"))
    print(flush=True)


def _listing(options: argparse.Namespace) -> None:
    """`bigctl runs` over complete runs, against a plain script that prints a line from the same JSON files."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        train = ["train", "recipe=mlp_cls", "data=breast_cancer", "train.steps=20", "--quiet"]
        subprocess.run([*_program(), *train, "--run-dir", str(root / "one")], check=True, capture_output=True)
        for number in range(LISTED):
            run = root / "runs" / f"run{number}"
            run.mkdir(parents=True)
            for name in ("run.json", "summary.json", "metrics.jsonl", ".lock"):
                shutil.copy(root / "one" / name, run / name)
        blocks: dict[str, Callable[[], float]] = {
            "bigctl runs": lambda: _wall([*_program(), "runs", "--root", str(root / "runs")]),
            "plain": lambda: _wall([sys.executable, "-c", PLAIN_LISTING, str(root / "runs")]),
        }
        samples = _bench.interleave(blocks, options.rounds, patience=options.patience)
    rows = []
    for name, values in samples.items():
        medians, minima, _ = _bench.ratio(samples, name, "plain")
        rows.append([name, statistics.median(values), min(values), 100 * _bench.spread(values), medians, minima])
    _bench.table([f"seconds, {LISTED} runs", "median", "min", "spread %", "this/plain: medians", "minima"], rows)
    print(_bench.verdict(f"bigctl runs, {LISTED} runs, minimum", min(samples["bigctl runs"]), TARGETS["runs"], " s"))
    print(flush=True)


def _training(options: argparse.Namespace, folder: Path) -> None:
    from bigctl.cache_root import cache_root

    data = cache_root() / "data"
    data.mkdir(parents=True, exist_ok=True)
    cache = folder / "cache"
    cache.mkdir()
    (cache / "data").symlink_to(data)  # the data of other runs serves here too, their compiled programs do not
    environment = {**os.environ, "BIGCTL_CACHE_DIR": str(cache)}
    command = ["train", *options.train.split(), "train.steps=1", "--quiet"]
    imported: set[str] = set()
    total: list[float] = []

    def own(*, cold: bool) -> float:
        if cold:
            shutil.rmtree(cache / "compiled", ignore_errors=True)
        run = folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        code = [sys.executable, "-c", FIRST_STEP, *command, "--run-dir", str(run)]
        start = time.time()
        found = _answer(code, environment)
        if not cold:
            imported.update(found["modules"])
            total.append(time.time() - start)
        return found["time"] - start

    def plain(*, cold: bool) -> float:
        if cold:
            shutil.rmtree(folder / "plain", ignore_errors=True)
        start = time.time()
        found = _answer([sys.executable, "-c", PLAIN], {**os.environ, "PLAIN_CACHE": str(folder / "plain")})
        return found["time"] - start

    own(cold=True)  # prepares the data
    samples: _bench.Samples = {name: [] for name in ("bigctl, cold", "plain, cold", "bigctl, warm", "plain, warm")}

    def both(name: str, start: Callable[..., float]) -> float:
        cold, warm = start(cold=True), start(cold=False)
        samples[f"{name}, cold"].append(cold)
        samples[f"{name}, warm"].append(warm)
        return warm

    blocks = {"bigctl": lambda: both("bigctl", own), "plain": lambda: both("plain", plain)}
    _bench.interleave(blocks, options.rounds, warmup=0, patience=options.patience)
    rows = []
    for name, values in samples.items():
        ratios = _bench.ratio(samples, name, f"plain, {name.split()[-1]}")
        rows.append([name, statistics.median(values), min(values), 100 * _bench.spread(values), *ratios])
    print(f"bigctl {' '.join(command)}; to the end of the first step")
    _bench.table(["seconds", "median", "min", "spread %", "this/plain: medians", "minima", "in a round"], rows)
    print(f"whole command with evaluation, checkpoint and summary, warm: minimum {min(total):.2f} s")
    print(_bench.verdict("warm start to the first step, minimum", min(samples["bigctl, warm"]), TARGETS["warm"], " s"))
    there = [name for name in UNWANTED if name in imported]
    print(f"imported by the first step of a warm start, of {', '.join(UNWANTED)}: {', '.join(there) or 'none'}")
    print(flush=True)
    _imports([*command, "--run-dir", str(folder / "imports")], environment)


def _imports(command: Sequence[str], environment: dict[str, str]) -> None:
    """The packages that a warm start spends most of its imports on, by their modules' own time."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "bigctl.cli.main", *command],
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    own: dict[str, float] = {}
    for line in done.stderr.splitlines():
        if match := re.match(r"import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)", line):
            package = match[2].split(".")[0]
            own[package] = own.get(package, 0.0) + int(match[1]) / 1e6
    total = sum(own.values())
    largest = sorted(own.items(), key=lambda item: -item[1])[:8]
    print(f"imports of a whole warm start: {total:.2f} s with the cost of measuring")
    _bench.table(["package", "own s", "share %"], [[name, s, 100 * s / total] for name, s in largest])


def _program() -> list[str]:
    """The installed command that belongs to this interpreter, else the module."""
    found = Path(sys.executable).with_name("bigctl")
    return [str(found)] if found.exists() else [sys.executable, "-m", "bigctl.cli.main"]


def _wall(command: Sequence[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def _answer(command: Sequence[str], environment: dict[str, str]) -> dict[str, Any]:
    """The first JSON object that a process prints, once it has ended."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            found: dict[str, Any] = json.loads(line)
            return found
    sys.exit(f"bench_startup: {' '.join(command[3:])} gave no time:\n{done.stderr[-2000:]}")


if __name__ == "__main__":
    main()
