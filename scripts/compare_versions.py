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
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import _version_cases as cases
from _version_cases import Case
from _version_results import SAME, Failed, difference, differences_of_values, forked, same_caches
from kill_sweep import children, kill, result

EXAMPLES = """\
examples:
  python scripts/compare_versions.py ../before .
  python scripts/compare_versions.py ../before . --only mlp_cls,cnn_cls --devices 1 --quick
  python scripts/compare_versions.py ../before . --keep /tmp/compared       what OLD gives is kept there between calls
  python scripts/compare_versions.py ../before . --only sweep
  python scripts/compare_versions.py ../last_year . --more                  versions between which metrics came
  python scripts/compare_versions.py --list
"""


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


@dataclass(frozen=True)
class Version:
    """A checkout, and the cache that is its own."""

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


# ----------------------------------------------------------------------------------------------------------- comparing


@dataclass
class Comparison:
    """All cases, one after the other.

    Args:
        kept: where the results of OLD stay.
        scratch: for those of NEW.
        quick: no stop and start again of NEW by itself.
        more: NEW may record what OLD did not.
    """

    old: Version
    new: Version
    kept: Path
    scratch: Path
    quick: bool
    more: bool
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
            straight = difference(self.before(name, old) / "run", run, config=False, more=self.more)
            if straight == SAME:
                return SAME
            stopped = self.before(f"{name}-stopped", lambda f: (half(f), old(f)))
            return difference(stopped / "run", run, config=False, more=self.more)

        def half(folder: Path) -> object:
            return self.old.train(case, folder, devices, case.stop)

        def handed_over() -> str:
            shutil.copytree(self.before(f"{name}-half", half), self.scratch / name / "handed_over")
            return against(new("handed_over"))

        def stopped() -> str:
            new("stopped", case.stop)
            return against(new("stopped"))

        def straight() -> str:
            return difference(self.before(name, old) / "run", new("straight"), config=True, more=self.more)

        row("straight", straight)
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
        return next(differences_of_values("line", *texts), SAME)

    def sweep(self, case: Case) -> None:
        name = case.name.replace(" ", "_")

        def whole(version: Version, folder: Path) -> None:
            folder.mkdir(parents=True, exist_ok=True)
            version.run(folder, case.sweep())

        def judge(folder: Path) -> str:
            boards = [result(f / "run") for f in (self.before(name, lambda f: whole(self.old, f)), folder)]
            return next(differences_of_values("leaderboard", *boards, more=self.more), SAME)

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
    """A cache of its own beside the shared downloads; compiled programs are not kept in a folder that is a link."""
    shared = Path(os.environ.get("BIGCTL_CACHE_DIR") or Path.home() / ".cache" / "bigctl")
    folder.mkdir(parents=True, exist_ok=True)
    (shared / "packages").mkdir(parents=True, exist_ok=True, mode=0o700)
    if not (folder / "packages").exists():
        (folder / "packages").symlink_to((shared / "packages").resolve(), target_is_directory=True)
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
    parser.add_argument("--more", action="store_true", help="metrics and keys that only NEW records are no difference")
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
    comparison = Comparison(old, new, of_old, scratch, options.quick, options.more)
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
