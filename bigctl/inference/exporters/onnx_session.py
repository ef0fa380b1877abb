"""An ONNX model as onnxruntime computes it; needs no other package."""

from __future__ import annotations

import onnxruntime

from bigctl.inference.exporters.network import Arrays


class Loaded:
    """An ONNX model in onnxruntime on CPU.

    Args:
        content: of the file.
        optimised: whether nodes may be fused.
    """

    def __init__(self, content: bytes, *, optimised: bool = True):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Threads that spin between two calls took three quarters of a server's processor time.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not optimised:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self._inputs = {each.name for each in self._session.get_inputs()}
        self._outputs = [each.name for each in self._session.get_outputs()]

    def __call__(self, inputs: Arrays) -> Arrays:
        given = {name: values for name, values in inputs.items() if name in self._inputs}
        return dict(zip(self._outputs, self._session.run(None, given), strict=True))
