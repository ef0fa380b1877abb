"""The config.json of GPT-2, Llama and Mixtral in transformers, read and written."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from bigctl.errors import DataError
from bigctl.interop import settings
from bigctl.interop.decoder import exported_kind
from bigctl.models.architecture import GPT, LLAMA, DecoderArchitecture

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
    kind = config.get("model_type")
    if kind == "gpt2":
        return GPT, _gpt(config, where)
    if kind == "llama":
        return LLAMA, _llama(config, where)
    if kind == "mixtral":
        return LLAMA, _mixtral(config, where)
    raise DataError(
        f"model_type is {kind!r}; only 'bert', 'gpt2', 'llama' and 'mixtral' are supported",
        where=where,
        hint="choose a BERT, a GPT-2, a Llama or a Mixtral",
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


def _mixtral(config: Mapping[str, object], where: str) -> DecoderArchitecture:
    """A Llama with experts (Jiang et al. 2024)."""
    experts = _size(config, ("num_local_experts",), where)
    each = _size(config, ("num_experts_per_tok",), where)
    if not 2 <= each <= experts:
        what = f"num_experts_per_tok is {each}; only 2 or more, of the {experts} experts, are supported"
        raise DataError(what, where=where)
    window, context = config.get("sliding_window"), _size(config, ("max_position_embeddings",), where)
    if window is not None and not (isinstance(window, int) and window >= context):
        what = f"sliding_window is {window!r}, less than the {context} positions"
        raise DataError(what, where=where, hint="only attention over the whole text is supported")
    usual = {"rms_norm_eps": 1e-5, "num_key_value_heads": 8, "rope_theta": 1e6}
    config = {**usual, **config, "attention_bias": False, "mlp_bias": False}
    return dataclasses.replace(_llama(config, where), experts=experts, experts_per_token=each)


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
    own: dict[str, Any] = {"attention_bias": model.bias, "mlp_bias": model.bias}
    names = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    if model.experts:
        own = {"num_local_experts": model.experts, "num_experts_per_tok": model.experts_per_token}
        names = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}
    return {
        **names,
        **{theirs[0]: getattr(model, ours) for ours, theirs in _LLAMA_SIZES.items() if ours != "vocab"},
        "num_key_value_heads": model.kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": model.eps,
        "rope_theta": model.rope_theta,
        **own,
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
