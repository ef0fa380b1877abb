"""Folders of ResNet, ViT and ConvNeXt that transformers, timm and torchvision write: the same logits here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bigctl.config import schema
from bigctl.errors import ConfigError, DataError
from bigctl.interop import loading, sources
from bigctl.interop.pictures import STRETCH, Pixels
from bigctl.training.checkpoints.arrays import flatten
from tests.parity import cases

torch = pytest.importorskip("torch")

MODELS: dict[str, type[schema.Model]] = {
    "resnet": schema.Resnet, "vit": schema.Vit, "convnext": schema.Convnext,
}  # fmt: skip
NAMES = ["ant", "bee", "cat"]


def transformers_net(name: str) -> Any:
    transformers = pytest.importorskip("transformers")
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
    if name.startswith("resnet"):
        layer, sizes = ("basic", [4, 8]) if name == "resnet" else ("bottleneck", [16, 32])
        config = transformers.ResNetConfig(
            embedding_size=4, hidden_sizes=sizes, depths=[1, 2], layer_type=layer, **labels
        )
        return transformers.ResNetForImageClassification(config)
    if name == "vit":
        sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
        config = transformers.ViTConfig(**sizes, image_size=64, patch_size=16, layer_norm_eps=1e-3, **labels)
        return transformers.ViTForImageClassification(config)
    config = transformers.ConvNextConfig(
        depths=[1, 2], hidden_sizes=[6, 10], num_stages=2, layer_norm_eps=1e-3, layer_scale_init_value=0.5, **labels
    )
    return transformers.ConvNextForImageClassification(config)


def timm_net(name: str) -> Any:
    timm = pytest.importorskip("timm")
    made = {
        "vit": ("vit_tiny_patch16_224", {"img_size": 64, "depth": 1}),
        "vit with registers": (
            "vit_tiny_patch16_224", {"img_size": 64, "depth": 1, "reg_tokens": 2, "no_embed_class": True}
        ),
        "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (4, 8, 8, 8)}),
    }  # fmt: skip
    if name == "resnet":
        from timm.models.resnet import BasicBlock, ResNet

        return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3)
    preset, options = made[name]
    return timm.create_model(preset, num_classes=3, **options)


def torchvision_net(name: str) -> Any:
    torchvision = pytest.importorskip("torchvision")
    if name == "resnet":
        return torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=3)
    if name == "vit":
        sizes = {"num_layers": 1, "num_heads": 3, "hidden_dim": 192, "mlp_dim": 24}
        return torchvision.models.VisionTransformer(image_size=64, patch_size=16, num_classes=3, **sizes)
    block = torchvision.models.convnext.CNBlockConfig
    return torchvision.models.ConvNeXt([block(4, 8, 1), block(8, None, 2)], num_classes=3)


def moved(net: Any) -> Any:
    """A net whose parameters and statistics are none of those it began with."""
    torch.manual_seed(0)
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        if tensor.is_floating_point():
            tensor.data.add_(0.1 * torch.randn_like(tensor).abs() if "var" in name else 0.1 * torch.randn_like(tensor))
    return net.eval()


def saved(net: Any, folder: Path) -> Path:
    if hasattr(net, "save_pretrained"):
        net.save_pretrained(folder)
    else:
        from safetensors.torch import save_file

        folder.mkdir()
        save_file(
            {name: tensor.contiguous() for name, tensor in net.state_dict().items()}, folder / "model.safetensors"
        )
    return folder


def logits_here(folder: Path, images: np.ndarray) -> np.ndarray:
    source = sources.locate_source(str(folder))
    sizes = {key: value for key, value in source.architecture.items() if key != "eps"}
    config = sources.fill_architecture(MODELS[source.model](init_from=str(folder), **sizes), source)
    model = nnx.eval_shape(lambda: config.build(images.shape[1:], len(NAMES), rngs=nnx.Rngs(0)))
    structure, params, rest = nnx.split(model, nnx.Param, ...)
    shapes, variables = ({n: v.shape for n, v in flatten(nnx.to_pure_dict(part)).items()} for part in (params, rest))
    stored = loading.stored_of(source)
    taken, new, unused = loading.load_stored(stored, shapes, writes=False, head=True)
    statistics = stored.read_variables(variables)
    assert not new and not unused and set(statistics) == set(variables)
    nets = cases.nested(taken), cases.nested(statistics)
    return np.asarray(jax.jit(lambda *parts: nnx.merge(structure, *parts)(jnp.asarray(images)))(*nets))


CASES = [
    *((transformers_net, name) for name in ("resnet", "resnet of bottlenecks", "vit", "convnext")),
    *((timm_net, name) for name in ("resnet", "vit", "vit with registers", "convnext")),
    *((torchvision_net, name) for name in ("resnet", "vit", "convnext")),
]


@pytest.mark.parametrize(("make", "name"), CASES)
def test_weights_of_other_libraries_give_their_logits(make: Any, name: str, tmp_path: Path) -> None:
    net = moved(make(name))
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        found = net(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    cases.assert_close("logits", logits_here(saved(net, tmp_path / "net"), images), getattr(found, "logits", found))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, {"model_args": {"img_size": [32, 64]}}),
        ({}, {"pretrained_cfg": {"input_size": [3, 32, 64]}}),
        ({"no_embed_class": True, "reg_tokens": 1}, {"model_args": {"img_size": [32, 64], "reg_tokens": 1}}),
    ],
)
def test_a_table_of_places_is_read_by_the_size_of_pictures(
    options: dict[str, Any], told: dict[str, Any], tmp_path: Path
) -> None:
    timm = pytest.importorskip("timm")
    net = moved(timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=(32, 64), depth=1, **options))
    images = np.random.default_rng(0).normal(size=(2, 32, 64, 3)).astype(np.float32)
    with torch.no_grad():
        found = net(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    folder = saved(net, tmp_path / "net")  # nine places of eight patches, or eight: either could be a square and more
    (folder / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224", **told}))
    cases.assert_close("logits", logits_here(folder, images), found)


def test_what_a_folder_tells_is_taken_and_what_is_not_known_is_refused(tmp_path: Path) -> None:
    folder = saved(transformers_net("vit"), tmp_path / "net")
    processor = {"size": {"height": 64, "width": 64}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    source = sources.locate_source(str(folder))
    assert source.classes == tuple(NAMES) and source.head is not None and source.head.reads == "the class token"
    assert source.pixels == Pixels((64, 64), (0.5, 0.4, 0.3), (0.1, 0.2, 0.3), STRETCH)
    assert source.architecture["eps"] == 1e-3
    with pytest.raises(ConfigError, match="holds weights of model=vit, this is model=resnet"):
        sources.fill_architecture(schema.Resnet(init_from=str(folder)), source)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    with pytest.raises(DataError, match="hidden_act is 'relu'; only 'gelu' is supported"):
        sources.locate_source(str(folder))


def test_a_model_that_is_not_known_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    names = ["conv1.weight", "layer1.0.conv1.weight", "layer1.0.se.fc1.weight"]
    save_file({name: np.zeros((2, 2, 1, 1), np.float32) for name in names}, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=r"has layer1\.0\.se\.fc1\.weight, for which model=resnet has no place"):
        sources.locate_source(str(tmp_path))
