"""BERT as Hugging Face writes it down and as it is here: tensor names, layouts, config.json.

Here a parameter is a path such as `encoder/layers/0/attention/query/kernel`, kernels are [in, out]; there a tensor is
`bert.encoder.layer.0.attention.self.query.weight`, and weights of linear layers are [out, in] (torch's layout).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from bigctl.errors import DataError
from bigctl.models.architecture import BertArchitecture

_MODULES = {
    "encoder/embeddings/token": "bert.embeddings.word_embeddings",
    "encoder/embeddings/position": "bert.embeddings.position_embeddings",
    "encoder/embeddings/segment": "bert.embeddings.token_type_embeddings",
    "encoder/embeddings/norm": "bert.embeddings.LayerNorm",
    "pooler": "bert.pooler.dense",
    "head": "classifier",
    "transform": "cls.predictions.transform.dense",
    "transform_norm": "cls.predictions.transform.LayerNorm",
}
_LAYER_MODULES = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "output_norm": "output.LayerNorm",
}
_OURS = {theirs: ours for ours, theirs in _MODULES.items()}
_OUR_LAYER = {theirs: ours for ours, theirs in _LAYER_MODULES.items()}
_DECODER_BIAS = "cls.predictions.bias"

TIED = ("embeddings.position_ids", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias")
"""Tensors that repeat what others say."""


def tensor_name(parameter: str) -> str:
    """A parameter's name in a file of `transformers`."""
    if parameter == "decoder_bias":
        return _DECODER_BIAS
    module, _, leaf = parameter.rpartition("/")
    last = "bias" if leaf == "bias" else "weight"
    if match := re.fullmatch(r"encoder/layers/(\d+)/(.+)", module):
        return f"bert.encoder.layer.{match[1]}.{_LAYER_MODULES[match[2]]}.{last}"
    return f"{_MODULES[module]}.{last}"


def parameter_name(tensor: str) -> str | None:
    """A tensor's name here, None where nothing here corresponds to it.

    The prefix `bert.` may be missing, as `BertModel` leaves it out; norms may be called gamma and beta, as they were.
    """
    name = _plain(tensor)
    if name == _DECODER_BIAS:
        return "decoder_bias"
    module, _, last = name.rpartition(".")
    if last not in ("weight", "bias"):
        return None
    if match := re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", module):
        inner = _OUR_LAYER.get(match[2])
        ours = None if inner is None else f"encoder/layers/{match[1]}/{inner}"
    else:
        ours = _OURS.get(module) or _OURS.get(f"bert.{module}")
    if ours is None:
        return None
    if last == "bias":
        return f"{ours}/bias"
    if ours.endswith("norm"):
        return f"{ours}/scale"
    return f"{ours}/{'embedding' if '/embeddings/' in ours else 'kernel'}"


def is_repetition(tensor: str) -> bool:
    return _plain(tensor) in TIED


def _plain(tensor: str) -> str:
    name = tensor.removeprefix("bert.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def turned(parameter: str, values: np.ndarray) -> np.ndarray:
    """Values from the one layout in the other: kernels are transposed, the rest stays."""
    return values.T if parameter.endswith("/kernel") else values


def turned_shape(parameter: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[::-1] if parameter.endswith("/kernel") else shape


def to_tensors(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parameters by path -> tensors as `transformers` names and lays them out, float32. LoRA must be merged before."""
    return {
        tensor_name(name): np.ascontiguousarray(turned(name, np.asarray(values, np.float32)))
        for name, values in params.items()
    }


def merge_lora(params: Mapping[str, np.ndarray], scale: float) -> dict[str, np.ndarray]:
    """Parameters of the plain model that computes the same: kernel + scale * lora_a @ lora_b (Hu et al. 2022).

    Args:
        params: by path; `lora_a` [in, rank] and `lora_b` [rank, out] beside the `kernel` that they are added to.
        scale: alpha / rank.
    """
    merged = {name: values for name, values in params.items() if not is_lora(name)}
    for name in params:
        if name.endswith("/lora_a"):
            layer = name.removesuffix("/lora_a")
            added = np.asarray(params[name], np.float32) @ np.asarray(params[f"{layer}/lora_b"], np.float32)
            merged[f"{layer}/kernel"] = np.asarray(params[f"{layer}/kernel"], np.float32) + np.float32(scale) * added
    return merged


def is_lora(parameter: str) -> bool:
    return parameter.endswith(("/lora_a", "/lora_b"))


# -------------------------------------------------------------------------------------------------------- config.json

_KEYS = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
    "positions": "max_position_embeddings",
    "vocab": "vocab_size",
}
_REQUIRED = {
    "model_type": ("bert", None),
    "hidden_act": ("gelu", "gelu"),
    "position_embedding_type": ("absolute", "absolute"),
    "type_vocab_size": (2, 2),
    "is_decoder": (False, False),
    "add_cross_attention": (False, False),
}
"""What must hold for a model to be the one here, and what holds where config.json does not say."""


def read_architecture(config: Mapping[str, object], where: str) -> BertArchitecture:
    """The architecture of the encoder that a config.json describes.

    Raises:
        DataError: if it lacks one of them, or describes another model than BERT (Devlin et al. 2019).
    """
    for name, (wanted, default) in _REQUIRED.items():
        found = config.get(name, default)
        if found != wanted:
            raise DataError(f"{name} is {found!r}; only {wanted!r} is supported", where=where, hint="choose a BERT")
    sizes: dict[str, Any] = {}
    for ours, theirs in _KEYS.items():
        value = config.get(theirs)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            found = "is missing" if theirs not in config else f"cannot be {value!r}"
            raise DataError(f"{theirs} {found}", where=where, hint="give the config.json that belongs to the weights")
        sizes[ours] = value
    eps = config.get("layer_norm_eps", 1e-12)
    if isinstance(eps, bool) or not isinstance(eps, float | int) or not 0 <= eps < 1:
        raise DataError(f"layer_norm_eps cannot be {eps!r}", where=where)
    return BertArchitecture(**sizes, eps=float(eps))


def to_config(model: BertArchitecture, *, pad: int) -> dict[str, Any]:
    """What a config.json says of a model: the inverse of `read_architecture`, and the rates of dropout."""
    return {
        "model_type": "bert",
        **{theirs: getattr(model, ours) for ours, theirs in _KEYS.items()},
        "layer_norm_eps": model.eps,
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "type_vocab_size": 2,
        "pad_token_id": pad,
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.attention_dropout,
        "classifier_dropout": model.dropout,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }


def class_names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The label names of a config.json in order, None where it has none of its own."""
    labels = config.get("id2label")
    if not isinstance(labels, Mapping):
        return None
    names = tuple(labels.get(str(number)) for number in range(len(labels)))
    known = all(isinstance(name, str) and not re.fullmatch(r"LABEL_\d+", name) for name in names)
    return names if names and known else None  # type: ignore[return-value]
