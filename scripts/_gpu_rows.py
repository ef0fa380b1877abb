"""What the cases of `bench_gpu` and its peers share: how a step is timed, and what a row says."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import _bench

CARD = "h100:1"
VOCAB = 50_257
Row = dict[str, Any]


def step_seconds(advance: Callable[[int], None], options: argparse.Namespace) -> float:
    """Seconds a step: the median over blocks; `advance(n)` makes n steps and waits for them."""
    advance(2)
    once = _bench.seconds(lambda: advance(2)) / 2
    steps = max(2, round(options.seconds / once))
    return statistics.median(_bench.seconds(lambda: advance(steps)) / steps for _ in range(options.rounds))


def row(what: str, seconds: float, count: float, unit: str, flops: float = 0.0, **more: Any) -> Row:
    rate = {"tflops": flops / seconds / 1e12, "mfu": flops / seconds / _peak()} if flops else {}
    return {"what": what, "ms": 1e3 * seconds, "per_s": count / seconds, "unit": f"{unit}/s", **rate, **more}


def _peak() -> float:
    from bigctl.engine import plan

    return float(plan.target_of(CARD).chip.bfloat16)
