"""GPT-2, Llama and Mixtral as Hugging Face writes them down and as they are here: tensor names and layouts.

Here a parameter is a path such as `layers/0/attention/query/kernel`, kernels are [in, out], and the vocabulary is
padded. There it is `model.layers.0.self_attn.q_proj.weight`, [out, in]; or `transformer.h.0.attn.c_attn.weight`,
[in, out], with queries, keys and values side by side. A Mixtral is a Llama with experts, whose matrices
are side by side here and tensors of their own there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bigctl.errors import ConfigError
from bigctl.interop.stored import Stored
from bigctl.interop.tensors import Tensors
from bigctl.models.architecture import GPT, LLAMA, DecoderArchitecture

_QKV = ("query", "key", "value")
_GPT_LAYER = {
    "attention_norm": "ln_1",
    "attention/output": "attn.c_proj",
    "mlp_norm": "ln_2",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
    **{f"attention/{part}": "attn.c_attn" for part in _QKV},
}
_LLAMA_LAYER = {
    "attention_norm": "input_layernorm",
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/output": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_MIXTRAL_EXPERT = {"gate": "w1", "down": "w2", "up": "w3"}
_MIXTRAL_LAYER = {
    **{name: theirs for name, theirs in _LLAMA_LAYER.items() if name not in _MIXTRAL_EXPERT},
    "experts/router": "block_sparse_moe.gate",
    **{f"experts/{name}": f"block_sparse_moe.experts.*.{theirs}" for name, theirs in _MIXTRAL_EXPERT.items()},
}
_GPT_TOP = {
    "token": "transformer.wte",
    "position": "transformer.wpe",
    "final_norm": "transformer.ln_f",
    "head": "lm_head",
}
_LLAMA_TOP = {"token": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}


@dataclass(frozen=True)
class Place:
    """Where a parameter is in a file.

    Attributes:
        tensor: its name there; of all experts' matrices with * for the number of the expert.
        turned: whether it is transposed there.
        third: which third of its last axis it is, None for all of it.
    """

    tensor: str
    turned: bool = False
    third: int | None = None

    def tensors(self, experts: int) -> list[str]:
        """The names of what makes it up."""
        if "*" not in self.tensor:
            return [self.tensor]
        return [self.tensor.replace("*", str(number)) for number in range(experts)]

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """The shape here of a tensor of that shape there."""
        if self.third is not None:
            return (*stored[:-1], stored[-1] // 3)
        return stored[::-1] if self.turned else stored

    def take(self, values: np.ndarray) -> np.ndarray:
        if self.third is not None:
            size = values.shape[-1] // 3
            return values[..., self.third * size : (self.third + 1) * size]
        return values.T if self.turned else values


def place(parameter: str, model: str) -> Place:
    """Where `transformers` keeps a parameter of a "gpt" or "llama"."""
    module, _, leaf = parameter.rpartition("/")
    last = "bias" if leaf == "bias" else "weight"
    match = re.fullmatch(r"layers/(\d+)/(.+)", module)
    if model == GPT:
        if not match:
            return Place(f"{_GPT_TOP[module]}.{last}", turned=module == "head")
        part = match[2].removeprefix("attention/")
        name = f"transformer.h.{match[1]}.{_GPT_LAYER[match[2]]}.{last}"
        return Place(name, third=_QKV.index(part) if part in _QKV else None)
    module = (
        f"model.layers.{match[1]}.{_MIXTRAL_LAYER.get(match[2]) or _LLAMA_LAYER[match[2]]}"
        if match
        else _LLAMA_TOP[module]
    )
    return Place(f"{module}.{last}", turned=leaf == "kernel")


def parameter_names(kind: str, *, layers: int, bias: bool, tied: bool, experts: int = 0) -> list[str]:
    """Paths of all parameters of a "gpt" or "llama" as `transformers` has them."""
    gpt = kind == GPT
    modules = _GPT_LAYER if gpt else _MIXTRAL_LAYER if experts else _LLAMA_LAYER
    norm = ["scale", "bias"] if gpt else ["scale"]
    dense = ["kernel", "bias"] if gpt or bias else ["kernel"]
    names = ["token/embedding"] + (["position/embedding"] if gpt else [])
    for i in range(layers):
        for module in modules:
            names += [f"layers/{i}/{module}/{leaf}" for leaf in (norm if module.endswith("norm") else dense)]
    names += [f"final_norm/{leaf}" for leaf in norm]
    return names if tied else [*names, "head/kernel"]


def plain_name(tensor: str, model: str) -> str:
    """The full name of a tensor: its first part may be missing, as the inner models of transformers leave it out."""
    prefix = "transformer." if model == GPT else "model."
    return tensor if tensor.startswith((prefix, "lm_head.")) else prefix + tensor


def is_repetition(tensor: str, *, tied: bool) -> bool:
    """Whether a tensor says nothing: masks, wave lengths, or a tied output."""
    buffers = re.search(r"\battn\.(bias|masked_bias)$|rotary_emb\.inv_freq$", tensor)
    return bool(buffers) or (tied and tensor.endswith("lm_head.weight"))


def to_tensors(params: Mapping[str, np.ndarray], model: DecoderArchitecture) -> dict[str, np.ndarray]:
    """Parameters by path -> tensors as `transformers` names and lays them out, float32.

    What this model lacks and theirs has is filled in: biases of zeros, gains of ones. The padding is cut.

    Args:
        params: by path, all of a model that `exported_kind` gives a name to.
        model: its architecture.
    """
    kind = exported_kind(model)
    whole: dict[str, np.ndarray] = {}
    thirds: dict[str, list[np.ndarray]] = {}
    for name in parameter_names(kind, layers=model.layers, bias=model.bias, tied=model.tied, experts=model.experts):
        values = np.asarray(params[name] if name in params else _filler(name, params), np.float32)
        if name == "token/embedding":
            values = values[: model.vocab]
        elif name == "head/kernel":
            values = values[:, : model.vocab]
        found = place(name, kind)
        if found.third is None:
            each = values if "*" in found.tensor else values[None]
            for tensor, part in zip(found.tensors(model.experts), each, strict=True):
                whole[tensor] = np.ascontiguousarray(part.T if found.turned else part)
        else:
            thirds.setdefault(found.tensor, []).append(values)
    return whole | {name: np.concatenate(parts, axis=-1) for name, parts in thirds.items()}


def _filler(name: str, params: Mapping[str, np.ndarray]) -> np.ndarray:
    module, _, leaf = name.rpartition("/")
    if leaf == "scale" or module.endswith("norm"):
        width = params["token/embedding"].shape[1]
        return np.ones(width, np.float32) if leaf == "scale" else np.zeros(width, np.float32)
    return np.zeros(params[f"{module}/kernel"].shape[1], np.float32)


def exported_kind(model: DecoderArchitecture) -> str:
    """Which of "gpt" and "llama" of `transformers` computes what a model does.

    Raises:
        ConfigError: if neither.
    """
    if model.experts:
        _require_mixtral(model)
        return LLAMA
    if not model.qk_norm:
        if (model.position, model.norm) == ("learned", "layer") and model.activation != "swiglu":
            if model.kv_heads == model.heads:
                return GPT
        elif (model.position, model.norm, model.activation) == ("rope", "rms", "swiglu"):
            return LLAMA
    parts = [f"position={model.position}", f"norm={model.norm}", f"activation={model.activation}"]
    parts += ["qk_norm"] if model.qk_norm else []
    raise ConfigError(
        f"transformers has no class for a decoder with {', '.join(parts)}",
        where="model",
        hint="train model=gpt_nano or model=llama_tiny for export; bigctl.load(RUN).params gives the weights as arrays",
    )


def _require_mixtral(model: DecoderArchitecture) -> None:
    """Raises ConfigError for experts that transformers' Mixtral does not compute."""
    usual = (model.position, model.norm, model.activation) == ("rope", "rms", "swiglu") and not model.qk_norm
    if usual and not model.bias and model.experts_per_token > 1:
        return
    parts = [f"position={model.position}", f"norm={model.norm}", f"activation={model.activation}"]
    parts += [name for name in ("qk_norm", "bias") if getattr(model, name)]
    raise ConfigError(
        f"transformers has no class for {model.experts} experts, {model.experts_per_token} for each token, with "
        f"{', '.join(parts)}",
        where="model.experts",
        hint="Mixtral is a model=llama without biases and with model.experts_per_token=2 or more; "
        "bigctl.load(RUN).params gives the weights as arrays",
    )


