"""Hold two checkouts of this project to the same results, to the last bit.

Each case is a small experiment that both train by their command line. Compared are metrics.jsonl and samples.jsonl
without what measures time, what summary.json says of scores, data and parameters, the keys of config.yaml, and every
array of the last checkpoint: parameters, optimizer state, averages, statistics. Then NEW resumes what it had stopped
itself, and what OLD had stopped; goes on with sweeps that OLD was killed in; reads the runs of OLD to predict and to
generate; and the prepared data of both must be the same files. Exits with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import _version_cases as cases
import numpy as np
from _version_cases import Case
from kill_sweep import children, kill, result

EXAMPLES = """\
examples:
  python scripts/compare_versions.py ../before .
  python scripts/compare_versions.py ../before . --only mlp_cls,cnn_cls --devices 1 --quick
  python scripts/compare_versions.py ../before . --keep /tmp/compared       what OLD gives is kept there between calls
  python scripts/compare_versions.py ../before . --only sweep
  python scripts/compare_versions.py --list
"""
SAME = "equal"


class Failed(Exception):
    """A command that should have succeeded did not."""


# ----------------------------------------------------------------------------------------------------- running commands


def preload() -> None:
    """Import what each command would, but for the project and for what starts threads: a fork then begins warm."""
    import flax.nnx
    import hydra
    import jax
    import omegaconf
    import optax
    import orbax.checkpoint
    import sklearn.datasets
    import tokenizers

    assert all((flax.nnx, hydra, jax, omegaconf, optax, orbax.checkpoint, sklearn.datasets, tokenizers))


def forked(work: Callable[[], object], log: Path) -> int:
    """Do something in a process of its own, its output in a file; gives the exit code."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code: Any = 1
    try:
        with log.open("w") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        code = work() or 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


@dataclass(frozen=True)
class Version:
    """A checkout, and the cache of data sets and tokenizers that is its own; compiled programs are shared."""

    name: str
    checkout: Path
    cache: Path

    def environment(self, devices: int) -> dict[str, str]:
        flags = f"--xla_force_host_platform_device_count={devices}" if devices > 1 else ""
        own = {"PYTHONPATH": str(self.checkout), "BIGCTL_CACHE_DIR": str(self.cache), "XLA_FLAGS": flags}
        return {**own, "JAX_PLATFORMS": "cpu", "COLUMNS": "120", "BIGCTL_TRACEBACK": "1"}

    def run(self, folder: Path, words: Sequence[str], devices: int = 1) -> str:
        """One command of `bigctl`, in a folder. Gives what it printed on either stream; raises Failed."""

        def work() -> object:
            os.chdir(folder)
            os.environ.update(self.environment(devices))
            sys.path[:] = [str(self.checkout), *(p for p in sys.path if not (Path(p or ".") / "bigctl").is_dir())]
            sys.argv = ["bigctl", *words]
            return runpy.run_module("bigctl", run_name="__main__", alter_sys=True)["__name__"] and 0

        log = folder / "output.txt"
        code = forked(work, log)
        text = log.read_text(errors="replace")
        if code:
            last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
            raise Failed(f"{self.name}: exit code {code}: {last[:200]} (bigctl {' '.join(words)}; {log})")
        return text

    def train(self, case: Case, folder: Path, devices: int, steps: int | None = None) -> Path:
        """Train, or go on with what is there; gives the run directory."""
        folder.mkdir(parents=True, exist_ok=True)
        mesh = case.mesh if devices > 1 else ()
        words = [*case.overrides, *mesh, f"train.steps={steps or case.steps}", "train.tensorboard=false"]
        self.run(folder, ["train", *words, "--quiet", "--run-dir", "run"], devices)
        return folder / "run"

    def killed_sweep(self, case: Case, folder: Path) -> None:
        """Begin a sweep and kill all of it as soon as one trial has ended."""
        folder.mkdir(parents=True)
        command = [sys.executable, "-m", "bigctl", *case.sweep()]
        with (folder / "output.txt").open("w") as log:
            process = subprocess.Popen(
                command, cwd=folder, env={**os.environ, **self.environment(1)}, stdout=log, stderr=log
            )
            while process.poll() is None and not _one_has_ended(folder / "run"):
                time.sleep(0.05)
            for pid in [process.pid, *children(process.pid)]:
                kill(pid)
            process.wait()
        if process.returncode not in (0, -signal.SIGKILL):
            raise Failed(f"{self.name}: exit code {process.returncode}: {folder / 'output.txt'}")


