"""The part of `bigctl verify --deep` that needs jax."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigctl.errors import RunError
from bigctl.training.checkpoints.arrays import read_arrays


def load_arrays(folder: Path, meta: Mapping[str, Any]) -> int:
    """Load all arrays of a checkpoint; gives their number.

    Raises:
        RunError: if one cannot be loaded, or is not of the shape that meta.json says.
    """
    arrays = read_arrays(folder, list(meta["shapes"]))
    for name, shape in meta["shapes"].items():
        if list(arrays[name].shape) != shape:
            raise RunError(f"{name} is {list(arrays[name].shape)} instead of {shape}", where=str(folder))
    return len(arrays)
