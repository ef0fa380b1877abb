"""Promise of `bigctl.interop.onnx.recurrent`: a layer of an LSTM is one operator; what pads a text changes nothing."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from bigctl.config import schema
from bigctl.inference.exporters.onnx_model import Loaded
from bigctl.interop.onnx.convert import Watched, to_onnx
from bigctl.models import lstm

LENGTHS = np.array([9, 4, 0, 1], np.int32)
RNG = np.random.default_rng(0)


def written(model: nnx.Module, call: Any, shapes: dict[str, Any], called: bool = True, **more: Any) -> tuple[Any, Any]:
    """A function of a model's weights and inputs, and its ONNX."""
    structure, state = nnx.split(model)
    leaves, tree = jax.tree_util.tree_flatten(state)
    weights = {f"w{i:03}": np.asarray(leaf, np.float32) for i, leaf in enumerate(leaves)}

    def function(weights: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
        whole = nnx.merge(structure, jax.tree_util.tree_unflatten(tree, [weights[key] for key in sorted(weights)]))
        return call(whole, **inputs)

    with lstm.layers_called() if called else nullcontext():
        return lambda given: jax.jit(function)(weights, given), to_onnx(function, weights, shapes, **more)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_a_layer_is_one_operator_with_the_same_states(backward: bool) -> None:
    layer = lstm.Recurrence(5, 6, backward=backward, rngs=nnx.Rngs(0))
    layer.bias[...] = RNG.normal(size=24).astype(np.float32)

    def call(layer: Any, x: Any, lengths: Any) -> dict[str, Any]:
        states, last = layer(x, jnp.arange(x.shape[0])[:, None] < lengths)
        return {"states": states, "last": last}

    time, batch = export.symbolic_shape("time, batch")
    shapes = {
        "x": jax.ShapeDtypeStruct((time, batch, 5), jnp.float32), "lengths": jax.ShapeDtypeStruct((batch,), jnp.int32),
    }  # fmt: skip
    own, model = written(layer, call, shapes)
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["LSTM"] == 1 and not kinds["Scan"] and not kinds["MatMul"]
    loaded = Loaded(model.SerializeToString())
    for rows in (slice(None), slice(1, 2), slice(2, 3)):
        given = {"x": RNG.normal(size=(9, 4, 5)).astype(np.float32)[:, rows], "lengths": LENGTHS[rows]}
        expected, found = own(given), loaded(given)
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, rtol=0, atol=2e-6, err_msg=name)


@pytest.mark.parametrize(
    ("config", "per_token"),
    [
        ({"layers": 2, "bidirectional": True, "pool": "last"}, False),
        ({"pool": "mean"}, False),
        ({"layers": 2}, True),
        ({"bidirectional": True, "window": 6}, False),
    ],
    ids=["last", "mean", "tags", "window"],
)
def test_texts_of_several_lengths_have_their_logits(config: dict[str, Any], per_token: bool) -> None:
    made = schema.Lstm(embedding=8, hidden=8, **config)
    classifier = lstm.LstmClassifier(made, 50, 3, per_token=per_token, rngs=nnx.Rngs(1))

    def call(model: Any, inputs: Any, lengths: Any) -> dict[str, Any]:
        return {"logits": model(inputs, lengths, lengths)}

    batch, length = export.symbolic_shape("batch, length", constraints=["length <= 32"])
    shapes = {
        "inputs": jax.ShapeDtypeStruct((batch, length), jnp.int32),
        "lengths": jax.ShapeDtypeStruct((batch,), jnp.int32),
    }
    own, model = written(classifier, call, shapes)
    assert sum(node.op_type == "LSTM" for node in model.graph.node) == made.layers * (1 + made.bidirectional)
    given = {"inputs": RNG.integers(0, 50, (4, 9)).astype(np.int32), "lengths": LENGTHS}
    expected, found = own(given)["logits"], Loaded(model.SerializeToString())(given)["logits"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("which", ["watched", "several at once", "kernel that is given"])
def test_what_the_operator_does_not_fit_is_written_in_steps(which: str) -> None:
    """A difference is looked for equation by equation; layers of plugins may be called in other ways."""
    layer = lstm.Recurrence(5, 6, rngs=nnx.Rngs(0))
    seen: list[Watched] | None = [] if which == "watched" else None
    shapes: dict[str, Any] = {"x": jax.ShapeDtypeStruct((4, 3, 2, 5), jnp.float32)}
    if which == "kernel that is given":
        shapes["kernel"] = jax.ShapeDtypeStruct((6, 24), jnp.float32)

    def call(layer: Any, x: Any, kernel: Any = None) -> dict[str, Any]:
        if kernel is not None:
            layer.recurrent_kernel[...] = kernel

        def one(x: Any) -> Any:
            return layer(x, jnp.ones(x.shape[:2], bool))[1]

        return {"last": jax.vmap(one)(x) if which == "several at once" else one(x[0])}

    own, model = written(layer, call, shapes, watched=seen)
    kinds = {node.op_type for node in model.graph.node}
    assert {"Scan", "MatMul"} <= kinds and "LSTM" not in kinds
    given = {name: RNG.normal(size=each.shape).astype(np.float32) for name, each in shapes.items()}
    found = Loaded(model.SerializeToString())(given)["last"]
    np.testing.assert_allclose(found, own(given)["last"], rtol=0, atol=1e-5)