def _one_has_ended(sweep: Path) -> bool:
    with suppress(OSError):
        return '"event": "end"' in (sweep / "ledger.jsonl").read_text()
    return False


# ----------------------------------------------------------------------------------------------------- what is compared


@cache
def arrays(run: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """meta.json and every array of the last checkpoint; read in a process of its own, for forks must stay possible."""
    last = max((run / "checkpoints").glob("[0-9]*[0-9]"))
    meta = json.loads((last / "meta.json").read_text())

    def work() -> None:
        import orbax.checkpoint as ocp

        names = list(meta["shapes"])
        wanted = dict.fromkeys(names, ocp.RestoreArgs(restore_type=np.ndarray))
        reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True))
        found = reader.restore(
            last.resolve() / "state",
            args=ocp.args.PyTreeRestore(item=dict.fromkeys(names, 0), restore_args=wanted, partial_restore=True),
        )
        stored = {f"{name.replace('/', '|')}:{np.asarray(a).dtype}": np.asarray(a) for name, a in found.items()}
        np.savez(target, **stored)

    target = run.parent / "arrays.npz"
    if forked(work, run.parent / "reading.txt"):
        raise Failed(f"{last} cannot be read: {run.parent / 'reading.txt'}")
    return meta, dict(np.load(target))


def lines(run: Path, name: str) -> list[dict[str, Any]]:
    """The records of a file of JSON lines, without what measures time."""
    if not (run / name).exists():
        return []
    found = map(json.loads, (run / name).read_text().splitlines())
    return [
        {k: v for k, v in line.items() if not k.startswith("perf/") and k not in ("time", "seconds")} for line in found
    ]


def difference(old: Path, new: Path, *, config: bool) -> str:
    """The first thing in which two runs differ, or SAME."""
    return next(_differences(old, new, config), SAME)


def _differences(old: Path, new: Path, config: bool) -> Iterator[str]:
    for name in ("metrics.jsonl", "samples.jsonl"):
        yield from _of_values(name, lines(old, name), lines(new, name))
    before, after = (json.loads((run / "summary.json").read_text()) for run in (old, new))
    for key in cases.SUMMARY:
        yield from _of_values(f"summary.json {key}", before.get(key), after.get(key))
    (meta, here), (meta_new, there) = arrays(old), arrays(new)
    yield from _of_values("progress", meta["progress"], meta_new["progress"])
    for name in sorted(here.keys() | there.keys()):
        if name not in here or name not in there:
            yield f"{name} is missing in {'OLD' if name not in here else 'NEW'}"
        elif here[name].tobytes() != there[name].tobytes() or here[name].shape != there[name].shape:
            yield f"{name} {list(here[name].shape)} differs{_how_much(here[name], there[name])}"
    if config:
        import yaml

        before, after = (yaml.safe_load((run / "config.yaml").read_text()) for run in (old, new))
        yield from _of_values("config.yaml", before, after, more=True)


def _how_much(a: np.ndarray, b: np.ndarray) -> str:
    if a.shape != b.shape or a.dtype.kind not in "fiu":
        return f": {list(a.shape)} and {list(b.shape)}" if a.shape != b.shape else ""
    apart = np.abs(a.astype(np.float64) - b.astype(np.float64))
    return f" in {np.count_nonzero(apart):,} places by {apart.max():.3g} at most"


