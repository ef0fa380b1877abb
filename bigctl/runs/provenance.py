"""What a run was made with: code commit and dirty diff, packages, machine."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from bigctl.runs.redaction import without_secrets

PACKAGES = ("bigctl", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "hydra-core", "omegaconf", "numpy")
_LARGEST_DIFF = 200_000
"""Of what is kept [characters]."""
_LARGEST_SAID = 4 * _LARGEST_DIFF
"""Of what is read of git's answers [bytes]."""
_OUTPUT = ("runs", "sweeps")
_OWN_FORM = (
    "--no-ext-diff", "--no-textconv", "--no-color", "--submodule=short", "--ignore-submodules=dirty",
    "--src-prefix=a/", "--dst-prefix=b/",
)  # fmt: skip
"""A diff as git itself makes it, whatever is configured."""


def made_with(folder: Path, *, diff: bool = True) -> dict[str, Any]:
    """All of it, for run.json.

    Args:
        folder: where code of the user's own is.
        diff: whether to keep what is not committed.
    """
    return {"packages": packages(), "code": code(folder, diff=diff), "machine": machine()}


def packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def code(folder: Path, *, diff: bool = True) -> dict[str, Any]:
    """Commit and uncommitted changes of the git checkout that `folder` is in; empty outside of one.

    Files that git does not know of are changes too, but for the folders of runs and sweeps. Secrets are cut out.
    """
    git = _Git(folder)
    commit = git("rev-parse", "--verify", "HEAD")
    if commit is None:
        return {}
    own = (f":(exclude){name}" for name in _OUTPUT)
    changes = git("status", "--porcelain", "--ignore-submodules=dirty", "--", ":/", *own)
    if changes is None:  # more files than can be looked through in time
        changes = git("status", "--porcelain", "--ignore-submodules=dirty", "--untracked-files=no")
    found = {"commit": commit.strip(), "dirty": bool(changes)}
    if not diff:
        return found
    text = git("diff", *_OWN_FORM, "HEAD") or ""
    kept = without_secrets(text)
    return {**found, "diff": kept[:_LARGEST_DIFF], "diff_cut": len(kept) > _LARGEST_DIFF}


def machine() -> dict[str, Any]:
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "host": platform.node(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu_features": digest(cpu()),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def cpu() -> str:
    """The processor's instruction sets, which decide the code that is compiled for it."""
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return platform.machine() + next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return platform.machine()


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def derived(record: Mapping[str, Any]) -> str | None:
    """What a compressed run was made from, and how, or what has taught a student; None of any other."""
    origin = record.get("derived_from")
    if not origin:
        teacher = record.get("teacher")
        return f"labels and {teacher.get('run')}, step {teacher.get('step') or 0:,}" if teacher else None
    how = " ".join(f"{key}={value}" for key, value in (record.get("compression") or {}).items() if value != "")
    return f"{origin.get('derived_from')}, step {origin.get('step') or 0:,}: {how}"


def comparable(record: Mapping[str, Any]) -> dict[str, Any]:
    """What `config.drift` has rules for, from the fields of a run.json; None for what it does not say."""
    installed, machine, devices, code = (
        dict(record.get(part) or {}) for part in ("packages", "machine", "devices", "code")
    )
    version = installed.pop("bigctl", None)
    on_cpu = devices.get("platform") == "cpu"
    mesh, processes = devices.get("mesh"), devices.get("processes") or 1
    return {
        "bigctl": ".".join(version.split(".")[:2]) if version else None,
        "jax": installed.pop("jax", None),
        "jaxlib": installed.pop("jaxlib", None),
        "device kind": devices.get("kind"),
        "mesh": _arrangement(mesh, processes) if mesh else None,
        "cores": machine.get("cores") if on_cpu else None,
        "CPU features": machine.get("cpu_features") if on_cpu else None,
        "XLA_FLAGS": machine.get("xla_flags"),
        "commit": code["commit"][:12] + (" and changes" if code.get("dirty") else "") if code.get("commit") else None,
        "packages": ", ".join(f"{name} {number}" for name, number in sorted(installed.items())) or None,
    }


def _arrangement(mesh: Mapping[str, int], processes: int) -> str:
    text = " x ".join(f"{axis} {size}" for axis, size in mesh.items() if size > 1) or "one device"
    return f"{text} in {processes} processes" if processes > 1 else text


_NOTHING = "BIGCTL_NOTHING"
"""An environment variable that is empty."""
_OFFLINE = {"GIT_ALLOW_PROTOCOL": "none", "GIT_NO_LAZY_FETCH": "1", _NOTHING: ""}
"""Objects that a checkout has left on a server git would fetch, by programs that the checkout names."""


class _Git:
    """Asks git about a folder.

    A checkout may come from anywhere, and its configuration can name programs: none of them is run, no index written,
    nothing fetched. So a file that a filter changes, as Git LFS does, is compared as it lies on disk where git cannot
    tell by its size and time that it is the same.
    """

    def __init__(self, folder: Path):
        safe = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")
        self._command = ["git", "--no-optional-locks", *safe, "-C", str(folder)]
        configured = self._output("config", "--list", "--name-only", "-z")
        self._known = configured is not None and len(configured) < _LARGEST_SAID
        if configured is not None:
            self._command += _without_filters(os.fsdecode(configured).split("\0"))

    def __call__(self, *arguments: str) -> str | None:
        """What git says, as far as it is kept; None if it fails or takes too long."""
        said = self._output(*arguments) if self._known else None
        return None if said is None else said.decode("utf-8", "replace")

    def _output(self, *arguments: str) -> bytes | None:
        try:
            with tempfile.TemporaryFile() as said:
                subprocess.run(
                    [*self._command, *arguments],
                    check=True, timeout=10, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.DEVNULL,
                    env=os.environ | _OFFLINE,
                )  # fmt: skip
                said.seek(0)
                return said.read(_LARGEST_SAID)
        except (OSError, ValueError, subprocess.SubprocessError):
            return None


def _without_filters(names: list[str]) -> Iterator[str]:
    """Options of git by which no filter has a program; `names` are those of all that is configured."""
    for name in sorted({name.rpartition(".")[0] for name in names if name.startswith("filter.")} - {"filter"}):
        # What follows -c git cuts at the first =, which may be part of the name.
        set_to, value = ("--config-env", _NOTHING) if "=" in name else ("-c", "")
        for variable in ("clean", "smudge", "process", "required"):
            yield from (set_to, f"{name}.{variable}={value}")
