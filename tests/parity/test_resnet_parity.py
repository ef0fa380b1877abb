"""ResNets here and in torch, built as torchvision's are (He et al. 2015; version 1.5 for bottlenecks): logits,
gradients of the weights and running statistics."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bigctl.config import schema
from bigctl.models.resnet import Resnet
from tests.parity import cases

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.fewer

NETS: dict[str, tuple[schema.Resnet, int]] = {
    "basic blocks for photographs": (schema.Resnet(blocks=[1, 1], width=4), 65),
    "bottlenecks of small images": (schema.Resnet(blocks=[1, 2], width=4, bottleneck=True), 9),
}


def block(inputs: int, inside: int, outputs: int, stride: int, *, bottleneck: bool) -> Any:
    """One residual block; what is named after torchvision's stands where it has it."""
    nn = torch.nn
    convs = [(inputs, inside, 1, 1), (inside, inside, 3, stride), (inside, outputs, 1, 1)]
    if not bottleneck:
        convs = [(inputs, inside, 3, stride), (inside, outputs, 3, 1)]

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for i, (a, b, size, step) in enumerate(convs, 1):
                setattr(self, f"conv{i}", nn.Conv2d(a, b, size, step, size // 2, bias=False))
                setattr(self, f"bn{i}", nn.BatchNorm2d(b))
            self.downsample = None
            if stride != 1 or inputs != outputs:
                self.downsample = nn.Sequential(
                    nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
                )

        def forward(self, x: Any) -> Any:
            y = x
            for i in range(1, len(convs) + 1):
                y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(torch.relu(y) if i > 1 else y))
            return torch.relu(y + (x if self.downsample is None else self.downsample(x)))

    return Block()


def reference(config: schema.Resnet, *, small: bool) -> Any:
    nn = torch.nn
    stem = nn.Conv2d(3, config.width, 3, 1, 1, bias=False)
    if not small:
        stem = nn.Conv2d(3, config.width, 7, 2, 3, bias=False)
    channels, blocks = config.width, []
    for stage, count in enumerate(config.blocks):
        inside = config.width * 2**stage
        outputs = inside * (4 if config.bottleneck else 1)
        for number in range(count):
            stride = 2 if stage and not number else 1
            blocks.append(block(channels, inside, outputs, stride, bottleneck=config.bottleneck))
            channels = outputs
    pool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
    end = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))
    return nn.Sequential(stem, nn.BatchNorm2d(config.width), nn.ReLU(), pool, nn.Sequential(*blocks), end)


def pairs(model: Any, net: Any) -> list[tuple[Any, Any, Any, Any]]:
    """(our convolution and norm, torch's convolution, torch's norm) in the order of the network."""
    found = [(model.stem, net[0], net[1])]
    for ours, theirs in zip(model.blocks, net[4], strict=True):
        for i, conv in enumerate(ours.convs, 1):
            found.append((conv, getattr(theirs, f"conv{i}"), getattr(theirs, f"bn{i}")))
        if ours.shortcut is not None:
            found.append((ours.shortcut, *theirs.downsample))
    return found


def copy(model: Any, net: Any) -> None:
    """Random weights and statistics into both."""
    rng = np.random.default_rng(0)
    for ours, conv, norm in pairs(model, net):
        ours.kernel[...] = jnp.asarray(conv.weight.detach().numpy().transpose(2, 3, 1, 0))
        for held, theirs in (("scale", norm.weight), ("bias", norm.bias), ("mean", norm.running_mean)):
            value = rng.normal(1.0 if held == "scale" else 0.0, 0.2, len(theirs)).astype(np.float32)
            theirs.data.copy_(torch.from_numpy(value))
            getattr(ours.norm, held)[...] = jnp.asarray(value)
    model.head.kernel[...] = jnp.asarray(net[5][2].weight.detach().numpy().T)
    model.head.bias[...] = jnp.asarray(net[5][2].bias.detach().numpy())


@pytest.mark.parametrize(
    "name", [name if name.startswith("basic") else pytest.param(name, marks=pytest.mark.slow) for name in NETS]
)
def test_resnet_is_that_of_torchvision(name: str) -> None:
    config, side = NETS[name]
    torch.manual_seed(0)
    model = nnx.jit(lambda: Resnet(config, (side, side, 3), 5, rngs=nnx.Rngs(0)))()
    net = reference(config, small=model.small)
    copy(model, net)
    images = np.random.default_rng(1).normal(size=(6, side, side, 3)).astype(np.float32)
    x, theirs = jnp.asarray(images), torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    net.eval()
    cases.assert_close("logits", np.asarray(nnx.jit(lambda model, x: model(x))(model, x)), net(theirs).detach().numpy())

    net.train()
    weights = np.random.default_rng(2).normal(size=(6, 5)).astype(np.float32)
    (net(theirs) * torch.from_numpy(weights)).sum().backward()
    structure, params, rest = nnx.split(model, nnx.Param, ...)

    def total(params: nnx.State, rest: Any) -> tuple[jax.Array, nnx.State]:
        merged = nnx.merge(structure, params, rest)
        loss = (merged(x, key=jax.random.key(0), mask=jnp.ones(6)) * weights).sum()
        return loss, nnx.state(merged, nnx.BatchStat)

    gradient, statistics = jax.jit(jax.grad(total, has_aux=True))(params, nnx.to_pure_dict(rest))
    nnx.update(model, statistics)
    found = nnx.merge(structure, gradient, rest)
    for number, (ours, conv, norm) in enumerate(pairs(found, net)):
        cases.assert_close(f"kernel {number}", ours.kernel[...], conv.weight.grad.numpy().transpose(2, 3, 1, 0))
        cases.assert_close(f"scale {number}", ours.norm.scale[...], norm.weight.grad.numpy())
    for number, (ours, _, norm) in enumerate(pairs(model, net)):
        cases.assert_close(f"mean {number}", ours.norm.mean[...], norm.running_mean.numpy())
        cases.assert_close(f"variance {number}", ours.norm.var[...], norm.running_var.numpy())