def _of_values(where: str, a: Any, b: Any, *, more: bool = False) -> Iterator[str]:
    """Where two values of JSON differ; with `more`, NEW may have keys that OLD has not."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *([] if more else [key for key in b if key not in a])]:
            if key not in a or key not in b:
                yield f"{where}: {key} only in {'OLD' if key in a else 'NEW'}"
            else:
                yield from _of_values(f"{where}: {key}", a[key], b[key], more=more)
    elif isinstance(a, list) and isinstance(b, list):
        for number, (x, y) in enumerate(zip(a, b, strict=False)):
            yield from _of_values(f"{where}[{number}]", x, y, more=more)
        if len(a) != len(b):
            yield f"{where}: {len(a)} and {len(b)} of them"
    elif a != b and not (a != a and b != b):
        yield f"{where}: {a!r} and {b!r}"


def same_caches(old: Path, new: Path) -> str:
    """Whether all data that NEW has prepared was prepared by OLD under the same name with the same content."""
    found = [folder for folder in sorted((new / "data").glob("*-*")) if (folder / "meta.json").is_file()]
    for folder in found:
        before = old / "data" / folder.name
        if not before.is_dir():
            return f"{folder.name} was prepared by NEW alone"
        metas = [json.loads((f / "meta.json").read_text()) | {"prepared": 0} for f in (before, folder)]
        names = [sorted(p.name for p in f.iterdir()) for f in (before, folder)]
        different = next((n for n in names[0] if n != "meta.json" and _bytes(before / n) != _bytes(folder / n)), None)
        problem = next(_of_values(folder.name, *names), None) or next(_of_values("meta.json", *metas), None)
        if problem or different:
            return f"{folder.name}: {problem or different}"
    return SAME if found else "nothing was prepared"


def _bytes(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


# ----------------------------------------------------------------------------------------------------------- comparing


@dataclass
class Comparison:
    """All cases, one after the other.

    Args:
        kept: where the results of OLD stay.
        scratch: for those of NEW.
        quick: no stop and start again of NEW by itself.
    """

    old: Version
    new: Version
    kept: Path
    scratch: Path
    quick: bool
    bad: int = 0

    def before(self, name: str, make: Callable[[Path], object]) -> Path:
        """A folder that OLD has filled, now or in a call before."""
        folder = self.kept / name
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            (folder / "done").touch()
        return folder

    def case(self, case: Case, devices: int) -> None:
        name = f"{case.name.replace(' ', '_')}-{devices}"

        def row(how: str, judge: Callable[[], str]) -> None:
            self.row(case.name, devices, how, judge)

        def old(folder: Path) -> object:
            return self.old.train(case, folder, devices)

        def new(folder: str, steps: int | None = None) -> Path:
            return self.new.train(case, self.scratch / name / folder, devices, steps)

        def against(run: Path) -> str:
            """The run that was never stopped; where OLD itself comes out otherwise when stopped, OLD stopped."""
            straight = difference(self.before(name, old) / "run", run, config=False)
            if straight == SAME:
                return SAME
            stopped = self.before(f"{name}-stopped", lambda f: (half(f), old(f)))
            return difference(stopped / "run", run, config=False)

        def half(folder: Path) -> object:
            return self.old.train(case, folder, devices, case.stop)

        def handed_over() -> str:
            shutil.copytree(self.before(f"{name}-half", half), self.scratch / name / "handed_over")
            return against(new("handed_over"))

        def stopped() -> str:
            new("stopped", case.stop)
            return against(new("stopped"))

        row("straight", lambda: difference(self.before(name, old) / "run", new("straight"), config=True))
        row("resumed by NEW from OLD", handed_over)
        if not self.quick:
            row("resumed by NEW from NEW", stopped)
        if case.use and devices == 1:
            row("used: " + case.use[0], lambda: self.use(case, name, old))

    def use(self, case: Case, name: str, old: Callable[[Path], object]) -> str:
        """What either prints when it uses the run of OLD."""

        def ask(version: Version, folder: Path) -> None:
            shutil.copytree(self.before(name, old) / "run", folder / "run")
            (folder / "answer.txt").write_text(version.run(folder, [case.use[0], "run", *case.use[1:]]))

        before = self.before(f"{name}-used", lambda folder: ask(self.old, folder))
        ask(self.new, self.scratch / name / "used")
        texts = [(f / "answer.txt").read_text().splitlines() for f in (before, self.scratch / name / "used")]
        return next(_of_values("line", *texts), SAME)

    def sweep(self, case: Case) -> None:
        name = case.name.replace(" ", "_")

        def whole(version: Version, folder: Path) -> None:
            folder.mkdir(parents=True, exist_ok=True)
            version.run(folder, case.sweep())

        def judge(folder: Path) -> str:
            boards = [result(f / "run") for f in (self.before(name, lambda f: whole(self.old, f)), folder)]
            return next(_of_values("leaderboard", *boards), SAME)

        def straight() -> str:
            whole(self.new, self.scratch / name)
            return judge(self.scratch / name)

        def gone_on_with() -> str:
            begun = self.before(f"{name}-killed", lambda f: self.old.killed_sweep(case, f))
            shutil.copytree(begun, self.scratch / f"{name}-killed")
            whole(self.new, self.scratch / f"{name}-killed")
            return judge(self.scratch / f"{name}-killed")

        if not self.quick:
            self.row(case.name, 1, "straight", straight)
        self.row(case.name, 1, "killed in OLD, ended by NEW", gone_on_with)

    def row(self, what: str, devices: int, how: str, judge: Callable[[], str]) -> None:
        began = time.monotonic()
        try:
            found = judge()
        except Failed as error:
            found = str(error)
        self.bad += found != SAME
        print(f"{what:<26} {devices:>7}  {how:<28} {time.monotonic() - began:>5.0f} s  {found}", flush=True)


def fingerprint(checkout: Path) -> str:
    """Of all that a checkout's results may depend on."""
    digest = hashlib.sha256(f"{len(os.sched_getaffinity(0))} {sys.version}".encode())
    for file in [*sorted(p for top in ("bigctl", "recipes", "conf") for p in (checkout / top).rglob("*"))]:
        if file.suffix in (".py", ".yaml"):
            digest.update(str(file.relative_to(checkout)).encode() + file.read_bytes())
    digest.update(Path(cases.__file__).read_bytes())
    return digest.hexdigest()[:16]


