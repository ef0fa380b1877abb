"""A run that tells two kinds of rows apart, trained once a session on columns that are made here."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bigctl

KEYS = ["recipe=mlp_cls", "data.label=kind", "train.steps=30", "model.hidden=[8]", "train.batch_size=32"]
KEYS += ["optimizer.lr=0.05", "schedule=constant", "train.tensorboard=false"]


def columns(count: int = 160, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    kind = np.arange(count) % 3 == 0
    place = np.where(rng.random(count) < 0.5, "north", "south")
    return {"size": kind + rng.normal(0, 0.4, count), "place": place, "kind": np.where(kind, "large", "small")}


def write(path: Path, rows: dict[str, Any], **more: list[Any]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow([*more, *rows])
        writer.writerows(zip(*more.values(), *rows.values(), strict=True))


def trained(factory: pytest.TempPathFactory) -> Path:
    """A folder with `rows.csv` and the run `runs/small` on it."""
    folder = factory.getbasetemp() / "small"
    if not folder.exists():
        (folder / "runs").mkdir(parents=True)
        write(folder / "rows.csv", columns())
        overrides = [*KEYS, "data=csv", f"data.path={folder / 'rows.csv'}"]
        bigctl.train(overrides, folder / "runs" / "small", quiet=True)
    return folder
