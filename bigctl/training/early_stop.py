"""When training ends before its length by its own rule. Free of jax: a run that has ended so is judged before that."""

from __future__ import annotations

from bigctl.config.schema import EarlyStop


def reason(rule: EarlyStop, metric: str, mode: str, value: float | None, stale: int) -> str:
    """Why training ends here; empty if it goes on.

    Args:
        rule: `train.early_stop`.
        metric, mode: what selects.
        value: the latest, or where only that is known the best one; None where there was none.
        stale: evaluations since the best one.
    """
    if rule.target is not None and value is not None and reached(value, rule.target, mode):
        return _target_reached(rule.target, metric)
    if rule.patience is not None and stale >= rule.patience:
        return f"no better {metric} in {stale} evaluations"
    return ""


def still(rule: EarlyStop, metric: str, mode: str, why: str, best: float | None, stale: int) -> str:
    """Why training that has ended stays so by this rule, which may be another than then; empty if it goes on.

    Args:
        why: it ended.
        best: value so far; the last one, which may have reached the target by less than `min_delta`, is not known.
        rule, metric, mode, stale: as for `reason`.
    """
    if rule.target is not None and why == _target_reached(rule.target, metric):
        return why
    return reason(rule, metric, mode, best, stale)


def _target_reached(target: float, metric: str) -> str:
    return f"{metric} reached {target:g}"


def reached(value: float, target: float, mode: str) -> bool:
    return value >= target if mode == "max" else value <= target
