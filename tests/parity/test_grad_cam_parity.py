"""Grad-CAM here and by torch's own gradients, on the same weights."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bigctl.config import schema
from bigctl.inference.grad_cam import activations
from bigctl.models.resnet import Resnet
from bigctl.models.speed_cnn import SpeedCnn
from bigctl.models.vit import Vit
from tests.parity import cases, test_efficientnet_parity, test_speed_cnn_parity, test_vit_parity
from tests.parity.test_resnet_parity import copy, reference

torch = pytest.importorskip("torch")


def by_torch(net: Any, layer: Any, images: np.ndarray, *, tokens: bool) -> tuple[np.ndarray, np.ndarray]:
    """(the likeliest classes; Selvaraju et al. 2017, equations 1 and 2, of what comes out of a layer, relative to the
    largest)."""
    held: dict[str, Any] = {}

    def keep(_: Any, __: Any, output: Any) -> None:
        output.retain_grad()
        held["maps"] = output

    handle = layer.register_forward_hook(keep)
    found = net(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    handle.remove()
    logits = getattr(found, "logits", found)
    logits.max(1).values.sum().backward()
    maps, gradient = held["maps"].detach().numpy(), held["maps"].grad.numpy()
    if tokens:  # without the class token, as a square
        side = int((maps.shape[1] - 1) ** 0.5)
        maps, gradient = (a[:, 1:].reshape(len(a), side, side, -1) for a in (maps, gradient))
    else:
        maps, gradient = (a.transpose(0, 2, 3, 1) for a in (maps, gradient))
    speaks = np.maximum((gradient.mean((1, 2))[:, None, None] * maps).sum(-1), 0)
    assert (speaks.max((1, 2)) > 0).any()
    classes = logits.detach().numpy().argmax(1).astype(np.int32)
    return classes, speaks / np.maximum(speaks.max((1, 2), keepdims=True), 1e-30)


def ours(model: Any, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    structure, state = nnx.split(model)
    return activations(lambda s, x, added: nnx.merge(structure, s).inspect(x, added), state, images, classes)


def test_residual_networks_look_where_torch_says() -> None:
    config, images = schema.Resnet(blocks=[1, 1], width=4), np.random.default_rng(0).normal(size=(3, 8, 8, 3))
    images = images.astype(np.float32)
    torch.manual_seed(0)
    net = reference(config, small=True).eval()
    model = nnx.jit(lambda: Resnet(config, (8, 8, 3), 5, rngs=nnx.Rngs(0)))()
    copy(model, net)
    classes, wanted = by_torch(net, net[4], images, tokens=False)
    cases.assert_close("activation", ours(model, images, classes), wanted)


def test_lite0_looks_where_torch_says() -> None:
    config, images = schema.EfficientNet(width=0.25, depth=0.4, norm="batch"), pictures(3, 40)
    torch.manual_seed(0)
    net = test_efficientnet_parity.reference(config, 5).eval()
    test_efficientnet_parity.random_statistics(net)
    model = test_efficientnet_parity.filled(config, 40, 5, test_efficientnet_parity.tensors_of(net))
    classes, wanted = by_torch(net, net._last, images, tokens=False)
    cases.assert_close("activation", ours(model, images, classes), wanted)


def test_the_network_of_airbench_looks_where_torch_says() -> None:
    config, images = test_speed_cnn_parity.CONFIG, pictures(3, 20)
    torch.manual_seed(0)
    net = test_speed_cnn_parity.reference(config, 3, 5).eval()
    model = nnx.jit(lambda: SpeedCnn(config, (20, 20, 3), 5, rngs=nnx.Rngs(0)))()
    for _, mine, theirs in test_speed_cnn_parity.parts(model, net):
        mine[...] = jnp.asarray(test_speed_cnn_parity.as_ours(theirs))
    directions = np.random.default_rng(0).normal(size=(12, 2, 2, 3)).astype(np.float32)
    model.whiten.put(directions)
    kernel = np.concatenate([directions, -directions]).transpose(0, 3, 1, 2)
    net[0].weight.data.copy_(torch.from_numpy(kernel.copy()))
    classes, wanted = by_torch(net, net[-4], images, tokens=False)
    cases.assert_close("activation", ours(model, images, classes), wanted)


def pictures(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, side, side, 3)).astype(np.float32)


def test_vision_transformers_look_where_torch_says() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
    net = transformers.ViTForImageClassification(
        transformers.ViTConfig(**sizes, image_size=12, patch_size=4, num_labels=5)
    ).eval()
    for parameter in net.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    images = np.random.default_rng(0).normal(size=(3, 12, 12, 3)).astype(np.float32)
    model = nnx.jit(lambda: Vit(test_vit_parity.CONFIG, (12, 12, 3), 5, rngs=nnx.Rngs(0)))()
    nnx.update(model, cases.nested(test_vit_parity.weights(net)))
    layer = next(m for n, m in reversed(list(net.named_modules())) if n.endswith("1.layernorm_before"))
    classes, wanted = by_torch(net, layer, images, tokens=True)
    cases.assert_close("activation", ours(model, images, classes), wanted)
