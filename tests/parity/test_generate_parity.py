"""Generation here and in transformers: the same rules of sampling, and greedy text that is equal token for token."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bigctl.config import schema
from bigctl.generation import sampling
from bigctl.generation.decoding import Batch
from bigctl.generation.options import GenerationOptions
from bigctl.interop import decoder as layout
from bigctl.models.decoder import Decoder
from bigctl.parallel import partition

pytestmark = pytest.mark.optimized

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCAB = 97
GPT = schema.Gpt(layers=2, width=48, heads=4, intermediate=96, context=256)
LLAMA = schema.Llama(layers=2, width=48, heads=4, kv_heads=2, intermediate=96, context=256, tied=False)


# ---------------------------------------------------------------------------------------------------- the same rules


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.0, "top_k": 40},
        {"temperature": 1.0, "top_k": 5000},
        {"temperature": 1.0, "top_p": 1e-4},
        {"temperature": 1.0, "top_p": 0.5},
        {"temperature": 1.0, "top_p": 0.999},
        {"temperature": 1.0, "min_p": 0.02},
        {"temperature": 1.0, "repetition_penalty": 1.3},
        {"temperature": 1.0, "repetition_penalty": 0.8},
        {"temperature": 1.7, "top_k": 60, "top_p": 0.9, "min_p": 0.03, "repetition_penalty": 1.2},
    ],
    ids=str,
)
def test_rules_are_those_of_transformers(options: dict[str, float]) -> None:
    """All sampling rules, alone and together, on logits of several scales."""
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal((8, 1000)) * np.linspace(0.5, 8, 8)[:, None]).astype(np.float32)
    tokens = rng.integers(0, 1000, (8, 50))
    seen = np.zeros(logits.shape, bool)
    np.put_along_axis(seen, tokens, True, axis=1)
    theirs = _processed(torch.tensor(logits), torch.tensor(tokens), options).numpy()
    settings = GenerationOptions(**options)  # type: ignore[arg-type]
    ours = np.asarray(sampling.filtered(jnp.asarray(logits), jnp.asarray(seen), sampling.rule_values(settings)))
    np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(theirs))
    np.testing.assert_allclose(ours[np.isfinite(ours)], theirs[np.isfinite(theirs)], rtol=1e-6)


def _processed(logits: Any, tokens: Any, options: dict[str, float]) -> Any:
    """transformers' processors in the order in which its `generate` applies them."""
    order = {
        "repetition_penalty": transformers.RepetitionPenaltyLogitsProcessor,
        "temperature": transformers.TemperatureLogitsWarper,
        "top_k": transformers.TopKLogitsWarper,
        "top_p": transformers.TopPLogitsWarper,
        "min_p": transformers.MinPLogitsWarper,
    }
    for name, processor in order.items():
        if name in options:
            logits = processor(options[name])(tokens, logits)
    return logits


# ----------------------------------------------------------------------------------------------------- the same text


@pytest.mark.parametrize(
    ("config", "count", "penalty"),
    [(GPT, 200, 1.0), (LLAMA, 200, 1.0), (GPT, 40, 1.2)],
    ids=["gpt", "llama", "repetition penalty"],
)
def test_greedy_text_is_that_of_transformers(config: schema.Decoder, count: int, penalty: float) -> None:
    """Five prompts of different lengths in one batch; theirs one by one."""
    torch.set_num_threads(1)
    theirs = _random_model(config)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, VOCAB, length).tolist() for length in (1, 3, 17, 32, 50)]
    settings = GenerationOptions(temperature=0, max_new_tokens=count, repetition_penalty=penalty)
    batch = Batch(_ours(config, theirs), prompts, settings)
    while batch.growing:
        batch.advance()
    for row, prompt in enumerate(prompts):
        with torch.no_grad():
            expected = theirs.generate(
                torch.tensor([prompt]), do_sample=False, max_new_tokens=count, repetition_penalty=penalty
            )[0].tolist()
        assert batch.tokens[row] == expected
    assert len({tuple(tokens[-count // 2 :]) for tokens in batch.tokens}) == 5  # not one loop for all


def _random_model(config: schema.Decoder) -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if isinstance(config, schema.Gpt):
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                n_layer=config.layers, n_embd=config.width, n_head=config.heads, n_inner=config.intermediate,
                n_positions=config.context, **sizes,
            )
        )  # fmt: skip
    else:
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                num_hidden_layers=config.layers, hidden_size=config.width, num_attention_heads=config.heads,
                num_key_value_heads=config.kv_heads, intermediate_size=config.intermediate,
                max_position_embeddings=config.context, rms_norm_eps=1e-5, tie_word_embeddings=False, **sizes,
            )
        )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():  # larger than at the start of training, so that no two tokens tie
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def _ours(config: schema.Decoder, theirs: Any) -> Decoder:
    """The same weights here; the vocabulary is padded with zeros."""
    tensors = {name: value.detach().numpy() for name, value in theirs.state_dict().items()}
    graphdef, params, rest = nnx.split(Decoder(config, VOCAB, rngs=nnx.Rngs(0)), nnx.Param, ...)  # type: ignore[misc]

    def filled(path: Any, leaf: jax.Array) -> jax.Array:
        place = layout.place(partition.path_name(path), config.kind)
        values = place.take(tensors[place.tensor])
        return jnp.asarray(np.pad(values, [(0, a - b) for a, b in zip(leaf.shape, values.shape, strict=True)]))

    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(filled, nnx.to_pure_dict(params)), rest)
