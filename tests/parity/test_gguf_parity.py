"""Promise of `bigctl export --format gguf`: transformers, which reads GGUF by itself, agrees."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bigctl.config import schema
from bigctl.data.text import tokenization
from bigctl.interop import gguf_export
from bigctl.models.architecture import decoder_architecture
from bigctl.models.decoder import Decoder
from tests.parity.test_export_parity import random

pytestmark = pytest.mark.optimized

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
load_gguf_checkpoint = pytest.importorskip("transformers.modeling_gguf_pytorch_utils").load_gguf_checkpoint

SIZES = {"layers": 2, "width": 32, "heads": 4, "context": 16, "intermediate": 64}
MODELS = {
    "llama": schema.Decoder(
        **SIZES, kv_heads=2, position="rope", rope_theta=5000.0, norm="rms", activation="swiglu", bias=False, tied=False
    ),
    "gpt": schema.Decoder(**SIZES, position="learned", norm="layer", activation="gelu_tanh", bias=True, tied=True),
}
TEXT = "the cat sat on 12 mats and it's raining, isn't it? "


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("stored", "tolerance"), [("F32", 1e-4), ("F16", 5e-3)])
def test_transformers_reads_the_file_and_gives_the_same_logits(tmp_path, kind, stored, tolerance):
    tokenizer = tokenization.train(schema.StreamTokenizer(type="bpe", size=280), [TEXT * 20])
    vocab = tokenizer.get_vocab_size()
    config = MODELS[kind]
    model = Decoder(config, vocab, rngs=nnx.Rngs(0))
    params = random(model)
    end = tokenizer.token_to_id("<|endoftext|>")
    export = gguf_export.GgufExport(
        model=decoder_architecture(config, vocab), params=params, tokenizer=json.loads(tokenizer.to_str()),
        special={"eos": end}, ends=(end,), chat_template=None, name="run",
    )  # fmt: skip
    gguf_export.write(export, tmp_path / "model.gguf", stored, "run")
    tokens = tokenizer.encode(TEXT).ids[:16]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    assert theirs(TEXT, add_special_tokens=False)["input_ids"][:16] == tokens
    settings = transformers.AutoConfig.from_pretrained(tmp_path, gguf_file="model.gguf")
    if kind == "gpt":  # of which it takes these two for those of GPT-2 itself
        settings.n_positions, settings.n_inner = config.context, config.intermediate
    # as from_pretrained does it, which wants accelerate
    network = transformers.AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    read = load_gguf_checkpoint(str(tmp_path / "model.gguf"), return_tensors=True, model_to_load=network)["tensors"]
    lost = network.load_state_dict({name: torch.as_tensor(values) for name, values in read.items()}, strict=False)
    assert set(lost.missing_keys) <= ({"lm_head.weight"} if config.tied else set()) and not lost.unexpected_keys
    with torch.no_grad():
        expected = network.eval()(torch.tensor([tokens])).logits[0].numpy()
    found = np.asarray(model.logits(model(jnp.asarray([tokens]))))[0, :, :vocab]
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
