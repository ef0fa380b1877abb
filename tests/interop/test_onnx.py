"""Promise of `bigctl.interop.onnx`: onnxruntime computes what jax does, at any batch and length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from bigctl.errors import ConfigError

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
import onnxruntime

from bigctl.inference.exporters.onnx_model import Loaded
from bigctl.interop.onnx.convert import to_onnx
from bigctl.models import attention
from bigctl.models.conv import conv2d
from bigctl.models.depthwise import depthwise_conv2d
from bigctl.models.ops import gelu

RNG = np.random.default_rng(0)
W = {
    "w": RNG.normal(size=(6, 5)).astype(np.float32),
    "k": RNG.normal(size=(3, 3, 3, 4)).astype(np.float32),
}
X = RNG.normal(size=(2, 7, 6)).astype(np.float32)
PICTURES = RNG.normal(size=(2, 8, 8, 3)).astype(np.float32)
TOKENS = RNG.integers(0, 6, (2, 7)).astype(np.int32)
CONV = ("NHWC", "HWIO", "NHWC")


def heads(x: jax.Array) -> jax.Array:
    return x.reshape(*x.shape[:2], 2, 3)


def normalised(x: jax.Array, w: dict[str, jax.Array]) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred * lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6) * w["w"][:, 0] + w["w"][:, 1]


def scanned(x: jax.Array, w: dict[str, jax.Array]) -> dict[str, jax.Array]:
    def step(carry: jax.Array, now: jax.Array) -> tuple[jax.Array, jax.Array]:
        state = jnp.tanh(now @ w["w"] + carry)
        return state, 2 * state

    last, states = lax.scan(step, jnp.zeros((x.shape[0], 5)), x.swapaxes(0, 1), reverse=True)
    return {"last": last, "states": states}


SEQUENCES: dict[str, Callable[[Any, Any], Any]] = {
    "dense": lambda x, w: jax.nn.relu(x @ w["w"] + w["w"][0]),
    "softmax": lambda x, w: jax.nn.softmax(x),
    "layer norm": normalised,
    "gelu": lambda x, w: jax.nn.gelu(x, approximate=False) + jax.nn.gelu(x),
    "activations": lambda x, w: jax.nn.silu(x) + jax.nn.elu(x) + jax.nn.leaky_relu(x) + jnp.tanh(x),
    "mask": lambda x, w: jnp.where((jnp.arange(x.shape[1]) < 3)[None, :, None], x, -1).sum(1) / x.shape[1],
    "attention": lambda x, w: jnp.einsum("bqhd,bkhd->bhqk", heads(x), heads(x)),
    "grouped": lambda x, w: jnp.einsum("blghd,bgrd->bghlr", heads(x)[:, :, None], heads(x).swapaxes(1, 2)[:, :1]),
    "weighted": lambda x, w: jnp.einsum("bl,blw->bw", x[..., 0], x),
    "first": lambda x, w: x[:, 0] + w["w"][: x.shape[1]][0, 0],
    "reversed": lambda x, w: x[:, ::-1],
    "scan": scanned,
    "while": lambda x, w: lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, 2 * c[1]), (0, x))[1],
    "cond": lambda x, w: lax.cond(x.sum() > 0, lambda x: 2 * x, lambda x: x - 1, x),
    "choices": lambda x, w: {"a": x.argmax(-1), "b": x.max(1), "c": jnp.clip(x, -0.5, 0.5), "d": x.min()},
    "sums": lambda x, w: {"p": x.prod(2), "a": jnp.cumsum(x, 1), "b": (x > 2).any(1), "c": (x > -1).all(2)},
    "joined": lambda x, w: jnp.concatenate([jnp.broadcast_to(w["w"][:1, :1], (x.shape[0], 1, 6)), x], 1),
    "padded": lambda x, w: jnp.pad(x, ((0, 0), (1, 2), (0, 0))) + 0 * sum(jnp.split(x, 3, -1)).sum(),
    "places": lambda x, w: lax.dynamic_slice_in_dim(x, x.argmax() % 4, 2, 2),
    "written": lambda x, w: lax.dynamic_update_slice_in_dim(x, x[..., :2], x.argmax() % 4, 2),
    "powers": lambda x, w: x**3 + jnp.abs(x) ** 0.5 + jnp.exp2(x) + x % 0.5 + jnp.round(x) + jnp.sign(x) * jnp.expm1(x),
    "numbers": lambda x, w: jnp.log1p(jnp.abs(x)) + jnp.cos(x) * jnp.sin(x) + lax.erf(x) + lax.rsqrt(x * x + 1),
    "logic": lambda x, w: (jnp.isfinite(x) & ~(x > 0)) | (x != x[:, :1]),
    "whole numbers": lambda x, w: (x * 10).astype(jnp.int32) // 3 + jnp.floor(x).astype(jnp.int32),
    "remat": lambda x, w: jax.checkpoint(lambda x: jnp.sin(x) @ w["w"])(x),
}  # fmt: skip
IMAGES: dict[str, Callable[[Any, Any], Any]] = {
    "convolution": lambda x, w: lax.conv_general_dilated(x, w["k"], (2, 2), "SAME", dimension_numbers=CONV),
    "max pool": lambda x, w: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
    "overlapping": lambda x, w: lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    ),
    "sum pool": lambda x, w: lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
    "patches": lambda x, w: x.reshape(x.shape[0], 2, 4, 2, 4, 3).swapaxes(2, 3).reshape(x.shape[0], 4, -1),
    "flat": lambda x, w: x.reshape(x.shape[0], -1),
    "strided": lambda x, w: x[:, ::2, ::2] @ w["k"][0, 0],
}


def converted(function: Callable[[Any, Any], Any], given: np.ndarray, texts: bool) -> Any:
    batch, length = export.symbolic_shape("batch, length", constraints=["length <= 9"])
    shape = (batch, length, *given.shape[2:]) if texts else (batch, *given.shape[1:])

    def named(w, inputs):
        found = function(inputs["x"], w)
        return found if isinstance(found, dict) else {"y": found}

    return named, to_onnx(named, W, {"x": jax.ShapeDtypeStruct(shape, given.dtype)})


@pytest.mark.parametrize("name", [*SEQUENCES, *IMAGES, "lookup"])
def test_onnxruntime_computes_what_jax_does(name):
    texts = name not in IMAGES
    given = TOKENS if name == "lookup" else X if texts else PICTURES
    function = (lambda x, w: w["w"][x]) if name == "lookup" else {**SEQUENCES, **IMAGES}[name]
    named, model = converted(function, given, texts)
    assert not {"Einsum"} & {node.op_type for node in model.graph.node}
    loaded = Loaded(model.SerializeToString())
    for x in (given, given[:1, :5] if texts else given[:1]):
        expected, found = jax.jit(named)(W, {"x": x}), loaded({"x": x})
        for key, values in expected.items():
            np.testing.assert_allclose(found[key], values, rtol=2e-5, atol=2e-5, err_msg=key)
            assert found[key].dtype == values.dtype


def test_what_onnx_lacks_is_named_with_its_place():
    with pytest.raises(ConfigError, match=r"test_onnx\.py:\d+.*: onnx: sort cannot be expressed \(--format jax"):
        converted(lambda x, w: jnp.sort(x, axis=-1), X, True)


@pytest.mark.parametrize("activation", [gelu, partial(jax.nn.gelu, approximate=False)], ids=["ours", "jax"])
def test_onnxruntime_computes_a_gelu_at_once(tmp_path, activation):
    _, model = converted(lambda x, w: activation(x @ w["w"] + w["w"][0]), X, True)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "model.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert kinds == ["MatMul", "BiasGelu"]


def test_attention_over_everything_is_two_products_without_a_mask():
    """And no transposition but those of its inputs and its output, which take longer than the products of a small
    model."""

    def attend(x: jax.Array, w: dict[str, jax.Array]) -> jax.Array:
        q = k = v = heads(x)
        return attention.full_attention(q, k, v)

    _, model = converted(attend, X, True)
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["MatMul"] == 2 and kinds["Softmax"] == 1 and kinds["Transpose"] == 4
    assert not {"Where", "Expand"} & set(kinds)


@pytest.mark.parametrize("whole", [True, False])
def test_a_choice_that_is_none_is_left_out(whole: bool):
    _, model = converted(lambda x, w: jnp.where(jnp.full((1, 1, 6), whole), 2 * x, x - 1), X, True)
    assert [node.op_type for node in model.graph.node] == ["Mul" if whole else "Sub", "Identity"]


@pytest.mark.parametrize(
    ("function", "groups"),
    [
        (lambda x, w: conv2d(x[:, :2, :2], w["k"], "same"), 1),
        (lambda x, w: depthwise_conv2d(x, w["k"][:, :, :1, :3]), 3),
    ],
    ids=["kernel larger than its picture", "depthwise"],
)
def test_what_a_cpu_computes_otherwise_is_written_once_and_as_the_ordinary_operation(function, groups):
    _, model = converted(function, PICTURES, True)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Conv") == 1 and not {"If", "MatMul"} & {*kinds}
    (conv,) = [node for node in model.graph.node if node.op_type == "Conv"]
    assert next((a.i for a in conv.attribute if a.name == "group"), 1) == groups


def test_products_become_matmul_and_what_weights_alone_decide_is_computed_before():
    _, model = converted(lambda x, w: jax.nn.softmax(normalised(x, w) @ (w["w"] * 2 + 1)), X, True)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("MatMul") == 1 and kinds.count("Softmax") == 1 and "Exp" not in kinds
    assert {tuple(t.dims) for t in model.graph.initializer} >= {(6, 5)} and kinds.count("Mul") == 1
    assert model.opset_import[0].version == 18
