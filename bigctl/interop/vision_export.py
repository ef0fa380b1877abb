"""A trained ResNet, ViT or ConvNeXt as a folder that `transformers` loads, with the same logits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from bigctl.config import schema
from bigctl.errors import ConfigError
from bigctl.interop import pictures
from bigctl.interop.pictures import Pixels
from bigctl.interop.stored import TORCH_NORM
from bigctl.interop.tensors import WEIGHTS
from bigctl.interop.vision import CONVNEXT, RESNET, VIT

_STAGE, _CONVNEXT_STAGE = r"resnet.encoder.stages.\1.layers.\2", r"convnext.encoder.stages.\1"
_MODULES = {
    RESNET: (
        (r"stem/norm", "resnet.embedder.embedder.normalization"),
        (r"stem", "resnet.embedder.embedder.convolution"),
        (r"blocks/(\d+)\.(\d+)/convs/(\d+)/norm", _STAGE + r".layer.\3.normalization"),
        (r"blocks/(\d+)\.(\d+)/convs/(\d+)", _STAGE + r".layer.\3.convolution"),
        (r"blocks/(\d+)\.(\d+)/shortcut/norm", _STAGE + ".shortcut.normalization"),
        (r"blocks/(\d+)\.(\d+)/shortcut", _STAGE + ".shortcut.convolution"),
        (r"head", "classifier.1"),
    ),
    VIT: (
        (r"embed", "vit.embeddings.patch_embeddings.projection"),
        (r"layers/(\d+)/attention/output", r"vit.encoder.layer.\1.attention.output.dense"),
        (r"layers/(\d+)/attention/(\w+)", r"vit.encoder.layer.\1.attention.attention.\2"),
        (r"layers/(\d+)/up", r"vit.encoder.layer.\1.intermediate.dense"),
        (r"layers/(\d+)/down", r"vit.encoder.layer.\1.output.dense"),
        (r"layers/(\d+)/attention_norm", r"vit.encoder.layer.\1.layernorm_before"),
        (r"layers/(\d+)/mlp_norm", r"vit.encoder.layer.\1.layernorm_after"),
        (r"final_norm", "vit.layernorm"),
        (r"head", "classifier"),
    ),
    CONVNEXT: (
        (r"stem/dense", "convnext.embeddings.patch_embeddings"),
        (r"stem_norm", "convnext.embeddings.layernorm"),
        (r"blocks/(\d+)\.0/shrink_norm", _CONVNEXT_STAGE + ".downsampling_layer.0"),
        (r"blocks/(\d+)\.0/shrink/dense", _CONVNEXT_STAGE + ".downsampling_layer.1"),
        (r"blocks/(\d+)\.(\d+)/norm", _CONVNEXT_STAGE + r".layers.\2.layernorm"),
        (r"blocks/(\d+)\.(\d+)/up", _CONVNEXT_STAGE + r".layers.\2.pwconv1"),
        (r"blocks/(\d+)\.(\d+)/down", _CONVNEXT_STAGE + r".layers.\2.pwconv2"),
        (r"blocks/(\d+)\.(\d+)", _CONVNEXT_STAGE + r".layers.\2.dwconv"),
        (r"final_norm", "convnext.layernorm"),
        (r"head", "classifier"),
    ),
}
LEAVES = {"kernel": "weight", **{ours: theirs for theirs, ours in TORCH_NORM.items()}}
_CLASSES = {
    RESNET: "ResNetForImageClassification",
    VIT: "ViTForImageClassification",
    CONVNEXT: "ConvNextForImageClassification",
}


@dataclass(frozen=True)
class Export:
    """What is exported of a trained model.

    Attributes:
        model: its configuration.
        values: parameters and batch statistics, by path.
        pixels: how its pictures are made into inputs, with as many channels as the model takes.
        classes: class names in order.
        several: whether a picture may have several of them.
    """

    model: schema.Model
    values: Mapping[str, np.ndarray]
    pixels: Pixels
    classes: tuple[str, ...]
    several: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return (*self.pixels.size, len(self.pixels.mean))


def knows(model: schema.Model) -> bool:
    return model.kind in _MODULES


def require(model: schema.Model, where: str) -> None:
    """Raises ConfigError for a variant that transformers has no class for, naming the run."""
    why = ""
    if isinstance(model, schema.Vit) and (model.pool != "cls" or model.registers):
        why = "a mean over patches" if model.pool != "cls" else "registers"
    if isinstance(model, schema.Convnext) and model.kernel_size != 7:
        why = f"depthwise convolutions of {model.kernel_size}x{model.kernel_size}"
    if why:
        hint = "bigctl.load(RUN).params gives the weights as arrays"
        raise ConfigError(f"transformers has no class for model={model.kind} with {why}", where=where, hint=hint)


def files(export: Export, where: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, np.ndarray]]:
    """config.json, preprocessor_config.json and the tensors of a model.

    Raises:
        ConfigError: if transformers has no class that computes the same, naming `where`.
    """
    require(export.model, where)
    values = dict(export.values)
    if export.model.kind == RESNET and values["stem/kernel"].shape[0] != 7:
        hint = "model.stem=imagenet is what it knows; bigctl.load(RUN).params gives the weights as arrays"
        raise ConfigError("transformers has no ResNet with a stem for small images", where=where, hint=hint)
    if export.model.kind == VIT and "position" not in values:
        values["position"] = fixed_places(cast(schema.Vit, export.model), export.shape)
    values |= two_outputs(export)
    blocks = list(getattr(export.model, "blocks", []))
    tensors = {
        _tensor_name(export.model.kind, path, blocks): turned(export.model, path, np.asarray(value, np.float32))
        for path, value in values.items()
    }
    return _config(export), pictures.for_transformers(export.pixels), with_counts(tensors)


def two_outputs(export: Export) -> dict[str, np.ndarray]:
    """Kernel and bias of a head of two classes whose one output is the log-odds of the second, as one of two; nothing
    for other heads."""
    names = ("head/kernel", "head/bias")
    if export.values[names[0]].shape[-1] != 1 or len(export.classes) != 2:
        return {}
    return {name: np.concatenate([np.zeros_like(export.values[name]), export.values[name]], -1) for name in names}


def with_counts(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors, and of each batch normalisation a count of batches, which torch would miss."""
    norms = [name for name in tensors if name.endswith("running_mean")]
    counts = {name.replace("running_mean", "num_batches_tracked"): np.zeros((), np.int64) for name in norms}
    return {**tensors, **counts}


