"""GPT-2 and Llama as Hugging Face writes them down and as they are here: tensor names, layouts, config.json.

Here a parameter is a path such as `layers/0/attention/query/kernel`, kernels are [in, out], and the vocabulary is
padded. There it is `model.layers.0.self_attn.q_proj.weight`, [out, in]; or `transformer.h.0.attn.c_attn.weight`,
[in, out], with queries, keys and values side by side.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigctl.errors import ConfigError, DataError
from bigctl.interop import settings
from bigctl.interop.stored import Stored
from bigctl.interop.tensors import Tensors
from bigctl.models.architecture import GPT, LLAMA, DecoderArchitecture

MODEL_TYPES = {"gpt2": GPT, "llama": LLAMA}
"""What config.json calls the models that are known here."""

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
        tensor: its name there.
        turned: whether it is transposed there.
        third: which third of its last axis it is, None for all of it.
    """

    tensor: str
    turned: bool = False
    third: int | None = None

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
    module = f"model.layers.{match[1]}.{_LLAMA_LAYER[match[2]]}" if match else _LLAMA_TOP[module]
    return Place(f"{module}.{last}", turned=leaf == "kernel")


def parameter_names(kind: str, *, layers: int, bias: bool, tied: bool) -> list[str]:
    """Paths of all parameters of a "gpt" or "llama" as `transformers` has them."""
    gpt = kind == GPT
    norm = ["scale", "bias"] if gpt else ["scale"]
    dense = ["kernel", "bias"] if gpt or bias else ["kernel"]
    names = ["token/embedding"] + (["position/embedding"] if gpt else [])
    for i in range(layers):
        for module in _GPT_LAYER if gpt else _LLAMA_LAYER:
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
    for name in parameter_names(kind, layers=model.layers, bias=model.bias, tied=model.tied):
        values = np.asarray(params[name] if name in params else _filler(name, params), np.float32)
        if name == "token/embedding":
            values = values[: model.vocab]
        elif name == "head/kernel":
            values = values[:, : model.vocab]
        found = place(name, kind)
        if found.third is None:
            whole[found.tensor] = np.ascontiguousarray(values.T if found.turned else values)
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


