"""How long programs take to compile is what their first calls with each length take, whoever compiles them."""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np
import pytest

from bigctl.parallel import host_memory
from bigctl.training.calls import Calls


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("checked", [True, False])
def test_the_first_call_of_each_length_is_compiling(checked: bool, keeps: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(host_memory, "keeps", lambda: keeps)
    seen: list[Any] = []
    calls = Calls(seen.append if checked else None)

    @jax.jit
    def program(x: jax.Array) -> jax.Array:
        time.sleep(0.1)  # while it is traced
        return x + 1

    spent = []
    for length in (4, 4, 6, 4, 6):
        assert calls.run(program, length, np.zeros(length, np.float32)).shape == (length,)
        spent.append(calls.compiling)
    assert spent[0] >= 0.1 and spent[2] >= spent[0] + 0.1
    assert spent[0] == spent[1] and spent[2] == spent[3] == spent[4]
    assert len(seen) == (2 if checked else 0)
