"""Mixtral here and in transformers: the same logits and router losses, read from the folder that it saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bigctl.config import schema
from bigctl.errors import ConfigError, DataError
from bigctl.interop import decoder, decoder_config, huggingface, vocabularies
from bigctl.models.architecture import DecoderArchitecture, decoder_architecture
from bigctl.models.decoder import Decoder
from bigctl.runs.generation_config import GenerationConfig
from tests.parity import cases
from tests.parity.cases import nested
from tests.parity.test_decoder_parity import LLAMA, VOCAB, read

pytestmark = pytest.mark.optimized

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.numpy")

EXPERTS = {"num_local_experts": 5, "num_experts_per_tok": 2}
MIXTRAL = {**LLAMA, **EXPERTS, "num_hidden_layers": 1, "intermediate_size": 48, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def theirs() -> Any:
    """With weights large enough for every part to matter."""
    torch.manual_seed(1)
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**MIXTRAL))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def saved(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixtral")
    theirs.save_pretrained(folder)
    return folder


def test_logits_and_losses_of_routers_are_those_of_transformers(theirs: Any, saved: Path) -> None:
    config, (structure, rest), weights = read(saved)
    assert (config.kind, config.experts, config.experts_per_token) == ("llama", 5, 2)
    text = np.random.default_rng(0).integers(0, VOCAB, (3, 29))

    def run(params: Any, text: jax.Array) -> Any:
        model = nnx.merge(structure, params, rest)
        hidden, told = model.routed(text)
        return model.logits(hidden)[..., :VOCAB], told

    logits, told = jax.jit(run)(nested(weights), jnp.asarray(text, jnp.int32))
    expected = theirs(input_ids=torch.tensor(text), output_router_logits=True)
    np.testing.assert_allclose(logits, expected.logits.detach().numpy(), atol=1e-4)
    cases.assert_close("load balance", told.load_balance, expected.aux_loss.detach().numpy())
    (router,) = expected.router_logits
    cases.assert_close("z", told.z, torch.logsumexp(router, -1).square().mean().detach().numpy())


def test_what_is_written_back_is_what_was_read(theirs: Any, saved: Path) -> None:
    config, _, weights = read(saved)
    found = decoder_architecture(config, VOCAB)
    tensors, stored = decoder.to_tensors(weights, found), safetensors.load_file(saved / "model.safetensors")
    assert set(tensors) == set(stored)
    for path, values in stored.items():
        np.testing.assert_array_equal(tensors[path], values, err_msg=path)
    again = decoder_config.read_architecture(decoder_config.to_config(found, special={}), "config.json")
    assert again == decoder_config.read_architecture(theirs.config.to_dict(), "config.json")


def test_an_export_is_loaded_by_transformers_and_gives_the_same_logits(saved: Path, tmp_path: Path) -> None:
    config, (structure, rest), weights = read(saved)
    words = vocabularies.byte_level(["a", "b", "<end>"], [], special=["<end>"], split="gpt-2", where="")
    folder = huggingface.write_decoder(
        weights, decoder_architecture(config, VOCAB), vocabularies.store_tokenizer(words), GenerationConfig({"eos": 2}),
        tmp_path / "out",
    )  # fmt: skip
    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(str(folder), output_loading_info=True)
    assert type(loaded).__name__ == "MixtralForCausalLM"
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    text = np.random.default_rng(1).integers(0, VOCAB, (2, 17))
    model: Decoder = nnx.merge(structure, nested(weights), rest)
    logits = nnx.jit(lambda model, text: model.logits(model(text)))(model, jnp.asarray(text, jnp.int32))
    expected = loaded.eval()(input_ids=torch.tensor(text)).logits.detach().numpy()
    np.testing.assert_allclose(logits[..., :VOCAB], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_experts_per_tok": 1}, "num_experts_per_tok is 1"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok is 9"),
        ({"sliding_window": 8}, "sliding_window is 8"),
        ({"num_local_experts": None}, "num_local_experts cannot be None"),
    ],
)
def test_a_mixtral_that_is_not_the_one_here_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        decoder_config.read_architecture({**MIXTRAL, "model_type": "mixtral", **change}, "config.json")


@pytest.mark.parametrize("change", [{"bias": True}, {"experts_per_token": 1}, {"position": "learned"}])
def test_experts_that_are_no_mixtral_are_not_exported(change: dict[str, Any]) -> None:
    config = schema.Llama(layers=1, width=24, heads=4, context=40, experts=4)
    model: DecoderArchitecture = decoder_architecture(config, 3)
    assert decoder.exported_kind(model) == "llama"
    with pytest.raises(ConfigError, match="for 4 experts"):
        decoder.exported_kind(decoder_architecture(type(config)(**{**vars(config), **change}), 3))
