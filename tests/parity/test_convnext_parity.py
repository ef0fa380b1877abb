"""ConvNeXt here and in transformers (and timm, torchvision where they are): logits and gradients, from the same
weights."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bigctl.config import schema
from bigctl.models.convnext import Convnext
from tests.parity import cases

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

CONFIG = schema.Convnext(blocks=[1, 2], widths=[6, 10], patch=2, layer_scale=0.5)
_NAMES = {
    r"^convnext\.embeddings\.patch_embeddings": "stem/dense", r"^convnext\.embeddings\.layernorm": "stem_norm",
    r"^convnext\.layernorm": "final_norm", r"^classifier": "head",
}  # fmt: skip
_INSIDE = {"dwconv.weight": "kernel", "dwconv.bias": "bias", "layer_scale_parameter": "scale"}
_LINEAR = {"layernorm": "norm", "pwconv1": "up", "pwconv2": "down"}


def our_name(theirs: str, blocks: list[int]) -> str:
    for pattern, ours in _NAMES.items():
        if re.match(pattern, theirs):
            return f"{ours}/{leaf(ours, theirs)}"
    stage, rest = re.fullmatch(r"convnext\.encoder\.stages\.(\d+)\.(.+)", theirs).groups()  # type: ignore[union-attr]
    first = sum(blocks[: int(stage)])
    if match := re.match(r"downsampling_layer\.(\d)", rest):
        ours = ("shrink_norm", "shrink/dense")[int(match[1])]
        return f"blocks/{first}/{ours}/{leaf(ours, theirs)}"
    number, inner = re.fullmatch(r"layers\.(\d+)\.(.+)", rest).groups()  # type: ignore[union-attr]
    block = f"blocks/{first + int(number)}"
    if inner in _INSIDE:
        return f"{block}/{_INSIDE[inner]}"
    ours = _LINEAR[inner.partition(".")[0]]
    return f"{block}/{ours}/{leaf(ours, theirs)}"


def leaf(ours: str, theirs: str) -> str:
    return "bias" if theirs.endswith("bias") else "scale" if "norm" in ours else "kernel"


def laid_out(ours: str, value: np.ndarray) -> np.ndarray:
    """In our layout: [rows, columns, in, out], cells of pixels as one axis, linear layers [in, out]."""
    if value.ndim == 4:
        turned = value.transpose(2, 3, 1, 0)
        return turned.reshape(-1, len(value)) if "dense" in ours else turned
    return value.T


def test_convnext_is_that_of_transformers() -> None:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    torch.manual_seed(0)
    net = ConvNextForImageClassification(
        ConvNextConfig(
            depths=[1, 2], hidden_sizes=[6, 10], num_stages=2, patch_size=2, num_labels=5, layer_scale_init_value=0.5,
            layer_norm_eps=CONFIG.eps,
        )
    ).eval()  # fmt: skip
    for parameter in net.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    images = np.random.default_rng(0).normal(size=(3, 11, 12, 3)).astype(np.float32)
    weights = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
    logits = net(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).logits
    (logits * torch.from_numpy(weights)).sum().backward()
    case = {"outputs/logits": logits.detach().numpy()}
    for name, parameter in net.named_parameters():
        ours = our_name(name, CONFIG.blocks)
        case[f"params/{ours}"] = laid_out(ours, parameter.detach().numpy())
        case[f"grads/{ours}"] = laid_out(ours, parameter.grad.numpy())

    model = nnx.eval_shape(lambda: Convnext(CONFIG, (11, 12, 3), 5, rngs=nnx.Rngs(0)))
    structure, params, rest = cases.filled(model, case)

    def total(params: Any) -> tuple[jax.Array, jax.Array]:
        logits = nnx.merge(structure, params, rest)(jnp.asarray(images))
        return (logits * weights).sum(), logits

    gradient, found = jax.jit(jax.grad(total, has_aux=True))(params)
    cases.assert_close("logits", found, case["outputs/logits"])
    expected, flat = cases.part(case, "grads"), cases.flatten(gradient)
    assert set(flat) == set(expected)
    for name, theirs in expected.items():
        cases.assert_close(name, flat[name], theirs)
