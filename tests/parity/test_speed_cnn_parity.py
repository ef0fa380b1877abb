"""The network of airbench94 here and in torch: logits, gradients of the weights and running statistics."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bigctl.config import schema
from bigctl.models.speed_cnn import SpeedCnn
from tests.parity import cases

torch = pytest.importorskip("torch")

CONFIG = schema.SpeedCnn(widths=[9, 6])


def reference(config: schema.SpeedCnn, channels: int, outputs: int) -> Any:
    """As `airbench94.py` has it, but for the approximation of GELU and the maximum over all that is left."""
    nn = torch.nn

    def norm(width: int) -> Any:
        made = nn.BatchNorm2d(width, momentum=1 - config.norm_momentum, eps=1e-5)
        made.weight.requires_grad = False
        return made

    gelu = nn.GELU(approximate="tanh")
    inputs = 8 * channels
    layers = [nn.Conv2d(channels, inputs, 2), gelu]
    for width in config.widths:
        layers += [nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.MaxPool2d(2), norm(width), gelu]
        layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), norm(width), gelu]
        inputs = width
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(inputs, outputs, bias=False))


def parts(model: Any, net: Any) -> list[tuple[str, Any, Any]]:
    """(name, what is trained here, what is in torch) in the order of the network."""
    found = [("whiten bias", model.whiten.bias, net[0].bias)]
    for number, group in enumerate(model.groups):
        first, first_norm, second, second_norm = (net[2 + 7 * number + place] for place in (0, 2, 4, 5))
        found += [(f"{number} first", group.first, first.weight), (f"{number} second", group.second, second.weight)]
        for name, ours, theirs in (("first", group.first_norm, first_norm), ("second", group.second_norm, second_norm)):
            found += [(f"{number} {name} bias", ours.bias, theirs.bias)]
    return [*found, ("head", model.head.kernel, net[-1].weight)]


def norms(model: Any, net: Any) -> list[tuple[Any, Any]]:
    ours = [norm for group in model.groups for norm in (group.first_norm, group.second_norm)]
    return list(zip(ours, (layer for layer in net if isinstance(layer, torch.nn.BatchNorm2d)), strict=True))


def as_ours(values: Any) -> np.ndarray:
    array = values.detach().numpy()
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def test_speed_cnn_is_that_of_airbench() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = nnx.jit(lambda: SpeedCnn(CONFIG, (11, 9, 3), 5, rngs=nnx.Rngs(0)))()
    net = reference(CONFIG, 3, 5)
    for _, ours, theirs in parts(model, net):
        theirs.data.copy_(torch.from_numpy(rng.normal(0, 0.3, theirs.shape).astype(np.float32)))
        ours[...] = jnp.asarray(as_ours(theirs))
    for ours, theirs in norms(model, net):
        theirs.running_mean.copy_(torch.from_numpy(rng.normal(0, 0.3, len(theirs.bias)).astype(np.float32)))
        ours.mean[...] = jnp.asarray(theirs.running_mean.numpy())
    directions = rng.normal(size=(12, 2, 2, 3)).astype(np.float32)
    model.whiten.put(directions)
    kernel = np.concatenate([directions, -directions]).transpose(0, 3, 1, 2)
    net[0].weight.data.copy_(torch.from_numpy(kernel))
    net[0].weight.requires_grad = False

    images = rng.normal(size=(6, 11, 9, 3)).astype(np.float32)
    x, theirs = jnp.asarray(images), torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    net.eval()
    logits = CONFIG.output_factor * net(theirs)
    cases.assert_close("logits", np.asarray(nnx.jit(lambda model, x: model(x))(model, x)), logits.detach().numpy())

    net.train()
    weights = rng.normal(size=(6, 5)).astype(np.float32)
    (CONFIG.output_factor * net(theirs) * torch.from_numpy(weights)).sum().backward()
    structure, params, rest = nnx.split(model, nnx.Param, ...)

    def total(params: nnx.State, rest: Any) -> tuple[jax.Array, nnx.State]:
        merged = nnx.merge(structure, params, rest)
        loss = (merged(x, key=jax.random.key(0), mask=jnp.ones(6)) * weights).sum()
        return loss, nnx.state(merged, nnx.BatchStat)

    gradient, statistics = jax.jit(jax.grad(total, has_aux=True))(params, nnx.to_pure_dict(rest))
    nnx.update(model, statistics)
    for name, ours, weight in parts(nnx.merge(structure, gradient, rest), net):
        cases.assert_close(name, ours[...], as_ours(weight.grad))
    for number, (ours, norm) in enumerate(norms(model, net)):
        cases.assert_close(f"mean {number}", ours.mean[...], norm.running_mean.numpy())
        cases.assert_close(f"variance {number}", ours.var[...], norm.running_var.numpy())
    cases.assert_close("whitening", model.whiten.kernel[...], kernel.transpose(2, 3, 1, 0))
