"""Check the installation, the devices and the folders. The output is plain text, made to be pasted into a report."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from bigctl import formatting
from bigctl.cli import common, render
from bigctl.engine import device_check
from bigctl.parallel import accelerators

EXAMPLES = """\
Every check is made, whatever became of the ones before it. Nothing needs the network.

examples:
  bigctl doctor
  bigctl doctor --json
exit codes: 0 nothing failed (there may be warnings), 1 something did
"""
OK, WARN, FAIL = "ok", "warn", "FAIL"
PACKAGES = ("bigctl", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
LITTLE_SPACE = 2 * 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the report; `hint` says what to do about it."""

    level: str
    text: str
    hint: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout", type=float, default=120, metavar="S", help="longest wait for the devices; default: 120 [s]"
    )
    common.add_json(parser)


def run(options: argparse.Namespace) -> int:
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "packages": _packages,
        "code": _code,
        "environment": lambda: _environment(options.timeout),
        "devices": lambda: _devices(options.timeout),
        "step": lambda: _steps(options.timeout),
        "gpu": lambda: _gpu(options.timeout),
        "folders": _folders,
        "compile cache": _compile_cache,
    }
    found = []
    for number, (name, check) in enumerate(checks.items(), 1):
        for finding in _guarded(check):
            found.append({"number": number, "check": name, **asdict(finding)})
            if not options.json:
                print(_tilde(f"{number}  {finding.level:<4}  {name}: {finding.text}"), flush=True)
                if finding.hint:
                    print(_tilde(f"         -> {finding.hint}"), flush=True)
    failed = sum(f["level"] == FAIL for f in found)
    if options.json:
        render.print_json({"ok": not failed, "findings": found})
    else:
        warned = sum(f["level"] == WARN for f in found)
        print(f"{failed} failed, {warned} warnings" if failed or warned else "all is well")
    return 1 if failed else 0


def _guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except Exception as error:
        yield Finding(FAIL, f"the check itself failed: {type(error).__name__}: {error}")


def _tilde(text: str) -> str:
    """The home folder as ~: what is pasted need not name its owner."""
    home = os.path.expanduser("~")
    return text.replace(home + os.sep, "~" + os.sep) if len(home) > 1 else text


# ------------------------------------------------------------------------------------------------------ installation


def _packages() -> Iterator[Finding]:
    from importlib import metadata

    yield Finding(OK, f"python {platform.python_version()} at {sys.executable}, {platform.platform()}")
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding(FAIL, f"{name} is not installed", "pip install bigctl, into a fresh environment")
    yield Finding(OK, ", ".join(f"{name} {version}" for name, version in found.items()))


def _code() -> Iterator[Finding]:
    import bigctl
    from bigctl.runs import provenance

    where = Path(bigctl.__file__).resolve().parents[1]
    kind = "a checkout" if (where / "pyproject.toml").exists() else "installed"
    yield Finding(OK, f"bigctl is {kind} in {where}")
    code = provenance.code(Path.cwd(), diff=False)
    if code:
        dirty = "with uncommitted changes" if code["dirty"] else "clean"
        yield Finding(OK, f"runs started here record commit {code['commit'][:12]}, {dirty}")
    else:
        yield Finding(OK, "runs started here record no commit: this folder is in no git checkout with a commit")


def _environment(timeout: float) -> Iterator[Finding]:
    names = [n for n in sorted(os.environ) if n.startswith(("JAX_", "XLA_", "BIGCTL_", "CUDA_VISIBLE", "LIBTPU"))]
    yield Finding(OK, " ".join(f"{n}={os.environ[n]}" for n in names) or "no variables of jax, XLA or bigctl are set")
    flags = os.environ.get("XLA_FLAGS")
    if flags and device_check.check_devices(timeout).crashed:
        said = device_check.check_devices(timeout).stderr
        reason = next((line for line in said if "XLA_FLAGS" in line and "reset" not in line), "")
        yield Finding(FAIL, f"jax cannot start with XLA_FLAGS={flags}: {reason}".rstrip(": "), "unset XLA_FLAGS")
    wanted = os.environ.get("JAX_PLATFORMS")
    if wanted and not device_check.check_devices(timeout).devices:
        yield Finding(
            FAIL,
            f"JAX_PLATFORMS={wanted} asks for what jax cannot start here",
            "unset JAX_PLATFORMS, or install the platform: pip install 'bigctl[cuda]' or 'bigctl[tpu]'",
        )


# ----------------------------------------------------------------------------------------------------------- devices