def save(folder: Path, tensors: Mapping[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    save_file(dict(tensors), folder / WEIGHTS, metadata={"format": "pt"})


def loading_lines(folder: str) -> list[str]:
    """Lines of Python that load an export."""
    return [
        "from PIL import Image",
        "from transformers import AutoImageProcessor, AutoModelForImageClassification",
        f"processor = AutoImageProcessor.from_pretrained({folder!r})",
        f"model = AutoModelForImageClassification.from_pretrained({folder!r})",
        'logits = model(**processor(Image.open("picture.png"), return_tensors="pt")).logits',
    ]


# ------------------------------------------------------------------------------------------------- names and layouts


def staged(path: str, blocks: list[int]) -> str:
    """A path whose block is numbered within its stage: blocks/2.1 is the second block of the third stage."""

    def within(match: re.Match[str]) -> str:
        stage, number = 0, int(match[1])
        while number >= blocks[stage]:
            stage, number = stage + 1, number - blocks[stage]
        return f"blocks/{stage}.{number}"

    return re.sub(r"^blocks/(\d+)", within, path)


def _tensor_name(kind: str, path: str, blocks: list[int]) -> str:
    if path in ("cls", "position"):
        return {"cls": "vit.embeddings.cls_token", "position": "vit.embeddings.position_embeddings"}[path]
    path = staged(path, blocks)
    module, _, leaf = path.rpartition("/")
    if kind == CONVNEXT and leaf == "scale" and (match := re.fullmatch(r"blocks/(\d+)\.(\d+)", module)):
        return match.expand(_CONVNEXT_STAGE + r".layers.\2.layer_scale_parameter")
    for pattern, name in _MODULES[kind]:
        if match := re.fullmatch(pattern, module):
            return f"{match.expand(name)}.{LEAVES[leaf]}"
    raise KeyError(path)


def turned(model: schema.Model, path: str, values: np.ndarray) -> np.ndarray:
    """Values in torch's layout: the inverse of `vision.turned`."""
    if path in ("cls", "position", "registers"):
        return np.ascontiguousarray(values[None])
    if not path.endswith("/kernel"):
        return np.ascontiguousarray(values)
    if path.endswith(("embed/kernel", "dense/kernel")):
        side = 2 if "shrink" in path else int(model.patch)  # type: ignore[attr-defined]
        values = values.reshape(side, side, -1, values.shape[-1])
    return np.ascontiguousarray(values.transpose(3, 2, 0, 1) if values.ndim == 4 else values.T)


def fixed_places(model: schema.Vit, shape: tuple[int, int, int]) -> np.ndarray:
    """Sines and cosines as a table; the class token has no place."""
    from bigctl.models.vit import sincos

    table = sincos(shape[0] // model.patch, shape[1] // model.patch, model.width)
    return np.concatenate([np.zeros_like(table[:1]), table])


# ----------------------------------------------------------------------------------------------------------- settings


def _config(export: Export) -> dict[str, Any]:
    names, model = export.classes, export.model
    found = {
        "architectures": [_CLASSES[model.kind]],
        "model_type": model.kind,
        "num_channels": export.shape[2],
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
        "problem_type": "multi_label_classification" if export.several else "single_label_classification",
        "dtype": "float32",
    }
    if isinstance(model, schema.Resnet):
        wider = 4 if model.bottleneck else 1
        sizes: dict[str, Any] = {
            "embedding_size": model.width, "depths": list(model.blocks), "hidden_act": "relu",
            "hidden_sizes": [model.width * 2**stage * wider for stage in range(len(model.blocks))],
            "layer_type": "bottleneck" if model.bottleneck else "basic", "downsample_in_first_stage": False,
            "downsample_in_bottleneck": False,
        }  # fmt: skip
    elif isinstance(model, schema.Vit):
        height, width = export.shape[:2]
        sizes = {
            "hidden_size": model.width, "num_hidden_layers": model.layers, "num_attention_heads": model.heads,
            "intermediate_size": model.intermediate, "hidden_act": "gelu", "layer_norm_eps": model.eps,
            "hidden_dropout_prob": model.dropout, "attention_probs_dropout_prob": 0.0, "qkv_bias": True,
            "image_size": height if height == width else [height, width], "patch_size": model.patch,
        }  # fmt: skip
    else:
        convnext = cast(schema.Convnext, model)
        sizes = {
            "depths": list(convnext.blocks), "hidden_sizes": list(convnext.widths), "num_stages": len(convnext.blocks),
            "patch_size": convnext.patch, "hidden_act": "gelu", "layer_norm_eps": convnext.eps,
            "layer_scale_init_value": convnext.layer_scale, "drop_path_rate": convnext.drop_path,
            "image_size": export.shape[0],
        }  # fmt: skip
    return {**found, **sizes}
