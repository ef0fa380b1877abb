"""What becomes of a preparation, for tests that hold one way of it against another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigctl.config import schema
from bigctl.data import origins
from bigctl.data.dataset import SPLITS, Dataset
from bigctl.data.preparation import prepare
from bigctl.errors import DataError


def outcome(config: schema.Data, options: Mapping[str, Any]) -> Dataset | str:
    """A set made anew, with the places its rows come from and the names of its files in `info`; or what is wrong."""
    try:
        made = prepare.prepare(config, rebuild=True, **options)
    except DataError as error:
        return str(error)
    made.info["origins"] = [origins.read(made.path, split, range(made.size(split))) for split in SPLITS]
    made.info["files"] = sorted(file.name for file in Path(made.path).iterdir() if file.name != "sound.json")
    return made