def _devices(timeout: float) -> Iterator[Finding]:
    seen = device_check.check_devices(timeout)
    if not seen.devices:
        yield Finding(FAIL, f"jax cannot start: {seen.error}", "python -c 'import jax; print(jax.devices())'")
        return
    kinds: dict[tuple[str, str], list[int | None]] = {}
    for device in seen.devices:
        kinds.setdefault((device["platform"], device["kind"]), []).append(device["memory"])
    for (name, kind), memories in kinds.items():
        memory = f", {formatting.size(memories[0])} each" if memories[0] else ""
        yield Finding(OK, f"{len(memories)} {name} ({kind}){memory}")
    if "cpu" in {name for name, _ in kinds}:
        memory_total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        yield Finding(OK, f"host: {cores} cores, {formatting.size(memory_total)} memory")


def _steps(timeout: float) -> Iterator[Finding]:
    seen = device_check.check_devices(timeout)
    for step in seen.steps:
        if step["error"]:
            yield Finding(FAIL, f"{step['device']}: {step['error']}", "is another process using the device?")
        else:
            yield Finding(
                OK, f"{step['device']}: a jitted step compiles in {step['compile']:.2f} s, runs in {step['run']:.2g} s"
            )
    missing = len(seen.devices) - len(seen.steps)
    if missing or not seen.devices:
        yield Finding(FAIL, f"not run on {missing or 'any'} devices: {seen.error}")


def _gpu(timeout: float) -> Iterator[Finding]:
    command = shutil.which("nvidia-smi")
    if command is None:
        yield Finding(OK, "no nvidia-smi, so no NVIDIA GPU is expected")
        return
    try:
        listed = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Finding(WARN, f"nvidia-smi does not answer ({type(error).__name__})", "check the driver")
        return
    gpus = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    if listed.returncode or not gpus:
        yield Finding(WARN, f"nvidia-smi finds no GPU: {(listed.stderr or listed.stdout).strip()[:200]}")
    elif any(d["platform"] in ("gpu", "cuda") for d in device_check.check_devices(timeout).devices):
        yield Finding(OK, f"nvidia-smi finds {len(gpus)}, jax uses them")
        asked = accelerators.told(accelerators.compiler_options("gpu", deterministic=True))
        yield Finding(OK, f"programs that train are compiled with {asked}; without it by train.deterministic=false")
    elif os.environ.get("JAX_PLATFORMS") == "cpu":
        yield Finding(WARN, f"nvidia-smi finds {len(gpus)} GPUs, JAX_PLATFORMS=cpu hides them", "unset JAX_PLATFORMS")
    else:
        yield Finding(WARN, f"nvidia-smi finds {len(gpus)} GPUs, jax uses none", "pip install 'bigctl[cuda]'")


# ----------------------------------------------------------------------------------------------------------- folders


def _folders() -> Iterator[Finding]:
    from bigctl.cache_root import cache_root
    from bigctl.runs.directory import ROOT

    remedy = "free some space, or set BIGCTL_CACHE_DIR to another folder"
    for name, folder, hint in (
        ("cache", cache_root(), remedy),
        ("prepared data", cache_root() / "data", remedy),
        ("runs", ROOT.absolute(), "start bigctl in another folder, or give --run-dir"),
    ):
        there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        try:
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as error:
            yield Finding(FAIL, f"{name}: {folder} cannot be written: {error.strerror}", hint)
            continue
        free = shutil.disk_usage(there).free
        new = "" if folder.exists() else ", not there yet"
        level = OK if free >= LITTLE_SPACE else WARN
        yield Finding(
            level, f"{name}: {folder} can be written{new}, {formatting.size(free)} free", hint if level == WARN else ""
        )


def _compile_cache() -> Iterator[Finding]:
    from bigctl.cache_root import cache_root
    from bigctl.files import disk_size

    folder = cache_root() / "compiled"
    if not folder.exists():
        yield Finding(OK, f"{folder} is not there yet")
        return
    for private in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())):
        found = private.stat()
        if found.st_uid != os.getuid():
            yield Finding(WARN, f"{private} belongs to another user: programs are not kept", "set BIGCTL_CACHE_DIR")
        elif stat.S_IMODE(found.st_mode) & 0o077:
            yield Finding(
                WARN, f"others can get at {private}; the next training makes it private", f"chmod 700 {private}"
            )
    programs = len(list(folder.glob("*/*-cache")))
    yield Finding(OK, f"{programs} programs, {formatting.size(disk_size(folder))}, in {folder}")
