"""The models that are compared, and how. Free of torch: the plain tests read the cases from tests/fixtures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from bigctl.recipes.lm_loss import loss_sums
from flax import nnx
from safetensors.numpy import save_file

from bigctl.config import schema
from bigctl.interop import decoder, loading, sources
from bigctl.models.architecture import decoder_architecture
from bigctl.models.bert import BertClassifier, BertMaskedLM
from bigctl.models.decoder import Decoder
from bigctl.models.lstm import LstmClassifier
from bigctl.training.checkpoints.arrays import flatten

FIXTURES = Path(__file__).parents[1] / "fixtures"
TOLERANCE = 1e-4
"""Largest difference, as a share of the largest value of the same array (float32 on both sides)."""

_TINY: dict[str, Any] = {"layers": 2, "width": 12, "heads": 3, "intermediate": 20, "positions": 10, "vocab": 23}

BERT = {
    "bert_pooler": schema.Bert(pooler=True, **_TINY),
    "bert_mean": schema.Bert(pool="mean", eps=1e-5, **_TINY),
}
MASKED_LM = {"bert_masked_lm": schema.Bert(**_TINY)}
LSTM = {
    "lstm_max": schema.Lstm(embedding=5, hidden=4, layers=2, pool="max"),
    "lstm_last": schema.Lstm(embedding=5, hidden=6, layers=1, pool="last"),
    "lstm_mean": schema.Lstm(embedding=5, hidden=4, layers=2, bidirectional=False, pool="mean"),
}
_GPT2 = {"n_layer": 2, "n_embd": 12, "n_head": 3, "n_positions": 12, "vocab_size": 23}
_LLAMA = {
    "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 20, "vocab_size": 23,
    "max_position_embeddings": 12,
}  # fmt: skip
DECODER: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", _GPT2),
    "llama": ("llama", {**_LLAMA, "num_key_value_heads": 2, "rms_norm_eps": 1e-3}),
}
"""What transformers calls the model, and its configuration."""

Case = Mapping[str, np.ndarray]


def load(name: str) -> Case:
    with np.load(FIXTURES / f"{name}.npz") as file:
        return dict(file)


def part(case: Case, prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(f"{prefix}/"): value for name, value in case.items() if name.startswith(f"{prefix}/")}


def filled(model: nnx.Module, case: Case) -> tuple[Any, Any, dict[Any, jax.Array]]:
    """(structure, parameters of the case, everything else); the parameters must be those of the model."""
    structure, params, rest = nnx.split(model, nnx.Param, ...)
    shapes = {name: value.shape for name, value in flatten(nnx.to_pure_dict(params)).items()}
    given = part(case, "params")
    assert shapes == {name: value.shape for name, value in given.items()}
    return structure, nested(given), rest


def nested(flat: Mapping[str, np.ndarray]) -> dict[Any, Any]:
    """Parameters by path as a tree of arrays."""
    result: dict[Any, Any] = {}
    for name, value in flat.items():
        *parents, last = (int(p) if p.isdigit() else p for p in name.split("/"))
        node = result
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = jnp.asarray(value)
    return result


def texts(case: Case) -> list[jax.Array]:
    return [jnp.asarray(case[f"inputs/{name}"]) for name in ("tokens", "lengths", "second")]


def assert_bert_agrees(config: schema.Bert, case: Case) -> None:
    outputs = case["outputs/logits"].shape[-1]
    structure, params, rest = filled(BertClassifier(config, config.vocab or 0, outputs, rngs=_rngs()), case)
    inputs, real = texts(case), _real(case)

    def loss(params: Any) -> Any:
        model = nnx.merge(structure, params, rest)
        logits = model(*inputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, case["inputs/label"])
        return losses.mean(), {"logits": logits, "hidden": model.encoder(*inputs)}

    _assert_equal(loss, params, case, {"hidden": real})


def assert_masked_lm_agrees(config: schema.Bert, case: Case) -> None:
    structure, params, rest = filled(BertMaskedLM(config, config.vocab or 0, rngs=_rngs()), case)
    inputs, label = texts(case), case["inputs/label"]
    places = np.nonzero(label != -100)

    def loss(params: Any) -> Any:
        model = nnx.merge(structure, params, rest)
        hidden = model(*inputs)
        guesses = model.logits(hidden[places])  # as the recipe does: only where a token is to be guessed
        losses = optax.softmax_cross_entropy_with_integer_labels(guesses, label[places])
        everywhere = model.logits(hidden.reshape(-1, hidden.shape[-1]))
        return losses.mean(), {"logits": everywhere.reshape(*label.shape, -1)}

    _assert_equal(loss, params, case, {"logits": _real(case)})


def assert_lstm_agrees(config: schema.Lstm, case: Case) -> None:
    vocab, outputs = len(case["params/embedding/embedding"]), case["outputs/logits"].shape[-1]
    structure, params, rest = filled(LstmClassifier(config, vocab, outputs, rngs=_rngs()), case)
    inputs, real = texts(case), _real(case)

    def loss(params: Any) -> Any:
        model = nnx.merge(structure, params, rest)
        logits = model(*inputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, case["inputs/label"])
        states = model.embedding(inputs[0].T)
        for layer in model.layers:
            states, last = layer(states, jnp.asarray(real).T)
        return losses.mean(), {"logits": logits, "states": states.swapaxes(0, 1), "last": last}

    _assert_equal(loss, params, case, {"states": real})


def assert_decoder_agrees(case: Case, folder: Path) -> None:
    """A model in the form of transformers, read from a folder as any other: logits, loss, gradients under its names."""
    folder.mkdir()
    (folder / "config.json").write_text(str(case["config"]))
    save_file(part(case, "tensors"), folder / "model.safetensors")
    source = sources.locate_source(str(folder))
    config = sources.fill_architecture(
        (schema.Gpt if source.model == "gpt" else schema.Llama)(init_from=str(folder)), source
    )
    assert isinstance(config, schema.Decoder) and config.vocab is not None
    structure, params, rest = nnx.split(Decoder(config, config.vocab, rngs=_rngs()), nnx.Param, ...)
    shapes = {name: value.shape for name, value in flatten(nnx.to_pure_dict(params)).items()}
    weights, new, unused = loading.load_weights(source, shapes)
    assert (new, unused) == ([], [])
    tokens = jnp.asarray(case["inputs/tokens"])

    def loss(params: Any) -> Any:
        model = nnx.merge(structure, params, rest)
        hidden, targets = model(tokens[:, :-1]), tokens[:, 1:]
        found = loss_sums(hidden, model.head_kernel(), targets, jnp.ones(targets.shape), model.vocab_size)
        return found.total / found.weight, model.logits(hidden)[..., : model.vocab_size]

    (value, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(nested(weights))
    assert_close("loss", value, case["outputs/loss"])
    assert_close("logits", logits, case["outputs/logits"])
    slopes, expected = decoder.to_tensors(flatten(grads), decoder_architecture(config, 0)), part(case, "grads")
    assert set(slopes) == set(expected)
    for name, theirs in expected.items():
        assert_close(name, slopes[name], theirs, least=1e-3)  # that of key/bias is nothing but rounding


def _assert_equal(loss: Any, params: Any, case: Case, only: dict[str, np.ndarray]) -> None:
    """Loss, outputs (where `only` says, in padding they mean nothing) and the gradient of every parameter."""
    (value, found), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    expected = part(case, "outputs")
    for name, theirs in expected.items():
        ours = np.asarray({"loss": value, **found}[name])
        if name in only:
            ours, theirs = ours[only[name]], theirs[only[name]]
        assert_close(name, ours, theirs)
    ours_flat, theirs_flat = flatten(grads), part(case, "grads")
    assert set(ours_flat) == set(theirs_flat)
    largest = max(np.abs(theirs).max() for theirs in theirs_flat.values())
    for name, theirs in theirs_flat.items():
        assert_close(name, ours_flat[name], theirs, least=0.01 * largest)  # that of key/bias is nothing but rounding


def assert_close(name: str, ours: Any, theirs: Any, least: float = 0.0) -> None:
    """Differences are measured against the largest of their values, or `least` where that is more."""
    atol = TOLERANCE * max(np.abs(theirs).max(), least)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol, err_msg=name)


def _real(case: Case) -> np.ndarray:
    return np.arange(case["inputs/tokens"].shape[1]) < case["inputs/lengths"][:, None]


def _rngs() -> nnx.Rngs:
    return nnx.Rngs(params=jax.random.key(0))
