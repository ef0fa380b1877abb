"""Promises of `bigctl.engine.device_memory`: what cannot fit is refused by its sizes, before anything is allocated."""

from __future__ import annotations

import pytest

from bigctl import memory
from bigctl.config.compose import compose
from bigctl.engine import device_memory, experiment
from bigctl.errors import BigctlError, ConfigError, explained

SMALL = ["recipe=mlp_cls", "train.steps=3", "model.hidden=[1000]"]


def test_a_model_that_cannot_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    built = experiment.build(compose(SMALL).config)
    device_memory.require_state(built.programs)
    parameters = built.parameter_count
    monkeypatch.setattr(memory, "limit", lambda: 4 * 4 * parameters)  # less than parameters, two moments, gradients
    with pytest.raises(ConfigError, match=f"{parameters:,} parameters take") as caught:
        device_memory.require_state(built.programs)
    assert caught.value.where == "model" and "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["train.batch_size", "eval.batch_size"])
def test_a_batch_that_cannot_fit_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="a batch of 2,000,000,000 examples takes") as caught:
        experiment.build(compose([*SMALL, f"{key}=2000000000"]).config)
    assert caught.value.where == key


def test_memory_that_runs_out_is_one_line() -> None:
    class JaxRuntimeError(RuntimeError): ...

    for error in (MemoryError(), JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 1 bytes")):
        known = explained(error)
        assert isinstance(known, BigctlError) and "not enough memory" in str(known) and "\n" not in str(known)
    assert explained(JaxRuntimeError("INTERNAL: something else")) is None
