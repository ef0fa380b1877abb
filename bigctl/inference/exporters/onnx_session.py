"""An ONNX model as onnxruntime computes it; needs no other package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime

from bigctl.inference.exporters import peak_memory

if TYPE_CHECKING:  # which needs jax
    from bigctl.inference.exporters.network import Arrays

PAST = "past_key_values"
"""What the names of inputs begin with that hold keys and values of earlier tokens."""


class Loaded:
    """An ONNX model in onnxruntime on CPU.

    Args:
        content: of the file, or where it is.
        optimised: whether nodes may be fused.
    """

    runtime = f"onnxruntime {onnxruntime.__version__}"

    def __init__(self, content: bytes | Path, *, optimised: bool = True):
        self._content = content  # which the session holds as well
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Threads that spin between two calls took three quarters of a server's processor time.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not optimised:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        given = content if isinstance(content, bytes) else str(content)
        self._session = onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
        self._inputs = {each.name: each.shape for each in self._session.get_inputs()}
        self._outputs = [each.name for each in self._session.get_outputs()]

    def __call__(self, inputs: Arrays) -> Arrays:
        """Its outputs. Keys and values of earlier tokens that are not given are those of none."""
        given = {name: values for name, values in inputs.items() if name in self._inputs}
        for name, shape in self._inputs.items():
            if name not in given and name.startswith(PAST):
                sizes = [size if isinstance(size, int) else 0 for size in shape[1:]]
                given[name] = np.zeros((len(inputs["inputs"]), *sizes), np.float32)
        return dict(zip(self._outputs, self._session.run(None, given), strict=True))

    def peak_memory(self, inputs: Arrays) -> int | None:
        """Bytes, see `beside.Copy`."""
        return peak_memory.measured(lambda folder: _write(self._content, folder), inputs)


def _write(content: bytes | Path, folder: Path) -> None:
    (folder / peak_memory.ONNX).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
