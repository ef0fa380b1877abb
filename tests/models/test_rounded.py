"""Promises of `rounded`: it computes with the integers that onnxruntime does, no example depends on another, and
gradients pass."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bigctl.models import rounded
from bigctl.models.layers import Dense

DRAWN = np.random.default_rng(0)


def test_weights_are_integers_with_a_scale_a_column_and_of_tables_a_row():
    values = DRAWN.normal(size=(12, 5)).astype(np.float32)
    values[:, 3] = 0
    params = {"up": {"kernel": values, "bias": values[0]}, "token": {"embedding": values}, "lone": {"scale": values}}
    found = rounded.rounded_weights(params)
    steps = np.abs(values).max(0) / 64
    whole = np.asarray(found["up"]["kernel"]) / np.where(steps > 0, steps, 1)
    np.testing.assert_allclose(whole, np.rint(whole), atol=1e-4)
    assert np.abs(whole).max() == pytest.approx(64) and (found["up"]["kernel"][:, 3] == 0).all()
    rows = np.asarray(found["token"]["embedding"]) / (np.abs(values).max(1, keepdims=True) / 127)
    np.testing.assert_allclose(rows, np.rint(rows), atol=1e-4)
    assert found["up"]["bias"] is params["up"]["bias"] and found["lone"]["scale"] is values
    tables = rounded.rounded_weights({"position": {"embedding": values}})
    assert tables["position"]["embedding"] is values  # sliced, not looked up: the export leaves it


def test_what_a_layer_is_given_becomes_what_onnxruntime_makes_of_each_row():
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    node = onnx.helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "scale", "zero"])
    shape = onnx.helper.make_tensor_value_info("x", 1, [None])
    outs = [
        onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in (("y", 2), ("scale", 1), ("zero", 2))
    ]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [shape], outs), ir_version=9)
    model.opset_import[0].version = 18
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = DRAWN.normal(size=(4, 33)).astype(np.float32) + np.array([[0], [9], [-9], [0]], np.float32)
    x[3] = 0
    found = np.asarray(rounded.rounded_inputs(x))
    for row, ours in zip(x, found, strict=True):
        whole, scale, zero = session.run(None, {"x": row})
        np.testing.assert_allclose(ours, (whole.astype(np.float32) - zero) * scale, atol=1e-5)
    assert np.array_equal(np.asarray(rounded.rounded_inputs(x[1:2])), found[1:2])


@pytest.mark.parametrize("layer", [Dense, nnx.Linear])
def test_a_layer_rounds_and_its_gradient_is_that_of_the_rounded_product(layer):
    model = rounded.rounding(layer(7, 3, rngs=nnx.Rngs(0)))
    x, dy = (DRAWN.normal(size=(5, n)).astype(np.float32) for n in (7, 3))
    graph, state = nnx.split(model)
    params = nnx.to_pure_dict(state)

    def out(params, x):
        return nnx.merge(graph, rounded.rounded_weights(params))(x)

    kernel, given = rounded.rounded_weights(params)["kernel"], rounded.rounded_inputs(x)
    np.testing.assert_allclose(out(params, x), given @ kernel + params["bias"], rtol=1e-6)
    into_params, into_x = jax.vjp(out, params, jnp.asarray(x))[1](jnp.asarray(dy))
    np.testing.assert_allclose(into_params["kernel"], np.asarray(given).T @ dy, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(into_x, dy @ np.asarray(kernel).T, rtol=1e-5, atol=1e-6)
