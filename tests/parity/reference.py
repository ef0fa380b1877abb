"""What torch and transformers compute for small models with random weights: inputs, outputs and gradients.

A case is a flat dict of arrays: "params/..." and "grads/..." under bigctl's parameter names and in its layout,
"inputs/..." and "outputs/...". `scripts/make_fixtures.py` writes the cases to tests/fixtures, the tests here compute
them anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from bigctl.config import schema

Case = dict[str, np.ndarray]


# ------------------------------------------------------------------------------------------------------------- BERT


def bert(
    config: schema.Bert,
    *,
    masked_lm: bool = False,
    outputs: int = 3,
    length: int = 9,
    seed: int = 0,
    weights: Path | None = None,
) -> Case:
    """The loss of `BertForMaskedLM`, of `BertForSequenceClassification`, or of a head on `BertModel`.

    The weights are random, or for the last of these those of a folder.
    """
    torch.manual_seed(seed)
    tokens, lengths, second = _texts(config.vocab or 0, length, seed)
    model: Any = _masked_lm(config) if masked_lm else _classifier(config, outputs)
    if weights is None:
        _spread(model)
    else:
        model.bert = BertModel.from_pretrained(weights, add_pooling_layer=config.pooler).eval()
    places = torch.arange(length)
    real = places < lengths[:, None]
    inputs = {
        "input_ids": tokens,
        "attention_mask": real.long(),
        "token_type_ids": (places >= second[:, None]).long(),
    }
    if masked_lm:
        label = torch.where(real & (torch.rand(tokens.shape) < 0.4), tokens, -100)
        out = model(**inputs)
        loss = functional.cross_entropy(out.logits.flatten(0, 1), label.flatten(), ignore_index=-100)
        found = {"logits": out.logits}
    else:
        label = torch.randint(outputs, (len(tokens),))
        found = _classify(model, config, inputs, real)
        loss = functional.cross_entropy(found["logits"], label)
    loss.backward()
    names = {name: our for name, our in _bert_names(config) if _has(model, name)}
    return {**_inputs(tokens, lengths, second, label), **_outputs(loss, found), **_parameters(model, names)}


def _classifier(config: schema.Bert, outputs: int) -> nn.Module:
    """transformers' class where it has one for such a pool, else its encoder beside a linear layer."""
    if config.pool == "cls" and config.pooler:
        return BertForSequenceClassification(_hf(config, num_labels=outputs)).eval()
    model = nn.Module()
    model.bert = BertModel(_hf(config), add_pooling_layer=config.pooler)
    model.classifier = nn.Linear(config.width or 0, outputs)
    return model.eval()


def _classify(
    model: Any, config: schema.Bert, inputs: dict[str, torch.Tensor], real: torch.Tensor
) -> dict[str, torch.Tensor]:
    if isinstance(model, BertForSequenceClassification):
        out = model(**inputs, output_hidden_states=True)
        return {"logits": out.logits, "hidden": out.hidden_states[-1]}
    hidden = model.bert(**inputs).last_hidden_state
    pooled = (hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True) if config.pool == "mean" else hidden[:, 0]
    if config.pooler:
        pooled = torch.tanh(model.bert.pooler.dense(pooled))
    return {"logits": model.classifier(pooled), "hidden": hidden}


def _masked_lm(config: schema.Bert) -> nn.Module:
    return BertForMaskedLM(_hf(config)).eval()


def _hf(config: schema.Bert, **more: Any) -> BertConfig:
    return BertConfig(
        vocab_size=config.vocab,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.intermediate,
        max_position_embeddings=config.positions,
        layer_norm_eps=config.eps,
        hidden_act="gelu",
        **more,
    )


def _bert_names(config: schema.Bert) -> Iterable[tuple[str, str]]:
    """(transformers' module, ours)."""
    for name in ("word", "position", "token_type"):
        ours = {"word": "token", "token_type": "segment"}.get(name, name)
        yield f"bert.embeddings.{name}_embeddings", f"encoder/embeddings/{ours}"
    yield "bert.embeddings.LayerNorm", "encoder/embeddings/norm"
    for i in range(config.layers or 0):
        theirs, ours = f"bert.encoder.layer.{i}", f"encoder/layers/{i}"
        for name in ("query", "key", "value"):
            yield f"{theirs}.attention.self.{name}", f"{ours}/attention/{name}"
        yield f"{theirs}.attention.output.dense", f"{ours}/attention/output"
        yield f"{theirs}.attention.output.LayerNorm", f"{ours}/attention_norm"
        yield f"{theirs}.intermediate.dense", f"{ours}/up"
        yield f"{theirs}.output.dense", f"{ours}/down"
        yield f"{theirs}.output.LayerNorm", f"{ours}/output_norm"
    yield "bert.pooler.dense", "pooler"
    yield "classifier", "head"
    yield "cls.predictions.transform.dense", "transform"
    yield "cls.predictions.transform.LayerNorm", "transform_norm"
    yield "cls.predictions", "decoder_bias"


# --------------------------------------------------------------------------------------------------- GPT-2 and Llama


