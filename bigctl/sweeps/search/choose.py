"""The sampler and the pruner that the settings of a sweep name."""

from __future__ import annotations

from bigctl.config.schema import Sweep, mode_by_name
from bigctl.sweeps.search import model_based
from bigctl.sweeps.search.pruners import Asha, Hyperband, Median, Pruner
from bigctl.sweeps.search.samplers import Grid, Random, Sampler
from bigctl.sweeps.search.space import Plan


def make_sampler(plan: Plan, mode: str | None = None, pareto_mode: str | None = None) -> Sampler:
    """The sampler that a plan names.

    Args:
        plan: the sweep.
        mode: whether scores should be "max" or "min"; None for what the plan says, or the metric's name.
        pareto_mode: the same of the second metric.

    Raises:
        ConfigError: if it cannot search this space, or its package is missing.
    """
    sweep = plan.sweep
    if sweep.sampler == "grid":
        return Grid(plan)
    if sweep.sampler == "random":
        return Random(plan)
    config = plan.base.config
    configured = (config.eval.metric, config.eval.mode) if sweep.metric is None else (sweep.metric, None)
    modes = [mode or sweep.mode or configured[1] or mode_by_name(configured[0] or "")]
    if sweep.pareto is not None and sweep.sampler == "nsga2":
        modes.append(pareto_mode or sweep.pareto_mode or mode_by_name(sweep.pareto))
    if sweep.sampler == "cmaes":
        return model_based.CmaEs(plan, modes[0])
    return model_based.Optuna(plan, modes)


def make_pruner(sweep: Sweep, mode: str) -> Pruner:
    """The pruner that the settings name, for a metric that should be "max" or "min"."""
    if sweep.pruner == "median":
        return Median(mode, sweep.warmup_trials, sweep.warmup_evaluations)
    if sweep.pruner == "asha":
        return Asha(mode, sweep.min_resource, sweep.reduction)
    if sweep.pruner == "hyperband":
        return Hyperband(mode, sweep.min_resource, sweep.reduction, sweep.brackets)
    return Pruner(mode)
