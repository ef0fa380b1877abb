"""From a jaxpr to an ONNX graph: one small function a primitive, see `convert`."""
