"""A trained ResNet, ViT or ConvNeXt as a folder that timm loads (`local-dir:FOLDER`), with the same logits."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

from bigctl.config import schema
from bigctl.errors import ConfigError
from bigctl.interop import pictures
from bigctl.interop.folders import Finish, as_it_is, require_new, whole_or_nothing, write_json
from bigctl.interop.tensors import WEIGHTS
from bigctl.interop.vision import CONVNEXT, RESNET, VIT
from bigctl.interop.vision_export import (
    LEAVES,
    Export,
    fixed_places,
    knows,
    save,
    staged,
    turned,
    two_outputs,
    with_counts,
)

_BLOCK, _STAGE = r"blocks/(\d+)\.(\d+)", r"stages.\1"
# A number followed by "+" is one more there.
_MODULES = {
    RESNET: (
        (r"stem/norm", "bn1"),
        (r"stem", "conv1"),
        (_BLOCK + r"/convs/(\d+)/norm", r"layer\1+.\2.bn\3+"),
        (_BLOCK + r"/convs/(\d+)", r"layer\1+.\2.conv\3+"),
        (_BLOCK + "/shortcut/norm", r"layer\1+.\2.downsample.1"),
        (_BLOCK + "/shortcut", r"layer\1+.\2.downsample.0"),
        (r"head", "fc"),
    ),
    VIT: (
        (r"embed", "patch_embed.proj"),
        (r"layers/(\d+)/attention/qkv", r"blocks.\1.attn.qkv"),
        (r"layers/(\d+)/attention/output", r"blocks.\1.attn.proj"),
        (r"layers/(\d+)/up", r"blocks.\1.mlp.fc1"),
        (r"layers/(\d+)/down", r"blocks.\1.mlp.fc2"),
        (r"layers/(\d+)/attention_norm", r"blocks.\1.norm1"),
        (r"layers/(\d+)/mlp_norm", r"blocks.\1.norm2"),
        (r"final_norm", "norm"),
        (r"head", "head"),
    ),
    CONVNEXT: (
        (r"stem/dense", "stem.0"),
        (r"stem_norm", "stem.1"),
        (r"blocks/(\d+)\.0/shrink_norm", _STAGE + ".downsample.0"),
        (r"blocks/(\d+)\.0/shrink/dense", _STAGE + ".downsample.1"),
        (_BLOCK + "/norm", _STAGE + r".blocks.\2.norm"),
        (_BLOCK + "/up", _STAGE + r".blocks.\2.mlp.fc1"),
        (_BLOCK + "/down", _STAGE + r".blocks.\2.mlp.fc2"),
        (_BLOCK, _STAGE + r".blocks.\2.conv_dw"),
        (r"final_norm", "head.norm"),
        (r"head", "head.fc"),
    ),
}
_ALONE = {"cls": "cls_token", "position": "pos_embed", "registers": "reg_token"}
_STAGES = 4
_EPS = 1e-6
"""Of timm's layer normalisation."""


def require(model: schema.Model, where: str) -> None:
    """Raises ConfigError for a model, or a variant of one, that timm does not have, naming the run."""
    why = f"model={model.kind}; only resnet, vit and convnext can be exported to it"
    if knows(model):
        lacks = next(_lacks(model), None)
        if lacks is None:
            return
        why = f"model={model.kind} with {lacks}"
    hint = "--format onnx and jax take any model; bigctl.load(RUN).params gives the weights as arrays"
    raise ConfigError(f"timm has no {why}", where=where, hint=hint)


