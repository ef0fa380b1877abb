"""What a model takes of memory to be loaded and to answer a batch: measured in a process that does nothing else, see
`memory_process`. What that has taken before, Python and the runtime, is not counted, nor what jax needs to compile.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

ONNX, JAX, WEIGHTS, INPUTS = "model.onnx", "model.jax", "weights.npz", "inputs.npz"
PATIENCE = 300
"""Seconds that the process may take."""


def measured(write: Callable[[Path], None], inputs: Mapping[str, np.ndarray]) -> int | None:
    """Bytes that a model takes at most for a batch, its weights among them; None where nothing tells.

    Args:
        write: writes the model into a folder: `ONNX`, or `JAX` and `WEIGHTS`.
        inputs: the batch, by name.
    """
    if not Path("/proc/self/clear_refs").exists():  # Linux alone tells
        return None
    path = os.pathsep.join(each for each in sys.path if each)
    try:
        with tempfile.TemporaryDirectory(prefix="bigctl-memory-") as folder:
            write(Path(folder))
            np.savez(Path(folder) / INPUTS, **inputs)  # type: ignore[arg-type]
            command = [sys.executable, "-P", "-m", "bigctl.inference.exporters.memory_process", folder]
            ended = subprocess.run(
                command, capture_output=True, text=True, timeout=PATIENCE, check=False,
                env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path},
            )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired, NotImplementedError, ValueError):
        # A full disk, or a model with parts of a plugin that jax cannot write, is no reason to measure nothing else.
        return None
    return int(ended.stdout) if ended.returncode == 0 and ended.stdout.strip().isdigit() else None
