"""Promises of `bigctl.optim.patterns`: patterns of a user's are found, or refused in time."""

from __future__ import annotations

import re

import pytest

from bigctl.errors import ConfigError
from bigctl.optim import patterns

NAMES = ("encoder/embeddings/token/embedding", "encoder/layers/0/up/kernel", "encoder/layers/11/up/bias", "head/kernel")


@pytest.mark.parametrize(
    "pattern", ["embeddings", "layers/[0-3]/", r"^encoder/(?!.*/bias$)", "(up|head)/", "(layers/(0|1+)/)+", "nothing"]
)
def test_a_pattern_is_found_as_python_finds_it(pattern: str) -> None:
    assert patterns.found_in(pattern, NAMES) == tuple(bool(re.search(pattern, name)) for name in NAMES)


@pytest.mark.parametrize("pattern", [r"([a-z/]+)+!", r"(\w\w|\w|/)*!", ".*.*.*.*.*.*.*.*.*.*!"])
def test_a_pattern_that_takes_for_ever_is_refused_in_time(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the search not ended, neither would this."""
    monkeypatch.setattr(patterns, "_SECONDS", 0.5)
    with pytest.raises(ConfigError, match="takes more than 0.5 s to search for"):
        patterns.found_in(pattern, ("encoder/layers/0/attention/query/kernel" * 8,))


def test_patterns_of_the_models_need_no_process_of_their_own() -> None:
    assert patterns.is_quick(r"^encoder/(?!.*/lora_[ab]$)") and patterns.is_quick("layers/[0-3+*]/")
    assert not patterns.is_quick("(a+)+") and not patterns.is_quick("(a|a)*b")
