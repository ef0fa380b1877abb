"""What a run was made with: code commit and dirty diff, packages, machine."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from bigctl.runs.redaction import without_secrets

PACKAGES = ("bigctl", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "hydra-core", "omegaconf", "numpy")
_LARGEST_DIFF = 200_000
"""Of what is kept [characters]."""
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
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return {}
    own = (f":(exclude){name}" for name in _OUTPUT)
    changes = _git(folder, "status", "--porcelain", "--ignore-submodules=dirty", "--", ":/", *own)
    if changes is None:  # more files than can be looked through in time
        changes = _git(folder, "status", "--porcelain", "--ignore-submodules=dirty", "--untracked-files=no")
    found = {"commit": commit.strip(), "dirty": bool(changes)}
    if not diff:
        return found
    text = _git(folder, "diff", *_OWN_FORM, "HEAD") or ""
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
    text = " x ".join(f"{axis} {size}" for axis, size in mesh.items())
    return f"{text} in {processes} processes" if processes > 1 else text


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says, as far as it is kept; None if it fails or takes too long.

    A checkout may come from anywhere, and its configuration can name programs: none of them is run, no index written.
    """
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"]
    try:
        with tempfile.TemporaryFile() as said:
            subprocess.run(
                [*command, "-C", str(folder), *arguments],
                check=True, timeout=10, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            said.seek(0)
            return said.read(4 * _LARGEST_DIFF).decode("utf-8", "replace")
    except (OSError, subprocess.SubprocessError):
        return None
