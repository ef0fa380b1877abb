"""A run and what was exported of it, once a session; and how exports are changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigctl.files import sha256
from bigctl.runs.directory import SUMS
from tests import small


def made(factory: pytest.TempPathFactory) -> Path:
    """A folder with `runs/small`, on a table, its export `runs/small/jax`, and `elsewhere`, the same with a
    threshold."""
    from bigctl.inference.exporters.formats import exporter
    from bigctl.inference.trained import TrainedRun

    folder = factory.getbasetemp() / "exported"
    if not folder.exists():
        folder.mkdir()
        shutil.copytree(small.trained(factory) / "runs", folder / "runs")
        trained = TrainedRun.load(str(folder / "runs" / "small"))
        exporter("jax").write(trained, folder / "runs" / "small" / "jax")
        exporter("jax").write(trained.with_threshold(0.8), folder / "elsewhere")
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {file.name: sha256(file) for file in folder.iterdir()}


def list_anew(folder: Path, name: str) -> None:
    """Give a file of an export that was changed the digest that it has now."""
    lines = [line for line in (folder / SUMS).read_text().splitlines() if not line.endswith(f"  {name}")]
    (folder / SUMS).write_text("\n".join([*lines, f"{sha256(folder / name)}  {name}"]) + "\n")


def rewrite(folder: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON file of an export, and its digest."""
    values = json.loads((folder / name).read_text())
    change(values)
    (folder / name).write_text(json.dumps(values))
    list_anew(folder, name)
