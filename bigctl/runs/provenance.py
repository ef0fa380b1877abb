"""What a run was made with: code commit and dirty diff, packages, machine."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("bigctl", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "hydra-core", "omegaconf", "numpy")
_LARGEST_DIFF = 200_000


def made_with(folder: Path) -> dict[str, Any]:
    """All of it, for run.json; `folder` is where code of the user's own is."""
    return {"packages": packages(), "code": code(folder), "machine": machine()}


def packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def code(folder: Path) -> dict[str, Any]:
    """Commit and uncommitted changes of the git checkout that `folder` is in; empty outside of one."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {}
    diff = _git(folder, "diff", "HEAD") or ""
    cut = len(diff) > _LARGEST_DIFF
    return {"commit": commit.strip(), "dirty": bool(diff), "diff": diff[:_LARGEST_DIFF], "diff_cut": cut}


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
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
