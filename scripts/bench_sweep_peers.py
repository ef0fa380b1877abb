"""One study by `bigctl sweep`, by Optuna with joblib, and by Keras Tuner: time, and what is in hand at the end.

All train the same network on the same rows of breast_cancer, every learning rate with every seed, for the same steps in
the same batches, validated after each epoch, from nothing compiled. Optuna's objective is the plain JAX and optax
program of a user who knows both: one compiled epoch whose learning rate is an argument, a grid in a journal file, two
joblib workers. Keras Tuner's GridSearch repeats each point with `executions_per_trial`, on Keras with the JAX backend.

What is in hand is read from the files that each leaves behind. Then each is started again elsewhere with one more
learning rate, which is far too high, killed half-way with SIGKILL, and started once more.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import resource
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import _bench
import _sweep_peers as peers
from _sweep_peers import HIDDEN, TOO_HIGH, Spec, yes

EXAMPLES = """\
examples:
  python scripts/bench_sweep_peers.py
  python scripts/bench_sweep_peers.py --lrs 2 --epochs 5 --only sweep optuna
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lrs", type=int, default=8, help="learning rates (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="seeds of each (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=30, help="length of a trial (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="trials at once (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="whole studies of each (default %(default)s)")
    parser.add_argument(
        "--only", nargs="+", choices=list(CANDIDATES), default=list(CANDIDATES), help="leave others out"
    )
    parser.add_argument("--no-kill", action="store_true", help="leave the second part out")
    parser.add_argument("--peer", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    _bench.add_patience(parser)
    options = parser.parse_args()
    if options.peer:
        return PEERS[options.peer[0]](Path(options.peer[1]))
    _bench.print_facts("bigctl", "jax", "optax", "optuna", "joblib", "keras", "keras-tuner")
    with tempfile.TemporaryDirectory() as folder:
        _compare(options, Path(folder))


def _compare(options: argparse.Namespace, folder: Path) -> None:
    rows = _rows(folder / "rows.npz")
    lrs = tuple(float(f"{1e-4 * 10 ** (3 * i / max(1, options.lrs - 1)):.3g}") for i in range(options.lrs))
    spec = Spec(lrs, options.seeds, options.epochs, 32, rows, options.jobs)
    print(
        f"{spec.trials} trials of {spec.epoch * spec.epochs} steps, widths {HIDDEN}, {spec.jobs} at once",
        flush=True,
    )

    ends: dict[str, Path] = {}
    computed: dict[str, list[float]] = {name: [] for name in options.only}
    _adopt()

    def measured(name: str) -> float:
        ends[name] = folder / f"{name}-{time.monotonic_ns()}"
        _prepare(ends[name], spec, folder)
        before, start = _computed(), time.perf_counter()
        code = _run(name, ends[name], spec, folder)
        if code != 0:
            sys.exit(f"bench_sweep_peers: {name} ended with {code}:\n{_said(ends[name])[-3000:]}")
        seconds = time.perf_counter() - start
        computed[name].append(_computed() - before)
        return seconds

    blocks: dict[str, Callable[[], float]] = {name: lambda name=name: measured(name) for name in options.only}  # type: ignore[misc]
    samples = _bench.interleave(blocks, options.rounds, warmup=0, patience=options.patience)
    first = options.only[0]
    times = [
        [CANDIDATES[name], statistics.median(values), statistics.median(values) / spec.trials,
         _bench.ratio(samples, name, first)[0], statistics.median(computed[name])]
        for name, values in samples.items()
    ]  # fmt: skip
    _bench.table(["", "wall s", "s a trial", f"x {CANDIDATES[first]}", "processor s"], times)
    found = {
        name: {"every learning rate with every seed": yes(len(RESULTS[name](ends[name])), spec.trials)}
        | FACTS[name](ends[name], spec)
        for name in options.only
    }
    if not options.no_kill:
        worse = replace(spec, lrs=(*spec.lrs, TOO_HIGH))
        for name in options.only:
            found[name] |= _killed(name, worse, folder, after=statistics.median(samples[name]) / 2)
    questions = list(dict.fromkeys(question for facts in found.values() for question in facts))
    header = ["in hand at the end", *(CANDIDATES[name] for name in options.only)]
    _bench.table(header, [[q, *(found[name].get(q, "no") for name in options.only)] for q in questions])


def _adopt() -> None:
    """Processes that lose their parent become children of this one, so that what they computed is known; on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def _computed() -> float:
    """Seconds of the processor that all processes started so far have taken, of which none is left."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def _rows(file: Path) -> int:
    """The rows as bigctl prepares them, standardised, for all; gives how many there are to train on."""
    import numpy as np

    import bigctl
    from bigctl.engine import resolve

    splits = resolve.prepare_data(bigctl.compose(["recipe=mlp_cls", "data=breast_cancer"])).splits
    train, validation = splits["train"], splits["validation"]
    np.savez(file, x=train["inputs"], y=train["label"], vx=validation["inputs"], vy=validation["label"])
    return len(train["label"])


def _prepare(folder: Path, spec: Spec, shared: Path) -> None:
    folder.mkdir()
    (folder / "spec.json").write_text(json.dumps(asdict(spec)))
    (folder / "rows.npz").symlink_to(shared / "rows.npz")


def _command(name: str, folder: Path, spec: Spec) -> list[str]:
    if name in PEERS:
        return [sys.executable, __file__, "--peer", name, str(folder)]
    how = ["--jobs", str(spec.jobs)] if name == "sweep" else ["--packed", "yes"]
    return [
        sys.executable, "-P", "-m", "bigctl", "sweep", "recipe=mlp_cls", "data=breast_cancer",
        "model.hidden=[" + ",".join(map(str, HIDDEN)) + "]", "model.dropout=0", "optimizer=adamw",
        "optimizer.weight_decay=0",
        "schedule=constant", "train.epochs=null", f"train.steps={spec.epoch * spec.epochs}",
        f"train.batch_size={spec.batch_size}", f"train.log_every={spec.epoch}", f"eval.every={spec.epoch}",
        f"checkpoint.every={spec.epoch * max(1, spec.epochs // 2)}", "optimizer.lr=" + ",".join(map(str, spec.lrs)),
        f"seed=range({spec.seeds})", *how, "--sweep-dir", str(folder / "sweep"), "--quiet",
    ]  # fmt: skip


def _environment(name: str, folder: Path, shared: Path) -> dict[str, str]:
    """Nothing compiled before is used; prepared data is. Keras Tuner keeps to JAX."""
    from bigctl.cache_root import cache_root

    cache = folder / "cache"
    if not cache.exists():
        cache.mkdir()
        (cache / "data").symlink_to((cache_root() / "data").resolve())
    quiet = {"KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore"}
    return {**os.environ, **quiet, "BIGCTL_CACHE_DIR": str(cache)}


def _run(name: str, folder: Path, spec: Spec, shared: Path, *, kill_after: float | None = None) -> int | None:
    """The exit code of the study's command; None if it was killed, with all that it had started."""
    with (folder / "output.txt").open("ab") as output:
        process = subprocess.Popen(
            _command(name, folder, spec), env=_environment(name, folder, shared), stdin=subprocess.DEVNULL,
            stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(kill_after)
        except subprocess.TimeoutExpired:
            for number in (process.pid, *_descendants(process.pid)):
                try:
                    os.kill(number, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            process.wait()
            return None
    return code


def _descendants(process: int) -> list[int]:
    """All processes that a process has started, and those that these have, as long as they are its."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        parents.setdefault(int(words[1]), []).append(int(stat.parent.name))
    found, todo = [], [process]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return found


def _killed(name: str, spec: Spec, shared: Path, *, after: float) -> dict[str, str]:
    """Facts of a study that was killed and started again, with a learning rate that cannot work among the others."""
    folder = shared / f"{name}-killed"
    _prepare(folder, spec, shared)
    code = _run(name, folder, spec, shared, kill_after=after)
    before = RESULTS[name](folder)
    if code is None:
        code = _run(name, folder, spec, shared)
    results = RESULTS[name](folder)
    good = {key for key in results if key[0] != TOO_HIGH}
    kept = sum(results.get(key) == value for key, value in before.items())
    again = yes(len(good), spec.trials - spec.seeds)
    if code not in (0, 3):
        again += ": " + _said(folder).strip().splitlines()[-1][:40]
    return {
        "SIGKILL half-way, same command again: all trials": again,
        "  results from before the kill kept": yes(kept, len(before)),
        f"trials of lr={TOO_HIGH:g} known as failed, with cause": yes(FAILURES[name](folder), spec.seeds),
    }


def _said(folder: Path) -> str:
    return (folder / "output.txt").read_text(errors="replace")


# -------------------------------------------------------------------------------------------------------------- bigctl


def _bigctl_facts(folder: Path, spec: Spec) -> dict[str, str]:
    from bigctl.runs import manifest
    from bigctl.runs.metrics_file import read_metrics

    board = _leaderboard(folder)
    trials = [t for t in (folder / "sweep" / "trials").glob("*") if (t / "run.json").exists()]
    curves = [[m for m in read_metrics(t / "metrics.jsonl") if "val/accuracy" in m] for t in trials]
    both = [p for p in board.get("points", []) if p.get("mean") is not None and p.get("std") is not None]
    effects = [e for e in board.get("effects") or [] if e.get("levels")]
    winner = board.get("winner") or {}
    return {
        "best validation accuracy (mean over seeds)": f"{max((p['mean'] for p in both), default=float('nan')):.4f}",
        "weights of every trial": yes(sum(bool(manifest.steps(t / "checkpoints")) for t in trials), spec.trials),
        "curve of every trial": yes(sum(len(c) > 1 for c in curves), spec.trials),
        "mean and std over seeds of every point": yes(len(both), len(spec.lrs)),
        "effect of the parameter": yes(len(effects), 1),
        "command that trains the winner again": yes(int(_composes(winner.get("command"))), 1),
        "test score of the winner": yes(int(bool(winner.get("test"))), 1),
    }


def _leaderboard(folder: Path) -> dict[str, Any]:
    file = folder / "sweep" / "leaderboard.json"
    return json.loads(file.read_text()) if file.exists() else {}


def _composes(command: str | None) -> bool:
    """Whether it is a `bigctl train` of overrides that compose."""
    import bigctl

    words = shlex.split(command or "")
    if words[:2] != ["bigctl", "train"]:
        return False
    bigctl.compose([word for word in words[2:] if "=" in word and not word.startswith("-")])
    return True


def _bigctl_results(folder: Path) -> dict[tuple[float, int], float]:
    from bigctl.sweeps import ledger

    found = {}
    for state in ledger.read_study(folder / "sweep").states.values():
        if state.status == "complete" and state.trial.seed is not None:
            key = float(state.trial.point["optimizer.lr"]), state.trial.seed
            found[key] = state.metrics.get("val/accuracy", float("nan"))
    return found


def _bigctl_failures(folder: Path) -> int:
    from bigctl.sweeps import ledger

    states = ledger.read_study(folder / "sweep").states.values()
    failed = [s for s in states if s.status == "failed" and float(s.trial.point["optimizer.lr"]) == TOO_HIGH]
    return sum(bool(s.message) for s in failed)


CANDIDATES = {"sweep": "bigctl sweep", "packed": "  packed", "optuna": "Optuna + joblib", "keras": "Keras Tuner"}
PEERS: dict[str, Callable[[Path], None]] = {"optuna": peers.run_optuna, "keras": peers.run_keras}
FACTS = {"sweep": _bigctl_facts, "packed": _bigctl_facts, "optuna": peers.optuna_facts, "keras": peers.keras_facts}
RESULTS = {
    "sweep": _bigctl_results, "packed": _bigctl_results, "optuna": peers.optuna_results, "keras": peers.keras_results,
}  # fmt: skip
FAILURES = {
    "sweep": _bigctl_failures, "packed": _bigctl_failures, "optuna": peers.optuna_failures,
    "keras": peers.keras_failures,
}  # fmt: skip


if __name__ == "__main__":
    main()