def decoder(kind: str, options: dict[str, Any], *, length: int = 11, seed: int = 1) -> Case:
    """The loss of the next token of a `GPT2LMHeadModel` or a `LlamaForCausalLM`, under transformers' own names."""
    torch.manual_seed(seed)
    off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    model: Any = (
        GPT2LMHeadModel(GPT2Config(**options, **off)) if kind == "gpt2" else LlamaForCausalLM(LlamaConfig(**options))
    ).eval()
    with torch.no_grad():  # weights large enough for every part to matter
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    tokens = torch.randint(options["vocab_size"], (3, length + 1))
    logits = model(input_ids=tokens[:, :-1]).logits
    loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    case = {"config": np.array(model.config.to_json_string()), "inputs/tokens": tokens.numpy().astype(np.int32)}
    for name, parameter in model.named_parameters():
        case[f"tensors/{name}"] = parameter.detach().numpy()
        case[f"grads/{name}"] = parameter.grad.numpy()
    return {**case, **_outputs(loss, {"logits": logits})}


# ------------------------------------------------------------------------------------------------------------- LSTM


def lstm(config: schema.Lstm, *, vocab: int = 17, outputs: int = 3, length: int = 9, seed: int = 0) -> Case:
    """`torch.nn.LSTM` on packed sequences, between an embedding and a linear layer."""
    torch.manual_seed(seed)
    tokens, lengths, second = _texts(vocab, length, seed)
    label = torch.randint(outputs, (len(tokens),))
    features = config.hidden * (2 if config.bidirectional else 1)
    model = nn.Module()
    model.embedding = nn.Embedding(vocab, config.embedding)
    model.lstm = nn.LSTM(
        config.embedding, config.hidden, config.layers, bidirectional=config.bidirectional, batch_first=True
    )
    model.head = nn.Linear(features, outputs)
    packed = nn.utils.rnn.pack_padded_sequence(model.embedding(tokens), lengths, batch_first=True, enforce_sorted=False)
    packed_states, (last, _) = model.lstm(packed)
    states, _ = nn.utils.rnn.pad_packed_sequence(packed_states, batch_first=True, total_length=length)
    real = (torch.arange(length) < lengths[:, None])[..., None]
    last = last.reshape(config.layers, -1, len(tokens), config.hidden)[-1].transpose(0, 1).flatten(1)
    pooled = {
        "last": last,
        "mean": states.sum(1) / lengths[:, None],
        "max": states.masked_fill(~real, -torch.inf).amax(1),
    }[config.pool]
    logits = model.head(pooled)
    loss = functional.cross_entropy(logits, label)
    loss.backward()
    case = {
        **_inputs(tokens, lengths, second, label),
        **_outputs(loss, {"logits": logits, "states": states, "last": last}),
        **_parameters(model, {"embedding": "embedding", "head": "head"}),
    }
    for kind, values in (("params", lambda p: p.detach()), ("grads", lambda p: p.grad)):
        weights = {name: values(p).numpy() for name, p in model.lstm.named_parameters()}
        case.update({f"{kind}/{name}": value for name, value in _lstm_weights(weights, config, kind).items()})
    return case


def _lstm_weights(weights: dict[str, np.ndarray], config: schema.Lstm, kind: str) -> Case:
    """torch's parameters, or their gradients, as ours: the two biases are one, which has the gradient of either."""
    found: Case = {}
    for i in range(config.layers):
        for direction, suffix in (("forward", ""), ("backward", "_reverse")):
            if suffix and not config.bidirectional:
                continue
            place = f"layers/{i}/{direction}"
            first, other = (weights[f"bias_{part}_l{i}{suffix}"] for part in ("ih", "hh"))
            found[f"{place}/input_kernel"] = weights[f"weight_ih_l{i}{suffix}"].T
            found[f"{place}/recurrent_kernel"] = weights[f"weight_hh_l{i}{suffix}"].T
            found[f"{place}/bias"] = first + other if kind == "params" else first
    return found


# ----------------------------------------------------------------------------------------------------------- shared


def _texts(vocab: int, length: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ragged texts, of which one is full and one has a single token; two of them are pairs."""
    rng = np.random.default_rng(seed)
    lengths = np.array([length, 1, length // 2, length - 2, 3])
    second = np.array([length // 2, 1, length // 2, length - 3, 3])
    tokens = rng.integers(1, vocab, (len(lengths), length)) * (np.arange(length) < lengths[:, None])
    return torch.from_numpy(tokens), torch.from_numpy(lengths), torch.from_numpy(second)


def _spread(model: nn.Module) -> None:
    """Weights large enough for every part to matter; those of a new BERT are nearly a constant function."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm.weight" in name:
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
            else:
                parameter.copy_(0.4 * torch.randn_like(parameter))


def _inputs(tokens: Any, lengths: Any, second: Any, label: Any) -> Case:
    columns = {"tokens": tokens, "lengths": lengths, "second": second, "label": label}
    return {f"inputs/{name}": value.numpy().astype(np.int32) for name, value in columns.items()}


def _outputs(loss: torch.Tensor, found: dict[str, torch.Tensor]) -> Case:
    return {f"outputs/{name}": value.detach().numpy() for name, value in {"loss": loss, **found}.items()}


def _parameters(model: nn.Module, names: dict[str, str]) -> Case:
    case: Case = {}
    for theirs, ours in names.items():
        module = model.get_submodule(theirs)
        for name, parameter in module.named_parameters(recurse=False):
            path = ours if ours == "decoder_bias" else f"{ours}/{_part(module, name)}"
            turn = isinstance(module, nn.Linear) and name == "weight"
            for kind, value in (("params", parameter.detach()), ("grads", parameter.grad)):
                case[f"{kind}/{path}"] = (value.T if turn else value).numpy().copy()
    return case


def _part(module: nn.Module, name: str) -> str:
    if name == "bias":
        return "bias"
    return {"Linear": "kernel", "Embedding": "embedding", "LayerNorm": "scale"}[type(module).__name__]


def _has(model: nn.Module, name: str) -> bool:
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True