def _lacks(model: schema.Model) -> Iterator[str]:
    """What of a model timm does not have."""
    if isinstance(model, schema.Resnet):
        if len(model.blocks) != _STAGES:
            yield f"{len(model.blocks)} stages"
        if model.width != 64 or model.inner is not None:
            yield f"model.width={model.width}" if model.inner is None else "model.inner"
    if isinstance(model, schema.Convnext):
        if len(model.blocks) != _STAGES:
            yield f"{len(model.blocks)} stages"
        if model.patch == 2:  # there it shrinks twice
            yield "model.patch=2"
    if isinstance(model, schema.Vit) and model.head_dim not in (None, model.width // model.heads):
        yield f"model.head_dim={model.head_dim}"
    eps = getattr(model, "eps", _EPS)
    if eps != _EPS:
        yield f"model.eps={eps:g}"


def write(export: Export, folder: Path, finish: Finish = as_it_is) -> Path:
    """Write a classifier of pictures as a folder for timm: all of it, or nothing; `finish` see `folders`.

    Raises:
        ConfigError: if timm has no such model, or the folder holds something already.
        RunError: if the folder cannot be written.
    """
    require_new(folder)
    config, tensors = files(export, str(folder))
    with whole_or_nothing(folder) as partial:
        save(partial, tensors)
        write_json(partial / "config.json", config)
        shutil.copymode(partial / "config.json", partial / WEIGHTS)  # else only its owner could read it
        finish(partial)
    return folder


def loading_lines(folder: str, channels: int) -> list[str]:
    """Lines of Python that load an export, for pictures of so many channels."""
    mode = "RGB" if channels == 3 else "L"
    return [
        "import timm",
        "from PIL import Image",
        f"model = timm.create_model({'local-dir:' + folder!r}, pretrained=True).eval()",
        "pixels = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
        f'logits = model(pixels(Image.open("picture.png").convert("{mode}"))[None])',
    ]


def files(export: Export, where: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """config.json and the tensors of a model. Raises ConfigError if timm has none that computes the same."""
    model = export.model
    require(model, where)
    values = {**export.values, **two_outputs(export)}
    if model.kind == RESNET and values["stem/kernel"].shape[0] != 7:
        hint = "model.stem=imagenet is what it knows; --format onnx and jax take any model"
        raise ConfigError("timm has no ResNet with a stem for small images", where=where, hint=hint)
    blocks = list(getattr(model, "blocks", []))
    arrays = {path: turned(model, path, np.asarray(value, np.float32)) for path, value in values.items()}
    if isinstance(model, schema.Vit):
        arrays = _as_timm(model, export, arrays)
    return _config(export), with_counts({_name(model.kind, staged(path, blocks)): arrays[path] for path in arrays})


def _as_timm(model: schema.Vit, export: Export, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Queries, keys and values in one; the class token with its place in it, as registers have none."""
    found = {path: values for path, values in arrays.items() if not re.search(r"/(query|key|value)/", path)}
    for layer in range(model.layers):
        for leaf in ("kernel", "bias"):
            parts = [arrays[f"layers/{layer}/attention/{part}/{leaf}"] for part in ("query", "key", "value")]
            found[f"layers/{layer}/attention/qkv/{leaf}"] = np.concatenate(parts)
    table = found.get("position")
    if table is None:
        table = fixed_places(model, export.shape)[None].astype(np.float32)
        table = table if model.pool == "cls" else table[:, 1:]
    if model.pool == "cls":
        found["cls"] = found["cls"] + table[:, :1]
        table = table[:, 1:]
    found["position"] = np.ascontiguousarray(table)
    return found


def _name(kind: str, path: str) -> str:
    if path in _ALONE:
        return _ALONE[path]
    module, _, leaf = path.rpartition("/")
    if kind == CONVNEXT and leaf == "scale" and (match := re.fullmatch(_BLOCK, module)):
        return match.expand(_STAGE + r".blocks.\2.gamma")
    for pattern, name in _MODULES[kind]:
        if match := re.fullmatch(pattern, module):
            numbered = re.sub(r"(\d+)\+", lambda m: str(int(m[1]) + 1), match.expand(name))
            return f"{numbered}.{LEAVES[leaf]}"
    raise KeyError(path)


def _config(export: Export) -> dict[str, Any]:
    model, (height, width, channels) = export.model, export.shape
    name, arguments = _architecture(model, (height, width))
    several = {"problem_type": "multi_label_classification"} if export.several else {}  # which timm ignores
    return {
        "architecture": name,
        **several,
        "num_classes": len(export.classes),
        "model_args": {**arguments, "in_chans": channels},
        "pretrained_cfg": {
            "num_classes": len(export.classes),
            "fixed_input_size": model.kind == VIT,
            **pictures.for_timm(export.pixels),
            "label_names": list(export.classes),
            "first_conv": {RESNET: "conv1", VIT: "patch_embed.proj", CONVNEXT: "stem.0"}[model.kind],
            "classifier": {RESNET: "fc", VIT: "head", CONVNEXT: "head.fc"}[model.kind],
        },
    }


def _architecture(model: schema.Model, size: tuple[int, int]) -> tuple[str, dict[str, Any]]:
    """timm's name of a model that is built alike, and what it is to be told besides."""
    if isinstance(model, schema.Resnet):
        return "resnet50" if model.bottleneck else "resnet18", {"layers": list(model.blocks)}
    if isinstance(model, schema.Convnext):
        return "convnext_tiny", {
            "depths": list(model.blocks), "dims": list(model.widths), "patch_size": model.patch,
            "kernel_sizes": model.kernel_size, "ls_init_value": model.layer_scale or None,
        }  # fmt: skip
    vit = cast(schema.Vit, model)
    return "vit_base_patch16_224", {
        "img_size": list(size), "patch_size": vit.patch, "embed_dim": vit.width, "depth": vit.layers,
        "num_heads": vit.heads, "mlp_ratio": vit.intermediate / vit.width, "class_token": vit.pool == "cls",
        "global_pool": "token" if vit.pool == "cls" else "avg", "fc_norm": False, "no_embed_class": True,
        "reg_tokens": vit.registers,
    }  # fmt: skip