class StoredTensors(Stored):
    """Parameters of a GPT-2, Llama or Mixtral in the safetensors of a Hugging Face folder.

    Attributes:
        file: what to name in errors.
        shapes: of the parameters that are there, by path; the vocabulary is not padded.

    Raises:
        DataError: if a file is damaged.
    """

    def __init__(self, folder: Path, kind: str, layers: int, *, tied: bool, experts: int = 0):
        self.tensors = Tensors(folder)
        self.file = self.tensors.file
        self.tied, self.experts = tied, experts
        self.names = {plain_name(name, kind): name for name in self.tensors.shapes}
        paths = parameter_names(kind, layers=layers, bias=True, tied=tied, experts=experts)
        places = {path: place(path, kind) for path in paths}
        self.places = {path: found for path, found in places.items() if self._whole(found)}
        self.shapes = {path: self._shape(found) for path, found in self.places.items()}

    def read(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        return {name: self._read(self.places[name]) for name in names}

    def unused(self, taken: Iterable[str]) -> list[str]:
        used = {self.names[tensor] for name in taken for tensor in self.places[name].tensors(self.experts)}
        return [n for n in self.tensors.shapes if n not in used and not is_repetition(n, tied=self.tied)]

    def _whole(self, found: Place) -> bool:
        """Whether all that makes up a parameter is there, and of one shape."""
        parts = found.tensors(self.experts)
        return all(name in self.names for name in parts) and len({self._stored(name) for name in parts}) == 1

    def _stored(self, tensor: str) -> tuple[int, ...]:
        return self.tensors.shapes[self.names[tensor]]

    def _shape(self, found: Place) -> tuple[int, ...]:
        parts = found.tensors(self.experts)
        single = found.shape(self._stored(parts[0]))
        return (len(parts), *single) if "*" in found.tensor else single

    def _read(self, found: Place) -> np.ndarray:
        each = [found.take(self.tensors.read(self.names[name])) for name in found.tensors(self.experts)]
        return np.stack(each) if "*" in found.tensor else each[0]