class StoredTensors(Stored):
    """Parameters of a GPT-2 or Llama in the safetensors of a Hugging Face folder.

    Attributes:
        file: what to name in errors.
        shapes: of the parameters that are there, by path; the vocabulary is not padded.

    Raises:
        DataError: if a file is damaged.
    """

    def __init__(self, folder: Path, kind: str, layers: int, *, tied: bool):
        self.tensors = Tensors(folder)
        self.file = self.tensors.file
        self.tied = tied
        names = {plain_name(name, kind): name for name in self.tensors.shapes}
        paths = parameter_names(kind, layers=layers, bias=True, tied=tied)
        places = {path: place(path, kind) for path in paths}
        self.places = {
            path: dataclasses.replace(found, tensor=names[found.tensor])
            for path, found in places.items()
            if found.tensor in names
        }
        self.shapes = {path: p.shape(self.tensors.shapes[p.tensor]) for path, p in self.places.items()}

    def read(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        return {name: self.places[name].take(self.tensors.read(self.places[name].tensor)) for name in names}

    def unused(self, taken: Iterable[str]) -> list[str]:
        used = {self.places[name].tensor for name in taken}
        return [n for n in self.tensors.shapes if n not in used and not is_repetition(n, tied=self.tied)]


# -------------------------------------------------------------------------------------------------------- config.json

_GPT_SIZES = {
    "layers": ("n_layer", "num_hidden_layers"),
    "width": ("n_embd", "hidden_size"),
    "heads": ("n_head", "num_attention_heads"),
    "context": ("n_positions", "max_position_embeddings", "n_ctx"),
    "vocab": ("vocab_size",),
}
_LLAMA_SIZES = {
    "layers": ("num_hidden_layers",),
    "width": ("hidden_size",),
    "heads": ("num_attention_heads",),
    "intermediate": ("intermediate_size",),
    "context": ("max_position_embeddings",),
    "vocab": ("vocab_size",),
}
_GPT_REQUIRED = {
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
_GPT_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
    "relu2": "relu2",
}
_THEIR_ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu2": "relu2"}


def read_architecture(config: Mapping[str, object], where: str) -> tuple[str, DecoderArchitecture]:
    """Kind of the model that a config.json describes, "gpt" or "llama", and its architecture.

    Raises:
        DataError: if it lacks one of them, or describes a model that is not the one here.
    """
    kind = MODEL_TYPES.get(str(config.get("model_type")))
    if kind == GPT:
        return GPT, _gpt(config, where)
    if kind == LLAMA:
        return LLAMA, _llama(config, where)
    raise DataError(
        f"model_type is {config.get('model_type')!r}; only 'bert', 'gpt2' and 'llama' are supported",
        where=where,
        hint="choose a BERT, a GPT-2 or a Llama",
    )


def _gpt(config: Mapping[str, object], where: str) -> DecoderArchitecture:
    for name, allowed in _GPT_REQUIRED.items():
        _require(config, name, allowed, where)
    activation = config.get("activation_function", "gelu_new")
    if activation not in _GPT_ACTIVATIONS:
        raise DataError(
            f"activation_function is {activation!r}", where=where, hint=f"known: {', '.join(_GPT_ACTIVATIONS)}"
        )
    sizes: dict[str, Any] = {ours: _size(config, theirs, where) for ours, theirs in _GPT_SIZES.items()}
    wide = 4 * sizes["width"] if config.get("n_inner") is None else _size(config, ("n_inner",), where)
    _divisible(sizes["width"], sizes["heads"], where)
    return DecoderArchitecture(
        **sizes,
        kv_heads=sizes["heads"],
        intermediate=wide,
        position="learned",
        norm="layer",
        activation=_GPT_ACTIVATIONS[str(activation)],
        bias=True,
        tied=config.get("tie_word_embeddings", True) is not False,
        eps=settings.number(config, "layer_norm_epsilon", 1e-5, where),
    )


def _llama(config: Mapping[str, object], where: str) -> DecoderArchitecture:
    _require(config, "hidden_act", ("silu", "swish"), where, default="silu")
    _require(config, "pretraining_tp", (1,), where)
    sizes: dict[str, Any] = {ours: _size(config, theirs, where) for ours, theirs in _LLAMA_SIZES.items()}
    groups = sizes["heads"]
    if config.get("num_key_value_heads") is not None:
        groups = _size(config, ("num_key_value_heads",), where)
    _divisible(sizes["width"], sizes["heads"], where)
    depth = sizes["width"] // sizes["heads"]
    _require(config, "head_dim", (depth, None), where)
    if sizes["heads"] % groups:
        raise DataError(f"{sizes['heads']} heads cannot be shared out over {groups}", where=where)
    biases = [config.get(name, False) for name in ("attention_bias", "mlp_bias")]
    if biases[0] != biases[1]:
        raise DataError(
            "attention_bias and mlp_bias differ", where=where, hint="only biases in all layers or none are supported"
        )
    return DecoderArchitecture(
        **sizes,
        kv_heads=groups,
        position="rope",
        rope_theta=_rope_theta(config, where),
        norm="rms",
        activation="swiglu",
        bias=bool(biases[0]),
        tied=bool(config.get("tie_word_embeddings", False)),
        eps=settings.number(config, "rms_norm_eps", 1e-6, where),
    )


_ROPE_KEYS = ("rope_theta", "rope_type", "type", "original_max_position_embeddings", "rope_parameters", "rope_scaling")


def _rope_theta(config: Mapping[str, object], where: str) -> float:
    """The base of the wave lengths, where rope is not scaled."""
    parameters = config.get("rope_parameters") or {}  # as transformers 5 writes it; before, rope_theta and rope_scaling
    scaling = config.get("rope_scaling") or parameters
    kind = scaling.get("rope_type", scaling.get("type", "default")) if isinstance(scaling, Mapping) else scaling
    if not isinstance(parameters, Mapping) or not isinstance(scaling, Mapping) or kind not in ("default", None):
        raise DataError(f"rope of the type {kind!r} is not supported", where=where, hint="only the plain one is")
    beside = {name: value for name, value in config.items() if re.search("rope|rotary", name)}
    given = ({**parameters, **scaling}, beside)
    strange = next(filter(None, (settings.unknown_rope_setting(each, _ROPE_KEYS) for each in given)), None)
    if strange is not None:
        message = f"rope with the setting {strange!r} is not supported"
        raise DataError(message, where=where, hint="only the plain one is")
    theta = parameters.get("rope_theta", config.get("rope_theta", 10000.0))
    return settings.number({"rope_theta": theta}, "rope_theta", 10000.0, where, most=1e12)


def to_config(model: DecoderArchitecture, *, special: Mapping[str, int]) -> dict[str, Any]:
    """What a config.json says of a model: the inverse of `read_architecture`.

    Args:
        model: the architecture.
        special: numbers of "bos", "eos" and "pad", those that the tokenizer has.
    """
    kind = exported_kind(model)
    tokens = {f"{name}_token_id": special.get(name) for name in ("bos", "eos", "pad")}
    shared = {**tokens, "vocab_size": model.vocab, "tie_word_embeddings": model.tied, "dtype": "float32"}
    if kind == GPT:
        return {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            **{names[0]: getattr(model, ours) for ours, names in _GPT_SIZES.items() if ours != "vocab"},
            "n_ctx": model.context,
            "n_inner": model.intermediate,
            "activation_function": _THEIR_ACTIVATIONS[model.activation],
            "layer_norm_epsilon": model.eps,
            **dict.fromkeys(("embd_pdrop", "resid_pdrop"), model.dropout),
            "attn_pdrop": 0.0,
            **shared,
        }
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        **{names[0]: getattr(model, ours) for ours, names in _LLAMA_SIZES.items() if ours != "vocab"},
        "num_key_value_heads": model.kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": model.eps,
        "rope_theta": model.rope_theta,
        "attention_bias": model.bias,
        "mlp_bias": model.bias,
        **shared,
    }


def _require(
    config: Mapping[str, object], name: str, allowed: tuple[object, ...], where: str, default: object = None
) -> None:
    found = config.get(name, allowed[0] if default is None else default)
    if found not in allowed:
        raise DataError(f"{name} is {found!r}; only {allowed[0]!r} is supported", where=where)


def _size(config: Mapping[str, object], names: tuple[str, ...], where: str) -> int:
    name = next((name for name in names if name in config), names[0])
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        found = "is missing" if name not in config else f"cannot be {value!r}"
        raise DataError(f"{name} {found}", where=where, hint="give the config.json that belongs to the weights")
    return value


def _divisible(width: int, heads: int, where: str) -> None:
    if width % heads:
        raise DataError(f"a width of {width} is not divisible by {heads} heads", where=where)
