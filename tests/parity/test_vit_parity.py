"""Vision transformers here and in transformers: logits and gradients, from the same weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bigctl.config import schema
from bigctl.models.vit import Vit
from tests.parity import cases

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

CONFIG = schema.Vit(patch=4, layers=2, width=12, heads=3, intermediate=20, eps=1e-12)


def weights(net: Any, *, gradient: bool = False) -> dict[str, np.ndarray]:
    """Those of transformers, under our names and in our layout."""
    values = {n: (p.grad if gradient else p).detach().numpy() for n, p in net.named_parameters()}
    names = {
        "q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "output", "mlp.fc1": "up", "mlp.fc2": "down",
        "layernorm_before": "attention_norm", "layernorm_after": "mlp_norm",
    }  # fmt: skip
    found = {}
    for name, value in values.items():
        if name.endswith("cls_token"):
            found["cls"] = value[0]
        elif name.endswith("position_embeddings"):
            found["position"] = value[0]
        elif name.endswith("projection.weight"):
            found["embed/kernel"] = value.transpose(2, 3, 1, 0).reshape(-1, len(value))
        elif name.endswith("projection.bias"):
            found["embed/bias"] = value
        else:
            path = name.removeprefix("vit.").replace("classifier", "head")
            path = path.replace("layernorm.", "final_norm.") if path.startswith("layernorm.") else path
            for theirs, ours in names.items():
                path = path.replace(theirs, ours)
            path = path.replace(".", "/")
            is_norm = "norm" in path
            path = path.replace("weight", "scale" if is_norm else "kernel")
            found[path] = value if is_norm or value.ndim == 1 else value.T
    return found


def test_vit_is_that_of_transformers() -> None:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
    net = ViTForImageClassification(
        ViTConfig(
            **sizes, image_size=12, patch_size=4, num_labels=5, hidden_dropout_prob=0, attention_probs_dropout_prob=0
        )
    ).eval()
    for parameter in net.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    images = np.random.default_rng(0).normal(size=(3, 12, 12, 3)).astype(np.float32)
    labels = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
    logits = net(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).logits
    (logits * torch.from_numpy(labels)).sum().backward()

    model = nnx.eval_shape(lambda: Vit(CONFIG, (12, 12, 3), 5, rngs=nnx.Rngs(0)))
    structure, state = nnx.split(model)
    theirs, wanted = weights(net), weights(net, gradient=True)
    paths = {"/".join(map(str, path)): path for path, _ in nnx.to_flat_state(state)}
    assert set(paths) == set(theirs)
    tree: dict[str, Any] = nnx.to_pure_dict(state)

    def place(name: str, value: np.ndarray) -> None:
        node: Any = tree
        for part in paths[name][:-1]:
            node = node[part]
        assert node[paths[name][-1]].shape == value.shape, name
        node[paths[name][-1]] = jnp.asarray(value)

    for name, value in theirs.items():
        place(name, value)

    def total(tree: Any) -> tuple[jax.Array, jax.Array]:
        logits = nnx.merge(structure, tree)(jnp.asarray(images))
        return (logits * labels).sum(), logits

    gradient, found = jax.jit(jax.grad(total, has_aux=True))(tree)
    cases.assert_close("logits", np.asarray(found), logits.detach().numpy())
    for name, path in paths.items():
        node: Any = gradient
        for part in path:
            node = node[part]
        if name.endswith("key/bias"):  # without effect: what is left is rounding
            assert np.abs(node).max() < 1e-4
        else:
            cases.assert_close(name, np.asarray(node), wanted[name])
