"""Inception-v3 here, in torch as the paper's blocks are written down there, and in torchvision where it is."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bigctl.config import schema
from bigctl.models.inception import ConvNorm, Inception
from bigctl.training.checkpoints.arrays import flatten
from tests.parity import cases

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.fewer


def by_torch(values: dict[str, Any], x: Any) -> Any:
    """Logits in inference: the blocks A to E of the paper, each unit by its path here."""
    functional = torch.nn.functional

    def unit(path: str, x: Any, padding: Any = 0, stride: int = 1) -> Any:
        kernel = values[f"{path}/kernel"].permute(3, 2, 0, 1)
        y = functional.conv2d(x, kernel, stride=stride, padding=padding)
        mean, var, scale, bias = (values[f"{path}/norm/{name}"] for name in ("mean", "var", "scale", "bias"))
        return torch.relu(functional.batch_norm(y, mean, var, scale, bias, False, 0.1, 1e-3))

    def chain(block: int, branch: int, x: Any, *paddings: Any, stride: int = 1) -> Any:
        for number, padding in enumerate(paddings):
            last = number == len(paddings) - 1
            x = unit(f"blocks/{block}/branches/{branch}/{number}", x, padding, stride if last else 1)
        return x

    def fork(block: int, branch: int, first: int, x: Any) -> Any:
        path = f"blocks/{block}/branches/{branch}"
        return torch.cat([unit(f"{path}/{first}", x, (0, 1)), unit(f"{path}/{first + 1}", x, (1, 0))], 1)

    wide, high = (0, 3), (3, 0)
    x = unit("stem/2", unit("stem/1", unit("stem/0", x, stride=2)), 1)
    x = unit("stem/4", unit("stem/3", functional.max_pool2d(x, 3, 2)))
    x = functional.max_pool2d(x, 3, 2)
    for block in range(11):
        mean = functional.avg_pool2d(x, 3, 1, 1)
        if block < 3:
            parts = [
                chain(block, 0, x, 0),
                chain(block, 1, x, 0, 2),
                chain(block, 2, x, 0, 1, 1),
                chain(block, 3, mean, 0),
            ]
        elif block == 3:
            parts = [chain(3, 0, x, 0, stride=2), chain(3, 1, x, 0, 1, 0, stride=2), functional.max_pool2d(x, 3, 2)]
        elif block < 8:
            parts = [
                chain(block, 0, x, 0), chain(block, 1, x, 0, wide, high), chain(block, 2, x, 0, high, wide, high, wide),
                chain(block, 3, mean, 0),
            ]  # fmt: skip
        elif block == 8:
            parts = [
                chain(8, 0, x, 0, 0, stride=2), chain(8, 1, x, 0, wide, high, 0, stride=2),
                functional.max_pool2d(x, 3, 2),
            ]  # fmt: skip
        else:
            parts = [
                chain(block, 0, x, 0), fork(block, 1, 1, chain(block, 1, x, 0)),
                fork(block, 2, 2, chain(block, 2, x, 0, 1)), chain(block, 3, mean, 0),
            ]  # fmt: skip
        x = torch.cat(parts, 1)
    return x.mean((2, 3)) @ values["head/kernel"] + values["head/bias"]


@pytest.mark.slow
def test_inception_is_that_of_the_paper_in_torch() -> None:
    config = schema.Inception(width=0.05, dropout=0.0)
    structure, params, rest = nnx.split(
        nnx.eval_shape(lambda: Inception(config, (75, 80, 3), 5, rngs=nnx.Rngs(0))), nnx.Param, ...
    )
    random = np.random.default_rng(0)
    trees = []
    for part in (params, rest):
        drawn = {}
        for name, leaf in flatten(nnx.to_pure_dict(part)).items():
            value = random.normal(size=leaf.shape).astype(np.float32)
            scale = 1.4 / np.sqrt(np.prod(leaf.shape[:-1])) if name.endswith("kernel") else 0.2
            drawn[name] = np.abs(value) + 0.5 if name.endswith(("var", "scale")) else value * np.float32(scale)
        trees.append(drawn)
    images = random.normal(size=(2, 75, 80, 3)).astype(np.float32)
    weights = random.normal(size=(2, 5)).astype(np.float32)
    theirs = {name: torch.from_numpy(value) for name, value in {**trees[0], **trees[1]}.items()}
    for name in trees[0]:
        theirs[name].requires_grad_()
    logits = by_torch(theirs, torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    (logits * torch.from_numpy(weights)).sum().backward()

    def total(params: Any, rest: Any) -> tuple[jax.Array, jax.Array]:
        logits = nnx.merge(structure, params, rest)(jnp.asarray(images))
        return (logits * weights).sum(), logits

    gradient, found = jax.jit(jax.grad(total, has_aux=True))(*(cases.nested(tree) for tree in trees))
    cases.assert_close("logits", found, logits.detach().numpy())
    for name, value in flatten(gradient).items():
        cases.assert_close(name, value, theirs[name].grad.numpy())


@pytest.mark.slow
def test_inception_is_that_of_torchvision() -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    net = torchvision.models.Inception3(num_classes=5, aux_logits=False, init_weights=False).eval()
    model = nnx.eval_shape(lambda: Inception(schema.Inception(), (75, 75, 3), 5, rngs=nnx.Rngs(0)))
    units = [m for _, m in net.named_modules() if type(m).__name__ == "BasicConv2d"]
    ours = [m for _, m in nnx.iter_modules(model) if isinstance(m, ConvNorm)]
    assert len(units) == len(ours) == 94
    ordered = [*model.stem, *(conv for block in model.blocks for branch in block.branches for conv in branch)]
    for conv, unit in zip(ordered, units, strict=True):
        kernel = unit.conv.weight.detach().numpy().transpose(2, 3, 1, 0)
        assert conv.kernel.shape == kernel.shape
        conv.kernel[...] = jnp.asarray(kernel)
        for held, value in (
            ("scale", unit.bn.weight),
            ("bias", unit.bn.bias),
            ("mean", unit.bn.running_mean),
            ("var", unit.bn.running_var),
        ):
            value.data.add_(0.1 * torch.rand_like(value))
            getattr(conv.norm, held)[...] = jnp.asarray(value.detach().numpy())
    model.head.kernel[...] = jnp.asarray(net.fc.weight.detach().numpy().T)
    model.head.bias[...] = jnp.asarray(net.fc.bias.detach().numpy())
    images = np.random.default_rng(0).normal(size=(1, 75, 75, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = net(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    cases.assert_close("logits", nnx.jit(lambda model, x: model(x))(model, jnp.asarray(images)), wanted)
