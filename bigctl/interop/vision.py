"""ResNet, ViT and ConvNeXt as transformers, timm and torchvision write them down and as they are here: tensor names,
layouts, sizes.

Here a block is `blocks/5`, counted through the network; there it is the third of a stage. Kernels of convolutions are
[rows, columns, in, out] here and [out, in, rows, columns] there, those of linear layers [in, out] and [out, in].
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigctl.errors import DataError
from bigctl.interop.stored import TORCH_NORM, Stored
from bigctl.interop.tensors import Tensors, first_of, read_json

RESNET, VIT, CONVNEXT = "resnet", "vit", "convnext"

_STATISTICS = ("/mean", "/var")
# A number followed by "-" is one less here, one followed by "h" half of it; 2.1 is the second block of the third stage.
_STAGE, _LAYER = r"resnet\.encoder\.stages\.(\d+)\.layers\.(\d+)\.", r"vit\.(?:encoder\.layer|layers)\.(\d+)\."
_RESNET = (
    (r"resnet\.embedder\.embedder\.convolution\.weight", "stem/kernel"),
    (r"resnet\.embedder\.embedder\.normalization\.(\w+)", r"stem/norm/\1"),
    (_STAGE + r"layer\.(\d+)\.convolution\.weight", r"blocks/\1.\2/convs/\3/kernel"),
    (_STAGE + r"layer\.(\d+)\.normalization\.(\w+)", r"blocks/\1.\2/convs/\3/norm/\4"),
    (_STAGE + r"shortcut\.convolution\.weight", r"blocks/\1.\2/shortcut/kernel"),
    (_STAGE + r"shortcut\.normalization\.(\w+)", r"blocks/\1.\2/shortcut/norm/\3"),
    (r"classifier\.1\.(weight|bias)", r"head/\1"),
    # timm and torchvision
    (r"conv1\.weight", "stem/kernel"),
    (r"bn1\.(\w+)", r"stem/norm/\1"),
    (r"layer(\d+)\.(\d+)\.conv(\d+)\.weight", r"blocks/\1-.\2/convs/\3-/kernel"),
    (r"layer(\d+)\.(\d+)\.bn(\d+)\.(\w+)", r"blocks/\1-.\2/convs/\3-/norm/\4"),
    (r"layer(\d+)\.(\d+)\.downsample\.0\.weight", r"blocks/\1-.\2/shortcut/kernel"),
    (r"layer(\d+)\.(\d+)\.downsample\.1\.(\w+)", r"blocks/\1-.\2/shortcut/norm/\3"),
    (r"fc\.(weight|bias)", r"head/\1"),
)  # fmt: skip
_VIT = (
    (r"vit\.embeddings\.cls_token|cls_token|class_token", "cls"),
    (r"vit\.embeddings\.position_embeddings|pos_embed|encoder\.pos_embedding", "position"),
    (r"reg_token", "registers"),
    (r"(?:vit\.embeddings\.patch_embeddings\.projection|patch_embed\.proj|conv_proj)\.(\w+)", r"embed/\1"),
    (_LAYER + r"attention\.(?:attention\.)?(query|key|value)\.(\w+)", r"layers/\1/attention/\2/\3"),
    (_LAYER + r"attention\.output\.dense\.(\w+)", r"layers/\1/attention/output/\2"),
    (_LAYER + r"intermediate\.dense\.(\w+)", r"layers/\1/up/\2"),
    (_LAYER + r"output\.dense\.(\w+)", r"layers/\1/down/\2"),
    (_LAYER + r"layernorm_before\.(\w+)", r"layers/\1/attention_norm/\2"),
    (_LAYER + r"layernorm_after\.(\w+)", r"layers/\1/mlp_norm/\2"),
    (r"(?:vit\.layernorm|norm|encoder\.ln)\.(\w+)", r"final_norm/\1"),
    (r"(?:classifier|head|heads\.head)\.(\w+)", r"head/\1"),
    # timm
    (r"blocks\.(\d+)\.attn\.qkv\.(\w+)", r"layers/\1/attention/qkv/\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(\w+)", r"layers/\1/attention/output/\2"),
    (r"blocks\.(\d+)\.norm1\.(\w+)", r"layers/\1/attention_norm/\2"),
    (r"blocks\.(\d+)\.norm2\.(\w+)", r"layers/\1/mlp_norm/\2"),
    (r"blocks\.(\d+)\.mlp\.fc1\.(\w+)", r"layers/\1/up/\2"),
    (r"blocks\.(\d+)\.mlp\.fc2\.(\w+)", r"layers/\1/down/\2"),
    # torchvision
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_(\w+)", r"layers/\1/attention/qkv/\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.(\w+)", r"layers/\1/attention/output/\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.ln_1\.(\w+)", r"layers/\1/attention_norm/\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.ln_2\.(\w+)", r"layers/\1/mlp_norm/\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.(\w+)", r"layers/\1/up/\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.(\w+)", r"layers/\1/down/\2"),
)  # fmt: skip
_CONVNEXT = (
    (r"convnext\.embeddings\.patch_embeddings\.(\w+)", r"stem/dense/\1"),
    (r"convnext\.embeddings\.layernorm\.(\w+)", r"stem_norm/\1"),
    (r"convnext\.encoder\.stages\.(\d+)\.downsampling_layer\.0\.(\w+)", r"blocks/\1.0/shrink_norm/\2"),
    (r"convnext\.encoder\.stages\.(\d+)\.downsampling_layer\.1\.(\w+)", r"blocks/\1.0/shrink/dense/\2"),
    (r"convnext\.encoder\.stages\.(\d+)\.layers\.(\d+)\.dwconv\.(\w+)", r"blocks/\1.\2/\3"),
    (r"convnext\.encoder\.stages\.(\d+)\.layers\.(\d+)\.layernorm\.(\w+)", r"blocks/\1.\2/norm/\3"),
    (r"convnext\.encoder\.stages\.(\d+)\.layers\.(\d+)\.pwconv1\.(\w+)", r"blocks/\1.\2/up/\3"),
    (r"convnext\.encoder\.stages\.(\d+)\.layers\.(\d+)\.pwconv2\.(\w+)", r"blocks/\1.\2/down/\3"),
    (r"convnext\.encoder\.stages\.(\d+)\.layers\.(\d+)\.layer_scale_parameter", r"blocks/\1.\2/scale"),
    (r"convnext\.layernorm\.(\w+)", r"final_norm/\1"),
    (r"classifier\.(weight|bias)", r"head/\1"),
    # timm
    (r"stem\.0\.(\w+)", r"stem/dense/\1"),
    (r"stem\.1\.(\w+)", r"stem_norm/\1"),
    (r"stages\.(\d+)\.downsample\.0\.(\w+)", r"blocks/\1.0/shrink_norm/\2"),
    (r"stages\.(\d+)\.downsample\.1\.(\w+)", r"blocks/\1.0/shrink/dense/\2"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.conv_dw\.(\w+)", r"blocks/\1.\2/\3"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.norm\.(\w+)", r"blocks/\1.\2/norm/\3"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.mlp\.fc1\.(\w+)", r"blocks/\1.\2/up/\3"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.mlp\.fc2\.(\w+)", r"blocks/\1.\2/down/\3"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.gamma", r"blocks/\1.\2/scale"),
    (r"head\.norm\.(\w+)", r"final_norm/\1"),
    (r"head\.fc\.(\w+)", r"head/\1"),
    # torchvision: stages are 1, 3, 5, 7, what shrinks before them 2, 4, 6
    (r"features\.0\.0\.(\w+)", r"stem/dense/\1"),
    (r"features\.0\.1\.(\w+)", r"stem_norm/\1"),
    (r"features\.([2468])\.0\.(weight|bias)", r"blocks/\1h.0/shrink_norm/\2"),
    (r"features\.([2468])\.1\.(weight|bias)", r"blocks/\1h.0/shrink/dense/\2"),
    (r"features\.(\d+)\.(\d+)\.layer_scale", r"blocks/\1h.\2/scale"),
    (r"features\.(\d+)\.(\d+)\.block\.0\.(\w+)", r"blocks/\1h.\2/\3"),
    (r"features\.(\d+)\.(\d+)\.block\.2\.(\w+)", r"blocks/\1h.\2/norm/\3"),
    (r"features\.(\d+)\.(\d+)\.block\.3\.(\w+)", r"blocks/\1h.\2/up/\3"),
    (r"features\.(\d+)\.(\d+)\.block\.5\.(\w+)", r"blocks/\1h.\2/down/\3"),
    (r"classifier\.0\.(\w+)", r"final_norm/\1"),
    (r"classifier\.2\.(\w+)", r"head/\1"),
)  # fmt: skip
_NAMES = {RESNET: _RESNET, VIT: _VIT, CONVNEXT: _CONVNEXT}
_BODIES = {
    RESNET: r"resnet\.embedder\.embedder\.convolution\.weight|layer1\.0\.conv1\.weight",
    VIT: r"vit\.embeddings\.position_embeddings|patch_embed\.proj\.weight|conv_proj\.weight",
    CONVNEXT: r"convnext\.embeddings\.layernorm\.weight|stages\.0\.blocks\.0\.conv_dw\.weight|"
    r"features\.1\.0\.block\.0\.weight",
}
"""A tensor by which weights of each model are known."""
_UNUSED = re.compile(r".*num_batches_tracked|vit\.pooler\..*")
_QKV = ("query", "key", "value")


def model_of(tensors: Iterable[str]) -> str | None:
    """The kind of model that tensors belong to by their names, None where it is none of those here."""
    names = set(tensors)
    return next((model for model, body in _BODIES.items() if any(re.fullmatch(body, name) for name in names)), None)


@dataclass(frozen=True)
class _Place:
    """Where a parameter is stored: a tensor, or a third of it (0, 1, 2)."""

    tensor: str
    third: int | None = None


class StoredVision(Stored):
    """Parameters and batch statistics in a folder of safetensors, under the paths of the model.

    Attributes:
        config: what stands in the config.json of transformers or timm; empty without one.

    Raises:
        DataError: if there are tensors that the model has no place for, or a file is damaged.
    """

    def __init__(self, folder: Path, model: str):
        self.model, self.tensors = model, Tensors(folder)
        self.file = self.tensors.file
        self._places, strange = _places(model, list(self.tensors.shapes))
        if strange:
            raise DataError(
                f"has {first_of(strange)}, for which model={model} has no place",
                where=str(self.file),
                hint="these are weights of another model, or of a variant that is not known here",
            )
        config = folder / "config.json"
        self.config = read_json(config) if config.is_file() else {}
        self._shapes = {path: self._shape(path) for path in self._places}
        self.shapes = {path: shape for path, shape in self._shapes.items() if not path.endswith(_STATISTICS)}

    def _shape(self, path: str) -> tuple[int, ...]:
        place = self._places[path]
        shape = self.tensors.shapes[place.tensor]
        if place.third is not None:
            shape = (shape[0] // 3, *shape[1:])
        found = turned(path, np.broadcast_to(np.float32(0), shape)).shape
        return (found[0] + 1, *found[1:]) if self._lacks_place_of_class_token(path, found[0]) else found

    def _lacks_place_of_class_token(self, path: str, rows: int) -> bool:
        """Whether a table tells the places of patches, and nothing of the class token before them. Only timm has such
        tables; where its config.json does not say, they have a row for each patch of its pictures, and where it does
        not tell their size, patches are taken for a square."""
        if path != "position" or "cls" not in self._places or self._places[path].tensor != "pos_embed":
            return False
        said = _arguments(self.config).get("no_embed_class")
        if isinstance(said, bool):
            return said
        patches = _patches(self.config, self.tensors.shapes[self._places["embed/kernel"].tensor][2:])
        return rows == patches if patches in (rows, rows - 1) else math.isqrt(rows) ** 2 == rows

    def _read(self, path: str) -> np.ndarray:
        place = self._places[path]
        values = self.tensors.read(place.tensor)
        if place.third is not None:
            values = np.split(values, 3)[place.third]
        values = turned(path, values)
        if self._lacks_place_of_class_token(path, len(values)):
            values = np.concatenate([np.zeros_like(values[:1]), values])
        return np.ascontiguousarray(values)

    def read(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        return {name: self._read(name) for name in names}

    def read_variables(self, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        return {name: self._read(name) for name, shape in wanted.items() if self._shapes.get(name) == tuple(shape)}

    # ---------------------------------------------------------------------------------------------- the architecture

    def architecture(self) -> dict[str, Any]:
        """What the weights and their config.json decide of `schema.Resnet`, `schema.Vit` or `schema.Convnext`, by key.

        Raises:
            DataError: if they describe another model than the one here.
        """
        _check(self.model, self.config, str(self.file.parent))
        read = {RESNET: self._resnet, VIT: self._vit, CONVNEXT: self._convnext}[self.model]
        try:
            return read()
        except (KeyError, IndexError) as error:
            raise DataError(f"lacks tensors of model={self.model}: {error}", where=str(self.file)) from error

    def _resnet(self) -> dict[str, Any]:
        kernel = self._shapes["stem/kernel"]
        return {
            "blocks": self._stages(), "width": kernel[-1], "bottleneck": "blocks/0/convs/2/kernel" in self._shapes,
            "stem": "cifar" if kernel[0] == 3 else "imagenet",
        }  # fmt: skip

    def _vit(self) -> dict[str, Any]:
        (_, width), patch = self._shapes["embed/kernel"], self.tensors.shapes[self._places["embed/kernel"].tensor][-1]
        layers = {int(path.split("/")[1]) for path in self._shapes if path.startswith("layers/")}
        heads, registers = _heads(self.config, width, str(self.file.parent)), self._shapes.get("registers", (0,))[0]
        return {
            "patch": patch, "layers": len(layers), "width": width, "heads": heads,
            "intermediate": self._shapes["layers/0/up/kernel"][1], "pool": "cls" if "cls" in self._shapes else "mean",
            "position": "learned", "registers": registers, "eps": float(self.config.get("layer_norm_eps", 1e-6)),
        }  # fmt: skip

    def _convnext(self) -> dict[str, Any]:
        blocks = self._stages()
        firsts = [sum(blocks[:stage]) for stage in range(len(blocks))]
        kernel = self._shapes["blocks/0/kernel"]
        found = {
            "blocks": blocks, "widths": [self._shapes[f"blocks/{first}/kernel"][-1] for first in firsts],
            "patch": self.tensors.shapes[self._places["stem/dense/kernel"].tensor][-1], "kernel_size": kernel[0],
            "eps": float(self.config.get("layer_norm_eps", 1e-6)),
        }  # fmt: skip
        return found if "blocks/0/scale" in self._shapes else {**found, "layer_scale": 0.0}

    def _stages(self) -> list[int]:
        """Blocks of each stage."""
        return _counts(path for name in self.tensors.shapes if (path := _path(self.model, name)) is not None)


# ------------------------------------------------------------------------------------------------------------- naming


def _path(model: str, tensor: str) -> str | None:
    """A tensor's path, in which blocks are numbered within their stages; None where the model has none for it."""
    for pattern, path in _NAMES[model]:
        if match := re.fullmatch(pattern, tensor):
            found = match.expand(path)
            found = re.sub(r"(\d+)([-h])", lambda m: str(int(m[1]) - 1 if m[2] == "-" else int(m[1]) // 2), found)
            above, _, last = found.rpartition("/")
            if last not in TORCH_NORM:
                return found
            if last.startswith("running") or above.endswith("norm"):
                return f"{above}/{TORCH_NORM[last]}"
            return f"{above}/{'kernel' if last == 'weight' else last}"
    return None


def _counts(paths: Iterable[str]) -> list[int]:
    numbers: dict[int, int] = {}
    for path in paths:
        if match := re.match(r"blocks/(\d+)\.(\d+)/", path):
            stage, block = int(match[1]), int(match[2])
            numbers[stage] = max(numbers.get(stage, 0), block + 1)
    return [numbers.get(stage, 0) for stage in range(max(numbers, default=-1) + 1)]


def _places(model: str, tensors: Sequence[str]) -> tuple[dict[str, _Place], list[str]]:
    """Where each parameter is stored, by its path; and the tensors that have none."""
    paths = {name: _path(model, name) for name in tensors if not _UNUSED.fullmatch(name)}
    counts = _counts(path for path in paths.values() if path is not None)
    found: dict[str, _Place] = {}
    for name, path in paths.items():
        if path is None:
            continue
        numbered = re.sub(r"blocks/(\d+)\.(\d+)", lambda m: f"blocks/{sum(counts[: int(m[1])]) + int(m[2])}", path)
        if "/qkv/" in numbered:
            found |= {numbered.replace("qkv", part): _Place(name, third) for third, part in enumerate(_QKV)}
        else:
            found[numbered] = _Place(name)
    return found, [name for name, path in paths.items() if path is None]


def turned(path: str, values: np.ndarray) -> np.ndarray:
    """Values from torch's layout in that of the parameter at a path."""
    if path in ("cls", "position", "registers"):
        return values[0]
    if path.endswith("/scale"):
        return values.reshape(-1)
    if not path.endswith("/kernel"):
        return values
    if path.endswith(("embed/kernel", "dense/kernel")):  # of cells of pixels, as one axis
        return values.transpose(2, 3, 1, 0).reshape(-1, len(values))
    if path.endswith(("up/kernel", "down/kernel")):
        return values.reshape(values.shape[:2]).T  # a convolution of 1x1 in some of timm
    return values.transpose(2, 3, 1, 0) if values.ndim == 4 else values.T


# ------------------------------------------------------------------------------------------------------ what is told


def _arguments(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What timm is told besides the name of a model."""
    given = config.get("model_args")
    return given if isinstance(given, Mapping) else {}


def _patches(config: Mapping[str, Any], patch: Sequence[int]) -> int | None:
    """Patches of this height and width in the pictures that timm's config.json is for; None where it does not say."""
    size, settings = _arguments(config).get("img_size"), config.get("pretrained_cfg")
    if size is None and isinstance(settings, Mapping) and isinstance(settings.get("input_size"), list):
        size = settings["input_size"][1:]
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        return None
    return math.prod(side // edge for side, edge in zip(sides, patch, strict=True))


def _check(model: str, config: Mapping[str, Any], where: str) -> None:
    """Raises DataError for what the names and shapes of tensors do not tell, and is otherwise than here."""
    arguments = _arguments(config)
    activation = "relu" if model == RESNET else "gelu"
    for settings, name in ((config, "hidden_act"), (arguments, "act_layer")):
        if settings.get(name, activation) != activation:
            raise DataError(f"{name} is {settings[name]!r}; only {activation!r} is supported", where=where)
    for name in ("downsample_in_bottleneck", "downsample_in_first_stage"):
        if config.get(name, False):
            raise DataError(f"{name} is set, which no model here has", where=where, hint="choose other weights")
    if "quickgelu" in str(config.get("architecture", "")):
        raise DataError("its activation is another gelu than the one here", where=where, hint="choose other weights")


_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
"""Attention heads of the usual widths, from Ti to H."""


def _heads(config: Mapping[str, Any], width: int, where: str) -> int:
    given = config.get("num_attention_heads", _arguments(config).get("num_heads"))
    found = _HEADS.get(width) if given is None else given
    if isinstance(found, bool) or not isinstance(found, int) or found < 1 or width % found:
        raise DataError(
            f"does not tell how many heads {width} features are shared out over",
            where=where,
            hint="say so in config.json: num_attention_heads",
        )
    return found


def class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classes of timm's config.json, empty where it has none."""
    names = config.get("label_names") or (config.get("pretrained_cfg") or {}).get("label_names")
    told = isinstance(names, Sequence) and not isinstance(names, str) and all(isinstance(name, str) for name in names)
    return tuple(names) if told and names else ()
