"""The mark to beat of a run that is resumed with another `eval.metric`, or with none of its best checkpoints left."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bigctl.training.state import Progress


def carried_over(
    progress: Progress,
    metric: str,
    mode: str,
    *,
    before: Mapping[str, Any],
    lines: Callable[[], Sequence[Mapping[str, Any]]],
    kept: Sequence[int],
    min_delta: float = 0.0,
) -> tuple[Progress, str]:
    """The progress to go on with, and what to say of it: where `best` is of another metric, or of another direction,
    the best of the checkpoints that are there is found anew by what was logged.

    Args:
        progress: of the checkpoint that training goes on from.
        metric, mode: what selects from now on.
        before: `selection` of run.json, for checkpoints that do not tell.
        lines: reads metrics.jsonl.
        kept: steps of the checkpoints that could be selected.
        min_delta: see `train.early_stop`.
    """
    if _is_of(progress, metric, mode, before):
        return dataclasses.replace(progress, metric=metric, mode=mode), ""
    values = [
        (int(line["step"]), {k: v for k, v in line.items() if k != "step" and isinstance(v, int | float)})
        for line in lines()
        if isinstance(line.get(metric), int | float) and line["step"] <= progress.step
    ]
    new = dataclasses.replace(
        progress, best=None, best_step=None, best_metrics={}, stopped="", metric=metric, mode=mode
    )
    for step, found in values:
        if step in kept:
            new.step = step
            new.record(found[metric], mode, min_delta, found)
    new.step = progress.step
    new.stale = sum(step > new.best_step for step, _ in values) if new.best_step is not None else 0
    named = "nothing so far" if new.best is None else f"{new.best:.6g} at step {new.best_step:,}"
    return new, f"selection is by {metric} ({mode}) from here on; the best until now: {named}"


def _is_of(progress: Progress, metric: str, mode: str, before: Mapping[str, Any]) -> bool:
    if progress.metric:
        return (progress.metric, progress.mode) == (metric, mode)
    if progress.best is None:
        return True
    known = progress.best_metrics or {before.get("metric", metric): progress.best}
    return known.get(metric) == progress.best and before.get("mode", mode) == mode
