"""Promises of `bigctl.interop.decoder`: names, layouts and config.json of GPT-2 and Llama, there and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bigctl.config import schema
from bigctl.errors import ConfigError, DataError
from bigctl.interop import decoder, decoder_config
from bigctl.models.architecture import decoder_architecture
from tests.parity import cases

GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_embd": 8, "n_head": 2, "n_positions": 16, "vocab_size": 10}
LLAMA = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 12, "max_position_embeddings": 16, "vocab_size": 10,
}  # fmt: skip


def test_queries_keys_and_values_of_gpt2_lie_side_by_side() -> None:
    tensors = {"transformer.h.1.attn.c_attn.weight": np.arange(12.0).reshape(2, 6)}
    found = [decoder.place(f"layers/1/attention/{name}/kernel", "gpt") for name in ("query", "key", "value")]
    assert {place.tensor for place in found} == set(tensors)
    parts = [place.take(tensors[place.tensor]) for place in found]
    np.testing.assert_array_equal(parts[1], [[2, 3], [8, 9]])
    np.testing.assert_array_equal(np.concatenate(parts, 1), tensors["transformer.h.1.attn.c_attn.weight"])
    assert found[0].shape((2, 6)) == (2, 2)


def test_kernels_of_llama_are_turned() -> None:
    place = decoder.place("layers/0/gate/kernel", "llama")
    assert place.tensor == "model.layers.0.mlp.gate_proj.weight" and place.shape((12, 8)) == (8, 12)
    np.testing.assert_array_equal(place.take(np.eye(2, 3)), np.eye(3, 2))
    assert decoder.place("layers/0/mlp_norm/scale", "llama").tensor == "model.layers.0.post_attention_layernorm.weight"


def test_the_prefix_of_the_inner_model_may_be_missing() -> None:
    assert decoder.plain_name("h.0.ln_1.weight", "gpt") == "transformer.h.0.ln_1.weight"
    assert decoder.plain_name("lm_head.weight", "llama") == "lm_head.weight"


def test_masks_and_a_tied_output_say_nothing() -> None:
    assert decoder.is_repetition("transformer.h.0.attn.bias", tied=False)
    assert not decoder.is_repetition("transformer.h.0.attn.c_attn.bias", tied=False)
    assert decoder.is_repetition("lm_head.weight", tied=True) and not decoder.is_repetition(
        "lm_head.weight", tied=False
    )


def test_config_json_decides_the_architecture() -> None:
    kind, gpt = decoder_config.read_architecture(
        {**GPT2, "activation_function": "gelu", "layer_norm_epsilon": 1e-6}, "config.json"
    )
    assert kind == "gpt" and gpt.intermediate == 32 and gpt.kv_heads == 2 and gpt.tied
    assert (gpt.activation, gpt.eps, gpt.bias) == ("gelu", 1e-6, True)
    kind, llama = decoder_config.read_architecture(
        {**LLAMA, "rope_theta": 5e5, "tie_word_embeddings": True}, "config.json"
    )
    assert kind == "llama" and llama.kv_heads == 2 and llama.rope_theta == 5e5 and llama.tied
    assert (
        decoder_config.read_architecture({**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, "")[
            1
        ].rope_theta
        == 7.0
    )
    assert not decoder_config.read_architecture(LLAMA, "config.json")[1].tied


@pytest.mark.parametrize(
    "config, words",
    [
        ({**GPT2, "model_type": "mamba"}, ["'mamba'", "'gpt2', 'llama' and 'mixtral'"]),
        ({**GPT2, "n_layer": None}, ["n_layer cannot be None"]),
        ({**GPT2, "n_head": 3}, ["8 is not divisible by 3"]),
        ({**GPT2, "activation_function": "tanh"}, ["activation_function is 'tanh'", "gelu_new"]),
        ({**GPT2, "scale_attn_by_inverse_layer_idx": True}, ["scale_attn_by_inverse_layer_idx is True"]),
        ({**GPT2, "layer_norm_epsilon": "x"}, ["layer_norm_epsilon cannot be 'x'"]),
        ({k: v for k, v in LLAMA.items() if k != "hidden_size"}, ["hidden_size is missing"]),
        ({**LLAMA, "head_dim": 4}, ["head_dim is 4"]),
        ({**LLAMA, "num_key_value_heads": 3}, ["4 heads", "3"]),
        ({**LLAMA, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, ["rope of the type 'llama3'"]),
        ({**LLAMA, "rope_scaling": "x"}, ["rope"]),
        ({**LLAMA, "rope_scaling": {"factor": 2.0}}, ["rope with the setting 'factor'"]),
        ({**LLAMA, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, ["partial_rotary"]),
        ({**LLAMA, "partial_rotary_factor": 0.5}, ["rope with the setting 'partial_rotary_factor'"]),
        ({**LLAMA, "rope_parameters": [1]}, ["rope"]),
        ({**LLAMA, "attention_bias": True}, ["attention_bias and mlp_bias differ"]),
        ({**LLAMA, "hidden_act": "gelu"}, ["hidden_act is 'gelu'"]),
    ],
)
def test_another_model_is_refused_in_one_line(config: dict, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        decoder_config.read_architecture(config, "folder/config.json")
    line = str(caught.value)
    assert "\n" not in line and line.startswith("folder/config.json")
    assert all(word in line for word in words), line


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "model",
    [
        schema.Gpt(layers=2, width=8, heads=2, context=16),
        schema.Llama(layers=2, width=8, heads=4, kv_heads=2, context=16),
    ],
    ids=["gpt", "llama"],
)
def test_config_json_of_an_export_says_what_the_model_is(model: schema.Decoder, tied: bool) -> None:
    model.tied = tied
    whole = decoder_architecture(model, 10)
    written = decoder_config.to_config(whole, special={"eos": 3})
    kind, found = decoder_config.read_architecture(written, "config.json")
    assert kind == model.kind and written["eos_token_id"] == 3 and found.vocab == 10
    assert found == whole


def test_what_transformers_has_no_class_for_is_refused() -> None:
    sizes = {"layers": 1, "width": 8, "heads": 2, "context": 4}
    for odd in ({"qk_norm": True}, {"activation": "relu2", "position": "rope"}, {"kv_heads": 1}, {"norm": "rms"}):
        with pytest.raises(ConfigError, match="no class for a decoder with position="):
            decoder.exported_kind(decoder_architecture(schema.Gpt(**sizes, **odd), 10))
    assert decoder.exported_kind(decoder_architecture(schema.Gpt(**sizes, activation="relu2"), 10)) == "gpt"


@pytest.mark.parametrize("name", cases.DECODER)
def test_logits_and_gradients_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    cases.assert_decoder_agrees(cases.load(name), tmp_path / "model")
