"""Gates on metrics, `--require 'val/accuracy>=0.97'`: what a run must reach for its command to exit with 0."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bigctl.errors import ConfigError

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True)
class Gate:
    """One condition on one metric."""

    metric: str
    sign: str
    bound: float

    def __str__(self) -> str:
        return f"{self.metric}{self.sign}{self.bound:g}"


@dataclass(frozen=True)
class Verdict:
    """A gate and the value that was found; None where that is not finite, which passes no gate."""

    gate: Gate
    value: float | None

    @property
    def passed(self) -> bool:
        return self.value is not None and OPERATORS[self.gate.sign](self.value, self.gate.bound)

    def __str__(self) -> str:
        found = "not finite" if self.value is None else f"{self.value:.6g}"
        return f"{self.gate.metric} is {found}, {'as' if self.passed else 'not'} {self.gate.sign} {self.gate.bound:g}"

    def to_json(self) -> dict[str, Any]:
        return {"require": str(self.gate), "value": self.value, "passed": self.passed}


def parse(texts: Iterable[str]) -> list[Gate]:
    """Gates as they are written on the command line.

    Raises:
        ConfigError: for what is no such condition.
    """
    gates = []
    for text in texts:
        match = re.fullmatch(r"\s*([\w./-]+?)\s*(>=|<=|==|>|<)\s*(\S+)\s*", text)
        try:
            bound = float(match[3]) if match else math.nan
        except ValueError:
            bound = math.nan
        if match is None or not math.isfinite(bound):
            raise ConfigError(
                f"{text!r} is no condition on a metric",
                where="--require",
                hint=f"METRIC, one of {' '.join(OPERATORS)}, and a number, in quotes: --require 'val/accuracy>=0.97'",
            )
        gates.append(Gate(match[1], match[2], bound))
    return gates


def check_names(gates: Iterable[Gate], known: Sequence[str]) -> None:
    """Raise ConfigError for a gate on a metric that there is not, naming those that there are."""
    for gate in gates:
        if gate.metric not in known:
            close = difflib.get_close_matches(gate.metric, known, n=1)
            guess = f", did you mean {close[0]}?" if close else ""
            raise ConfigError(
                f"there is no metric {gate.metric!r}{guess}",
                where="--require",
                hint=f"one of: {', '.join(sorted(known))}",
            )


def judge(gates: Iterable[Gate], metrics: Mapping[str, float | None]) -> list[Verdict]:
    """Every gate with the value of its metric. Raises ConfigError for an unknown metric."""
    gates = list(gates)
    check_names(gates, list(metrics))
    verdicts = []
    for gate in gates:
        value = metrics[gate.metric]
        verdicts.append(Verdict(gate, value if value is not None and math.isfinite(value) else None))
    return verdicts
