"""The LSTM here and in torch: the same states, logits and gradients, in both directions and on ragged texts."""

from __future__ import annotations

import pytest

from bigctl.config import schema
from tests.parity import cases

pytestmark = pytest.mark.optimized

pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.mark.parametrize("pool", schema.LSTM_POOLS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_lstm_is_that_of_torch(layers: int, bidirectional: bool, pool: str) -> None:
    from tests.parity import reference

    config = schema.Lstm(embedding=11, hidden=13, layers=layers, bidirectional=bidirectional, pool=pool)
    cases.assert_lstm_agrees(config, reference.lstm(config, length=31, seed=1))


@pytest.mark.parametrize("name", cases.LSTM)
def test_fixtures_are_what_torch_computes_today(name: str) -> None:
    from tests.parity import reference

    live, stored = reference.lstm(cases.LSTM[name]), cases.load(name)
    assert set(live) == set(stored)
    for path, value in stored.items():
        cases.assert_close(path, live[path], value)
