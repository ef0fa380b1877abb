"""BERT here and in transformers: the same logits, hidden states and gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bigctl.config import schema
from bigctl.errors import DataError
from tests.parity import cases

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
