"""Promises of `--require`: what is a condition, and when it is met."""

from __future__ import annotations

import math

import pytest

from bigctl.errors import ConfigError
from bigctl.runs import gates


@pytest.mark.parametrize(
    ("text", "metric", "sign", "bound"),
    [
        ("val/accuracy>=0.97", "val/accuracy", ">=", 0.97),
        (" test/loss < 1e-3 ", "test/loss", "<", 1e-3),
        ("test/loss==-2", "test/loss", "==", -2),
        ("val/f1>.5", "val/f1", ">", 0.5),
        ("val/loss<=3", "val/loss", "<=", 3),
    ],
)
def test_conditions_are_read(text: str, metric: str, sign: str, bound: float) -> None:
    assert gates.parse([text]) == [gates.Gate(metric, sign, bound)]


@pytest.mark.parametrize("text", ["", "val/loss", "val/loss=1", "val/loss>=nan", "val/loss>=inf", "val/loss>=x", ">=1",
                                  "a>=1>=2", "val/loss!=1", "val/loss=>1"])  # fmt: skip
def test_what_is_no_condition_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="no condition") as caught:
        gates.parse([text])
    assert caught.value.exit_code == 2 and "val/accuracy>=0.97" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("sign", "below", "equal", "above"),
    [
        (">=", False, True, True), ("<=", True, True, False), (">", False, False, True), ("<", True, False, False),
        ("==", False, True, False),
    ],
)  # fmt: skip
def test_each_operator_means_what_it_says(sign: str, below: bool, equal: bool, above: bool) -> None:
    required = gates.parse([f"m{sign}0.5"])
    assert [gates.judge(required, {"m": value})[0].passed for value in (0.4, 0.5, 0.6)] == [below, equal, above]


@pytest.mark.parametrize("value", [math.nan, None, math.inf, -math.inf])
@pytest.mark.parametrize("sign", gates.OPERATORS)
def test_what_is_not_finite_passes_no_gate(value: float | None, sign: str) -> None:
    (verdict,) = gates.judge(gates.parse([f"m{sign}0"]), {"m": value})
    assert not verdict.passed and "not finite" in str(verdict)


def test_an_unknown_metric_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match="did you mean val/accuracy") as caught:
        gates.judge(gates.parse(["val/acuracy>0"]), {"val/accuracy": 1.0, "val/loss": 0.0})
    assert "val/accuracy, val/loss" in str(caught.value.hint)
