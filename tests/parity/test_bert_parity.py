"""BERT here and in transformers: the same logits, hidden states and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigctl.config import schema
from bigctl.errors import DataError
from tests.parity import cases

pytestmark = pytest.mark.optimized

pytest.importorskip("torch")
pytest.importorskip("transformers")

CLASSIFIERS: dict[str, dict[str, Any]] = {
    "cls": {},
    "cls with pooler": {"pooler": True},
    "mean": {"pool": "mean"},
    "mean with pooler": {"pool": "mean", "pooler": True},
    "one head": {"heads": 1, "eps": 1e-5},
    "four layers": {"layers": 4, "pooler": True},
}


def config(**options: Any) -> schema.Bert:
    sizes = {"layers": 2, "width": 24, "heads": 4, "intermediate": 50, "positions": 40, "vocab": 61}
    return schema.Bert(**{**sizes, **options})


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier_is_that_of_transformers(name: str) -> None:
    from tests.parity import reference

    bert = config(**CLASSIFIERS[name])
    cases.assert_bert_agrees(bert, reference.bert(bert, outputs=4, length=33, seed=1))


def test_masked_language_model_is_that_of_transformers() -> None:
    from tests.parity import reference

    cases.assert_masked_lm_agrees(config(), reference.bert(config(), masked_lm=True, length=33, seed=1))


def test_tagger_is_that_of_transformers(tmp_path: Path) -> None:
    """`BertForTokenClassification`, saved and read as weights to start from: the same logits and the same loss."""
    import torch
    import transformers
    from bigctl.recipes.tagging import TagHead
    from flax import nnx

    from bigctl.interop import loading, sources
    from bigctl.models.bert import BertClassifier

    tags = ("O", "B-PER", "I-PER", "B-LOC")
    torch.manual_seed(0)
    theirs = transformers.BertForTokenClassification(
        transformers.BertConfig(
            vocab_size=61, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=50,
            max_position_embeddings=40, id2label=dict(enumerate(tags)), label2id={t: n for n, t in enumerate(tags)},
            initializer_range=0.3,
        )
    ).eval()  # fmt: skip
    theirs.save_pretrained(tmp_path)
    source = sources.locate_source(str(tmp_path))
    bert = sources.fill_architecture(schema.Bert(init_from=str(tmp_path)), source)
    assert isinstance(bert, schema.Bert)
    structure, params, rest = nnx.split(BertClassifier(bert, 61, 4, per_token=True, rngs=cases._rngs()), nnx.Param, ...)
    shapes = {name: value.shape for name, value in cases.flatten(nnx.to_pure_dict(params)).items()}
    weights, new, unused = loading.load_weights(source, shapes, classes=tags)
    assert not new and not unused
    model = nnx.merge(structure, cases.nested(weights), rest)
    draw = np.random.default_rng(0)
    tokens, lengths = draw.integers(5, 61, (5, 17)), draw.integers(3, 18, 5)
    real = np.arange(17) < lengths[:, None]
    labels = np.where(real & (draw.random(real.shape) < 0.6), draw.integers(0, 4, real.shape), -1)
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(tokens),
            attention_mask=torch.tensor(real).long(),
            labels=torch.tensor(np.where(labels < 0, -100, labels)),
        )
    logits = model(tokens.astype(np.int32), lengths.astype(np.int32), lengths.astype(np.int32))
    cases.assert_close("logits", np.asarray(logits)[real], expected.logits.numpy()[real])
    batch = {"label": labels.astype(np.int32), "mask": np.ones(5, np.float32)}
    total, count = np.asarray(TagHead(tags, "none", None).evaluate(logits, batch)["loss"])
    assert total / count == pytest.approx(float(expected.loss), rel=1e-4)


@pytest.mark.parametrize("name", [*cases.BERT, *cases.MASKED_LM])
def test_fixtures_are_what_transformers_computes_today(name: str) -> None:
    from tests.parity import reference

    bert = {**cases.BERT, **cases.MASKED_LM}[name]
    live, stored = reference.bert(bert, masked_lm=name in cases.MASKED_LM), cases.load(name)
    assert set(live) == set(stored)
    for path, value in stored.items():
        cases.assert_close(path, live[path], value, least=1e-3)  # the gradient of key/bias is nothing but rounding


@pytest.mark.slow
@pytest.mark.parametrize("pool", schema.POOLS)
def test_minilm_is_that_of_transformers(pool: str) -> None:
    """The packaged weights: read alike, and the same hidden states and gradients of all layers."""
    from bigctl.interop import loading, sources
    from tests.parity import reference

    try:
        source = sources.locate_source("minilm")
    except DataError as error:
        pytest.skip(str(error))
    bert = sources.fill_architecture(schema.Bert(init_from="minilm", pool=pool), source)
    assert isinstance(bert, schema.Bert)
    case = reference.bert(bert, length=33, weights=source.path)
    params = cases.part(case, "params")
    taken, new, _ = loading.load_weights(source, {name: value.shape for name, value in params.items()})
    assert sorted(new) == ["head/bias", "head/kernel"]
    for name, value in taken.items():
        np.testing.assert_array_equal(value, params[name], err_msg=name)
    cases.assert_bert_agrees(bert, case)
