"""GPT-2 and Llama here and in transformers: the same logits and gradients, read from the folder that it saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bigctl.config import schema
from bigctl.errors import DataError
from bigctl.interop import decoder, decoder_config, huggingface, loading, sources, vocabularies
from bigctl.models.architecture import decoder_architecture
from bigctl.models.decoder import Decoder
from bigctl.runs.generation_config import GenerationConfig
from bigctl.training.checkpoints.arrays import flatten
from tests.parity import cases

pytestmark = pytest.mark.optimized

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCAB = 131
GPT: dict[str, Any] = {"n_layer": 3, "n_embd": 24, "n_head": 4, "n_positions": 40, "vocab_size": VOCAB}
LLAMA: dict[str, Any] = {
    "num_hidden_layers": 3, "hidden_size": 24, "num_attention_heads": 6, "intermediate_size": 50,
    "max_position_embeddings": 40, "vocab_size": VOCAB,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", GPT),
    "gpt2 with erf and its own output": ("gpt2", {**GPT, "activation_function": "gelu", "tie_word_embeddings": False}),
    "gpt2 of another width inside": ("gpt2", {**GPT, "n_inner": 40, "layer_norm_epsilon": 1e-3}),
    "llama": ("llama", {**LLAMA, "num_key_value_heads": 6}),
    "llama with shared keys and values": ("llama", {**LLAMA, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama with one key and value": ("llama", {**LLAMA, "num_key_value_heads": 1, "rms_norm_eps": 1e-3}),
    "llama with biases": ("llama", {**LLAMA, "num_key_value_heads": 3, "attention_bias": True, "mlp_bias": True}),
    "llama of another wave length": ("llama", {**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 71}}),
}  # fmt: skip


def theirs(name: str) -> Any:
    """A model of transformers with weights large enough for every part to matter."""
    kind, options = MODELS[name]
    torch.manual_seed(1)
    if kind == "gpt2":
        off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**options, **off))
    else:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model.eval()


def read(folder: Path) -> tuple[schema.Decoder, Any, dict[str, np.ndarray]]:
    """The architecture, the model's structure, and its weights by path."""
    source = sources.locate_source(str(folder))
    cls = schema.Gpt if source.model == "gpt" else schema.Llama
    config = sources.fill_architecture(cls(init_from=str(folder)), source)
    assert isinstance(config, schema.Decoder)
    structure, params, rest = nnx.split(Decoder(config, VOCAB, rngs=nnx.Rngs(params=jax.random.key(0))), nnx.Param, ...)
    shapes = {name: value.shape for name, value in flatten(nnx.to_pure_dict(params)).items()}
    weights, new, unused = loading.load_weights(source, shapes)
    assert (new, unused) == ([], [])
    return config, (structure, rest), weights


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    from tests.parity import reference

    cases.assert_decoder_agrees(reference.decoder(*MODELS[name], length=29), tmp_path / "model")


@pytest.mark.parametrize("name", cases.DECODER)
def test_fixtures_are_what_transformers_computes_today(name: str) -> None:
    from tests.parity import reference

    live, stored = reference.decoder(*cases.DECODER[name]), cases.load(name)
    assert set(live) == set(stored)
    for path, value in stored.items():
        if path != "config":
            cases.assert_close(path, live[path], value, least=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_back_is_what_was_read(name: str, tmp_path: Path) -> None:
    model = theirs(name)
    model.save_pretrained(tmp_path / "model")
    config, _, weights = read(tmp_path / "model")
    found = decoder_architecture(config, VOCAB)
    tensors = decoder.to_tensors(weights, found)
    stored = {n: p.detach().numpy() for n, p in model.named_parameters()}
    assert set(tensors) == set(stored)
    for path, values in stored.items():
        np.testing.assert_array_equal(tensors[path], values, err_msg=path)
    again = decoder_config.read_architecture(decoder_config.to_config(found, special={}), "config.json")
    assert again == decoder_config.read_architecture(model.config.to_dict(), "config.json")


@pytest.mark.parametrize("name", ["gpt2", "llama with shared keys and values"])
def test_an_export_is_loaded_by_transformers_and_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    """Also of a model without the biases that transformers has."""
    bare = {"bias": False, "norm_gain": False}
    config: schema.Decoder = (
        schema.Gpt(layers=2, width=24, heads=4, context=40, activation="gelu", **bare)
        if name == "gpt2"
        else schema.Llama(layers=2, width=24, heads=4, kv_heads=2, context=40, tied=False, norm_gain=False)
    )
    model = Decoder(config, 3, rngs=nnx.Rngs(params=jax.random.key(0)))
    draw = np.random.default_rng(0)
    nnx.update(model, jax.tree.map(lambda p: p + draw.normal(size=p.shape) * 0.2, nnx.state(model, nnx.Param)))
    params = {n: np.asarray(v) for n, v in flatten(nnx.to_pure_dict(nnx.state(model, nnx.Param))).items()}
    words = vocabularies.byte_level(["a", "b", "<end>"], [], special=["<end>"], split="gpt-2", where="")
    folder = huggingface.write_decoder(
        params,
        decoder_architecture(config, 3),
        vocabularies.store_tokenizer(words),
        GenerationConfig({"eos": 2}, (2, 1)),
        tmp_path / "out",
    )
    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(str(folder), output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    assert tokenizer("abba").input_ids == [0, 1, 1, 0] and tokenizer.eos_token == "<end>"
    assert loaded.generation_config.eos_token_id == [2, 1]
    text = draw.integers(0, 3, (2, 17))
    found = loaded.eval()(input_ids=torch.tensor(text)).logits.detach().numpy()
    cases.assert_close("logits", model.logits(model(jnp.asarray(text, jnp.int32)))[..., :3], found)


@pytest.mark.slow
def test_smollm2_is_that_of_transformers(tmp_path: Path) -> None:
    """The packaged weights, as llama.cpp's file has them and as transformers reads an export of them."""
    try:
        source = sources.locate_source("smollm2")
    except DataError as error:
        pytest.skip(str(error))
    config = sources.fill_architecture(schema.Llama(init_from="smollm2"), source)
    abstract = nnx.eval_shape(lambda: Decoder(config, 0, rngs=nnx.Rngs(params=jax.random.key(0))))
    structure, params, rest = nnx.split(abstract, nnx.Param, ...)
    weights, new, unused = loading.load_weights(
        source, {n: v.shape for n, v in flatten(nnx.to_pure_dict(params)).items()}
    )
    assert (new, unused) == ([], [])
    folder = huggingface.write_decoder(
        weights,
        decoder_architecture(config, 0),
        source.tokenizer,
        source.generation_config,
        tmp_path / "out",
    )
    loaded = transformers.AutoModelForCausalLM.from_pretrained(str(folder)).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    text = "In 1492 it's   said: caf\u00e9, \u4f60\u597d!\n\n<|im_start|>user\nHello<|im_end|>"
    inputs = tokenizer(text, return_tensors="pt").input_ids
    assert tokenizer.decode(inputs[0]) == text
    nested = cases.nested(weights)
    hidden = nnx.merge(structure, nested, rest)(jnp.asarray(inputs.numpy(), jnp.int32))
    ours = nnx.merge(structure, nested, rest).logits(hidden)
    cases.assert_close("logits", ours, loaded(input_ids=inputs).logits.detach().numpy())
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