def cache_folder(folder: Path) -> Path:
    """A cache of data and tokenizers of its own beside the shared compiled programs and downloads."""
    shared = Path(os.environ.get("BIGCTL_CACHE_DIR") or Path.home() / ".cache" / "bigctl")
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("compiled", "packages"):
        (shared / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (folder / name).exists():
            (folder / name).symlink_to((shared / name).resolve(), target_is_directory=True)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path, nargs="?", metavar="OLD", help="a checkout")
    parser.add_argument("new", type=Path, nargs="?", metavar="NEW", help="another")
    parser.add_argument("--only", metavar="A,B", help="cases whose name begins so, such as mlp_cls or sweep")
    parser.add_argument("--devices", default="1,8", help="simulated devices to train on; default: 1,8")
    parser.add_argument("--quick", action="store_true", help="one case a recipe, and fewer stops")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep there what OLD gives, for the next call")
    parser.add_argument("--list", action="store_true", help="show the cases")
    options = parser.parse_args()
    wanted = tuple((options.only or "").split(","))
    chosen = [c for c in cases.CASES if c.name.startswith(wanted) and (c.quick or not options.quick)]
    if options.list or not chosen:
        print("\n".join(f"{case.name:<26} {' '.join(case.overrides)}" for case in chosen or cases.CASES))
        return 0 if options.list else 2
    if options.new is None:
        parser.error("two checkouts are compared: OLD NEW")
    scratch = Path(tempfile.mkdtemp(prefix="compared-"))
    kept = (options.keep or scratch).resolve()
    of_old = kept / f"old-{fingerprint(options.old)}"
    files = cases.write_data(kept / "data")
    old = Version("OLD", options.old.resolve(), cache_folder(of_old / "cache"))
    new = Version("NEW", options.new.resolve(), cache_folder(scratch / "cache"))
    comparison = Comparison(old, new, of_old, scratch, options.quick)
    preload()
    print(f"{'what':<26} devices  {'how':<28}  takes   result", flush=True)
    for case in (case.placed(files) for case in chosen):
        if case.is_sweep:
            comparison.sweep(case)
            continue
        for devices in map(int, options.devices.split(",")):
            comparison.case(case, devices)
    comparison.row("prepared data", 1, "made by each", lambda: same_caches(old.cache, new.cache))
    if comparison.bad:
        print(f"{comparison.bad} differ; the folders of NEW are left in {scratch}, those of OLD in {of_old}")
        return 1
    shutil.rmtree(scratch)
    print("all equal to the bit")
    return 0


if __name__ == "__main__":
    sys.exit(main())
