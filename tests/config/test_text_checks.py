"""Promises of `bigctl.config.checks` for experiments on texts: what cannot work is refused by key, with a remedy."""

from __future__ import annotations

from typing import Any

import pytest

from bigctl.config import schema
from bigctl.config.checks import check
from bigctl.config.schema import Config
from tests.config.checking import INF, NAN, config, refused


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)


def of_texts(**changed: Any) -> Config:
    """A valid experiment on texts with some keys changed."""
    parts = {"recipe": schema.BertCls(), "model": schema.Bert(width=8, heads=2), "data": schema.Csv(path="x", text="t")}
    return config(**{**parts, **changed})


def test_sound_configurations_of_texts_pass():
    check(of_texts(), {})
    check(of_texts(recipe=schema.LstmCls(), model=schema.Lstm()), {})
    check(of_texts(recipe=schema.BertCls(), model=schema.Lstm()), {})
    check(of_texts(recipe=schema.BertMlm()), {})
    check(of_texts(recipe__tokenizer__type="pretrained", model__init_from="minilm"), {})
    check(of_texts(recipe__tokenizer__type="file", recipe__tokenizer__path="vocab.txt"), {})
    check(of_texts(optimizer__freeze=["embeddings", r"layers/[0-3]/"], optimizer__layer_decay=1.0), {})
    check(of_texts(model__positions=128, recipe__tokenizer__max_length=128, model__lora__rank=8), {})


@pytest.mark.parametrize(
    ("changed", "match", "hint"),
    [
        ({"recipe": schema.LstmCls(), "model": schema.Cnn()}, "model=cnn does not read text", "model=lstm"),
        ({"recipe": schema.CnnCls(), "model": schema.Lstm()}, "model=lstm reads text, recipe=cnn_cls does not", "bert"),
        ({"recipe": schema.BertMlm(), "model": schema.Lstm()}, "recipe=bert_mlm cannot train model=lstm", "bert_tiny"),
        ({"recipe__tokenizer__type": "pretrained"}, "needs pretrained weights", "model.init_from"),
        ({"recipe__tokenizer__type": "file"}, "recipe.tokenizer.path is not given", "vocab.txt"),
        ({"recipe__tokenizer__path": "vocab.txt"}, "is not used by recipe.tokenizer.type=words", "type=file"),
        ({"recipe__tokenizer__type": "wordpiece"}, "cannot be 'wordpiece'", "bpe"),
        ({"recipe__tokenizer__truncate": "middle"}, "cannot be 'middle'", "head_tail"),
        ({"model__positions": 64}, "max_length=128 is more than the model has positions", "max_length=64"),
        ({"optimizer__freeze": ["layers/[0-"]}, "no regular expression", "embeddings"),
        ({"model__lora__targets": ["query", "valeu"]}, "targets cannot be 'valeu'", "value"),
        ({"model__lora__targets": []}, "names no layer", "query"),
        ({"model__heads": 3}, "width=8 is not divisible by model.heads=3", "divisor"),
    ],
)
def test_what_does_not_fit_texts_is_refused(changed, match, hint):
    refused(of_texts(**changed), match, hint)


@pytest.mark.parametrize(
    ("dotted", "values"),
    [
        ("recipe__tokenizer__max_length", [3, 0, -1]),
        ("recipe__tokenizer__size", [0, 5]),
        ("recipe__bucketing__shapes", [0, -1]),
        ("recipe__bucketing__window", [0]),
        ("optimizer__layer_decay", [0.0, 1.1, NAN]),
        ("model__lora__rank", [-1]),
        ("model__lora__alpha", [0.0, INF]),
        ("model__attention_dropout", [1.0, -0.1]),
        ("model__eps", [0.0]),
        ("model__layers", [0]),
    ],
)
def test_numbers_of_texts_out_of_range_are_refused(dotted, values):
    for value in values:
        error = refused(of_texts(**{dotted: value}), f"{dotted.replace('__', '.')}.*cannot be")
        assert str(error.hint)


@pytest.mark.parametrize("rate", [0.0, 1.0, NAN])
def test_a_mask_rate_is_a_share(rate):
    refused(of_texts(recipe=schema.BertMlm(mask_rate=rate)), "recipe.mask_rate cannot be", "between 0 and 1")
